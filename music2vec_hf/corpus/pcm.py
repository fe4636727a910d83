"""A prepared corpus as int16 samples in one memory-mapped file, for machines where decoding FLAC is the limit."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from music2vec_hf.audio.containers import audio_name
from music2vec_hf.audio.listing import choose_splits, find_files
from music2vec_hf.audio.reading import to_pcm
from music2vec_hf.common.files import hold_lock, write_json
from music2vec_hf.corpus.loading import STATISTICS, clip_lengths, load_corpus, read_crop

logger = logging.getLogger(__name__)

# Beside the shards: all clips one after the other, split by split; then what is where, written last.
FOLDER, SAMPLES, INDEX = "pcm", "samples.int16", "index.json"


class PcmStore:
    """The decoded clips of a corpus, memory-mapped; from [`open_pcm`].

    `clip in store` says whether it holds a clip: not if the clip could not be decoded whole.

    Args:
        path (`Path`): the file of samples.
        lengths (`np.ndarray`): samples of each clip.
        first_sample (`int`): where the first of them begins in the file.
        failed (`frozenset[int]`): clips that it does not hold.
    """

    def __init__(self, path: Path, lengths: np.ndarray, first_sample: int, failed: frozenset[int]):
        self._settings = (path, lengths, first_sample, failed)
        self._offsets = first_sample + np.concatenate([[0], np.cumsum(lengths)])
        self._failed = failed
        self._samples = np.asarray(np.memmap(path, dtype="<i2", mode="r"))

    def __reduce__(self):
        return PcmStore, self._settings  # a worker that is not forked maps the file, too

    def __contains__(self, clip: int) -> bool:
        return clip not in self._failed

    def read(self, clip: int, start_sample: int, num_samples: int) -> np.ndarray:
        """A part of a clip, float32 `[num_samples]`: the very samples that its FLAC decodes to."""
        first = self._offsets[clip] + start_sample
        return self._samples[first : first + num_samples] * np.float32(1 / 32768)


def store_pcm(corpus: str | os.PathLike, progress: bool = True) -> dict:
    """Decode all clips of a prepared corpus into `corpus/pcm`, once: 115 GB for 1,000 hours.

    Training finds it there. A whole store that fits the corpus is left as it is. A run that was killed begins anew.

    Args:
        corpus: folder that `prepare_corpus` made.
        progress (`bool`): show a progress bar.

    Returns:
        `dict`: the index: `splits`, by name (also "all"), with `first_clip`, `clips`, `first_sample`, `samples` and
        `key`; `failed`, the clips that cannot be decoded, numbered through all splits.

    Raises:
        ValueError: if there is no prepared corpus, another run is storing it, or the disk is too small.
    """
    corpus = Path(corpus)
    if not (corpus / "corpus.json").exists():
        raise ValueError(f"{corpus} is not a corpus that `music2vec prepare` made; make one of your audio first.")
    names = choose_splits(corpus, find_files(corpus), "all")
    clips = load_corpus(corpus, "all")
    splits = _splits({name: load_corpus(corpus, name) for name in names} | {"all": clips})
    folder = corpus / FOLDER
    folder.mkdir(exist_ok=True)
    with hold_lock(folder / ".lock", f"Another run is storing {corpus}; wait until it has ended."):
        index = _read_index(folder)
        if index is not None and index["splits"] == splits and _is_whole(folder, index):
            return index
        needed, free = 2 * splits["all"]["samples"], shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(f"{folder} needs {needed / 1e9:.1f} GB, but its disk has only {free / 1e9:.1f} GB left.")
        (folder / INDEX).unlink(missing_ok=True)
        aside = folder / f"{SAMPLES}.tmp"
        failed = _write_samples(aside, clips, progress)
        os.replace(aside, folder / SAMPLES)
        index = {"splits": splits, "failed": failed}
        write_json(folder / INDEX, index)
    return index


def open_pcm(corpus: str | os.PathLike, split: str | None, dataset: Dataset) -> PcmStore | None:
    """The PCM store beside a corpus, or None if there is none.

    Args:
        corpus, split: as `dataset` was loaded with [`load_corpus`].
        dataset (`datasets.Dataset`): the clips.

    Raises:
        ValueError: if the store was made from other clips, or is not whole.
    """
    folder = Path(corpus) / FOLDER
    index = _read_index(folder)
    if index is None:
        return None
    found = index["splits"].get(split or "all")
    if found is None or found["key"] != _key(dataset) or not _is_whole(folder, index):
        raise ValueError(
            f"{folder} is not whole, or was made from other clips than the corpus holds now; run "
            f"`music2vec pcm {corpus}` again, or remove that folder."
        )
    first = found["first_clip"]
    failed = frozenset(clip - first for clip in index["failed"] if first <= clip < first + found["clips"])
    return PcmStore(folder / SAMPLES, clip_lengths(dataset), found["first_sample"], failed)


def _read_index(folder: Path) -> dict | None:
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _is_whole(folder: Path, index: dict) -> bool:
    path = folder / SAMPLES
    return path.exists() and path.stat().st_size == 2 * index["splits"]["all"]["samples"]


def _splits(datasets: dict[str, Dataset]) -> dict[str, dict]:
    """Where the clips of each split lie; "all" comes last and begins with the first."""
    splits, first_clip, first_sample = {}, 0, 0
    for name, dataset in datasets.items():
        place = (0, 0) if name == "all" else (first_clip, first_sample)
        samples = int(clip_lengths(dataset).sum())
        splits[name] = {
            "first_clip": place[0],
            "clips": len(dataset),
            "first_sample": place[1],
            "samples": samples,
            "key": _key(dataset),
        }
        first_clip, first_sample = first_clip + len(dataset), first_sample + samples
    return splits


def _key(dataset: Dataset) -> str:
    """Changes with the clips and their order: a hash of their lengths, means and deviations."""
    digest = hashlib.sha256()
    for name in STATISTICS:
        digest.update(np.asarray(dataset[name][:], dtype="<f8").tobytes())
    return digest.hexdigest()


def _write_samples(path: Path, dataset: Dataset, progress: bool) -> list[int]:
    """Write all clips as int16; returns those that cannot be decoded, whose place stays empty."""
    failed = []
    with open(path, "wb") as file:
        clips = zip(dataset.select_columns("audio"), clip_lengths(dataset), strict=True)
        for clip, (row, length) in enumerate(tqdm(clips, "storing clips", len(dataset), disable=not progress)):
            try:
                samples = to_pcm(read_crop(row, 0, int(length)))
            except ValueError as error:
                logger.warning("%s: %s It is not stored.", audio_name(row["audio"]) or f"clip {clip}", error)
                samples = np.zeros(length, np.int16)
                failed.append(clip)
            file.write(samples.astype("<i2").tobytes())
    return failed


__all__ = ["PcmStore", "open_pcm", "store_pcm"]
