"""Cache of feature rows: written in parts as they are computed, found again by the content of each audio file.

One folder per identity (weights, preprocessing, windows), in it parts of up to `FILES_PER_PART` files. A part states
which audio it holds, so a run that was killed, or has other tasks or another order of files, takes from it what it
needs; a changed file, model or window is never mistaken for an old one.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from music2vec_hf.probing.rows import FeatureRows

FILES_PER_PART = 128
_LAYER = "layer_"


def audio_digests(paths: Sequence[Path]) -> list[str]:
    """Digest of the content of each file."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    return digests


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an npz file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(aside, **arrays)
    os.replace(aside, path)


def _name(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _save(folder: Path, digests: Sequence[str], rows: FeatureRows) -> None:
    arrays = {name: getattr(rows, name) for name in ("offsets", "num_frames", "seconds")}
    layers = {_LAYER + layer: values for layer, values in rows.features.items()}
    write_npz(folder / f"{_name(''.join(digests))}.npz", {"digests": np.array(digests)} | arrays | layers)


def _load(path: Path) -> FeatureRows:
    with np.load(path) as stored:
        features = {name.removeprefix(_LAYER): stored[name] for name in stored.files if name.startswith(_LAYER)}
        return FeatureRows(features, stored["offsets"], stored["num_frames"], stored["seconds"])


def cached_rows(
    paths: Sequence[Path],
    digests: Sequence[str],
    identity: str,
    cache_dir: Path | None,
    compute: Callable[[Sequence[Path]], FeatureRows],
    windows_per_row: int | None,
    label: str,
    progress: bool,
) -> FeatureRows:
    """Rows of audio files, computed part by part where the cache does not have them.

    Windows are cached; they are merged to rows part by part, so that all windows of a large data set are never in
    memory together.

    Args:
        paths, digests: the files and what `audio_digests` says of them; equal content is computed once.
        identity (`str`): all else that features depend on.
        cache_dir (`Path`, *optional*): without it nothing is kept.
        compute: files to the windows of each.
        windows_per_row (`int`, *optional*): see `FeatureRows.merged`.
        label (`str`), progress (`bool`): of the progress bar.

    Returns:
        `FeatureRows`: in the order of `paths`.
    """
    folder = None if cache_dir is None else cache_dir / _name(identity)
    wanted = dict(zip(digests, paths, strict=True))
    parts, found = [], {}

    def keep(digests_of_part: Sequence[str], windows: FeatureRows) -> None:
        new = [place for place, digest in enumerate(digests_of_part) if digest in wanted and digest not in found]
        if new:
            parts.append(windows.take(new).merged(windows_per_row))
            found.update({digests_of_part[place]: len(found) + number for number, place in enumerate(new)})
            bar.update(len(new))

    with tqdm(total=len(wanted), desc=f"features of {label}", unit="file", disable=not progress) as bar:
        for path in sorted(folder.glob("[!.]*.npz")) if folder is not None else ():  # a part half written has a dot
            with np.load(path) as stored:
                stored_digests = stored["digests"].tolist()
            if any(digest in wanted and digest not in found for digest in stored_digests):
                keep(stored_digests, _load(path))
        missing = [digest for digest in wanted if digest not in found]
        for start in range(0, len(missing), FILES_PER_PART):
            part = missing[start : start + FILES_PER_PART]
            windows = compute([wanted[digest] for digest in part])
            if folder is not None:
                _save(folder, part, windows)
            keep(part, windows)
    return FeatureRows.joined(parts).take([found[digest] for digest in digests])
