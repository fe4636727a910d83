"""Embeddings of many files as a table, or as a file for each: what `music2vec embed` writes.

Every track is a part of its own, written as soon as it is embedded, and found by a run that goes on after one that was
killed. A part is named by all that it depends on, so that a changed file or setting never reads an old one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import hold_lock
from music2vec_hf.common.precision import choose_precision
from music2vec_hf.features.embedding_batches import decoding_threads
from music2vec_hf.features.embedding_files import column_of, read_metadata, tables_of, vectors, write_npz, write_tables
from music2vec_hf.features.embedding_inputs import InputTrack, list_inputs
from music2vec_hf.features.embedding_model import check_layers, choose_device, compile_model, load_model, model_hash
from music2vec_hf.features.embedding_windows import LoadedTrack, WindowPlan, load_tracks
from music2vec_hf.features.embeddings import MeanPool, embed_windows


def write_embeddings(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    layers: Sequence[str] | None = None,
    pool: str = "mean",
    window_seconds: float = 30.0,
    precision: str = "fp32",
    overlap_seconds: float = 0.0,
    device: str = "auto",
    compile: bool = False,
) -> dict:
    """Embed files, folders and data sets into a Parquet or npz file, or into an npz file for each track.

    Where `pool` is `"mean"` there is a row for each track: `path`, `duration` (seconds), `conv` and `layer_0` ...
    (float32, `[C]`). Where it is `"none"` there is a row for each frame: `path`, `time` (its centre, in seconds) and
    the layers; an npz file then has the rows of track `i` from `offsets[i]` to `offsets[i + 1]`. `settings` (JSON; in
    Parquet the file's metadata under `music2vec_hf`) says what made the file.

    The output is written aside and renamed. A run that was killed goes on where it stood when it is started again.
    Files that cannot be read are left out, counted and named. However long a track is, memory does not grow with it.

    Args:
        model (`str` or `Path`): folder or Hub id.
        inputs: audio files; or folders, manifests, Parquet files or corpora, as [`list_inputs`] takes them.
        output (`str` or `Path`): a name that ends in `.parquet` or `.npz`; or a folder that exists or whose name ends
            in a slash, for one npz file a track, named by its path below its input.
        layers, pool, window_seconds, precision, overlap_seconds: as in [`embed_tracks`].
        device (`str`): `cpu`, `cuda`, `mps` or `auto`.
        compile (`bool`): let torch.compile speed up the model.

    Returns:
        `dict`: `tracks`, `reused` (how many of them an earlier run had embedded), `hours`, `layers`, and `rejects`, a
        list of (path, reason).

    Raises:
        ValueError: if there is no audio, none can be read, a layer is unknown, `output` is of another kind, or it is a
            folder with embeddings of other settings.
    """
    folder, output = _is_folder(output), Path(output)
    encoder, feature_extractor = load_model(model)
    chosen = check_layers(encoder, layers)
    plan = WindowPlan.from_seconds(encoder.config, window_seconds, overlap_seconds)
    listing = list_inputs(inputs)
    settings = {
        "model_hash": model_hash(encoder),
        "feature_extractor": json.loads(feature_extractor.to_json_string()),
        "layers": chosen,
        "pool": pool,
        "window_seconds": window_seconds,
        "overlap_seconds": overlap_seconds,
        "precision": choose_precision(precision),
    }
    store = (_Folder if folder else _Table)(output, settings)
    store.check(listing.tracks)
    encoder.to(choose_device(device))
    if compile:
        compile_model(encoder)
    with store.open():
        done = {track for track in listing.tracks if store.has(track)}
        todo = [track for track in listing.tracks if track not in done]
        bar = tqdm(todo, desc="embedding", unit="track", total=len(listing.tracks), initial=len(done))
        refused: dict[InputTrack, str] = {}
        tracks = load_tracks(
            (track.source for track in bar),
            feature_extractor,
            decoding_threads(encoder),
            lambda number, error: refused.update({todo[number]: " ".join(str(error).split())}),
        )
        windows = embed_windows(encoder, tracks, chosen, pool, plan, precision)
        for loaded, group in groupby(windows, key=lambda found: found[0]):
            track = todo[loaded.number]
            store.add(track, loaded.num_samples, _tables(track, loaded, group, encoder.config, chosen, pool))
        rejects = [*listing.rejects, *((track.path, reason) for track, reason in refused.items())]
        used = [track for track in listing.tracks if track not in refused]
        if not used:
            raise ValueError(f"None of the {len(rejects)} files could be read; the first: {rejects[0][1]}")
        seconds = store.finish(used, {"model": _name_of(model), **settings})
    found = {"tracks": len(used), "reused": len(done), "hours": seconds / 3600, "layers": chosen}
    return {**found, "rejects": rejects}


def _is_folder(output: str | Path) -> bool:
    text = os.fspath(output)
    if os.path.isdir(text) or text.endswith(("/", os.sep)):
        return True
    if not text.endswith((".parquet", ".npz")):
        raise ValueError(
            f"The output is {text!r}. Name a file that ends in .parquet or .npz, or a folder, with a slash at its end."
        )
    return False


def _name_of(model: str | Path) -> str:
    """A folder is found from elsewhere, too."""
    return os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)


def _tables(track: InputTrack, loaded: LoadedTrack, group, config, layers, pool) -> Iterator[pa.Table]:
    """The rows of one track: one, or those of its frames, window by window."""
    mean = MeanPool()
    for _, window, values in group:
        if pool == "mean":
            mean.add(window, values)
            continue
        columns = {"path": pa.repeat(track.path, window.num_frames), "time": pa.array(window.frame_times(config))}
        yield pa.table(columns | {column_of(layer): vectors(values[layer]) for layer in layers})
    if pool == "mean":
        columns = {"path": [track.path], "duration": [loaded.num_samples / SAMPLING_RATE]}
        yield pa.table(columns | {column_of(layer): vectors(mean.result()[layer][None]) for layer in layers})


class _Table:
    """A Parquet or npz file, made of parts in a folder beside it."""

    def __init__(self, output: Path, settings: Mapping):
        self.output, self.settings = output, settings
        self.parts = output.with_name(f".{output.name}.parts")

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Keep others from writing it as long as this lasts; the parts stay if there is something to go on from."""
        self.parts.mkdir(parents=True, exist_ok=True)
        self.parts.parent.mkdir(parents=True, exist_ok=True)
        busy = f"Another `embed` is writing {self.output}; wait until it has ended, or name another output."
        with hold_lock(self.parts.with_name(f"{self.parts.name}.lock"), busy):
            self.parts.mkdir(exist_ok=True)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    self.parts.rmdir()

    def check(self, tracks: Sequence[InputTrack]) -> None:
        """Raise ValueError if what is there must not be touched."""

    def has(self, track: InputTrack) -> bool:
        """Whether an earlier run has embedded the track."""
        return self._part(track).exists()

    def add(self, track: InputTrack, num_samples: int, tables: Iterator[pa.Table]) -> None:
        """Write the rows of a track."""
        write_tables(self._part(track), tables, {"duration": num_samples / SAMPLING_RATE})

    def finish(self, tracks: Sequence[InputTrack], settings: Mapping) -> float:
        """Make the output of the parts of these tracks; gives the seconds of audio in it."""
        parts = [self._part(track) for track in tracks]
        seconds = [read_metadata(part)["duration"] for part in parts]
        if self.output.suffix == ".parquet":
            write_tables(self.output, tables_of(parts), settings)
        else:
            joined = self.parts / "joined.parquet"
            write_tables(joined, tables_of(parts), settings)
            write_npz(self.output, joined, self._arrays(tracks, parts, seconds, settings))
        shutil.rmtree(self.parts)
        return sum(seconds)

    def _part(self, track: InputTrack) -> Path:
        text = json.dumps([self.settings, track.path, track.stamp], sort_keys=True)
        return self.parts / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"

    def _arrays(self, tracks, parts, seconds, settings) -> dict[str, np.ndarray]:
        """What an npz file holds beside the columns of numbers."""
        arrays = {"path": np.array([track.path for track in tracks]), "settings": np.array(json.dumps(settings))}
        if self.settings["pool"] == "none":
            counts = [pq.read_metadata(part).num_rows for part in parts]
            arrays |= {"duration": np.array(seconds), "offsets": np.cumsum([0, *counts])}
        return arrays


class _Folder(_Table):
    """An npz file for each track, itself the part that a later run finds."""

    def __init__(self, output: Path, settings: Mapping):
        super().__init__(output, settings)
        self.parts = output / ".parts"

    def check(self, tracks: Sequence[InputTrack]) -> None:
        """Two tracks of one name, a name that leads out of the folder by a link, or files of other settings."""
        names: dict[Path, InputTrack] = {}
        for track in tracks:
            target = self._target(track)
            other = names.setdefault(target, track)
            if other != track:
                raise ValueError(
                    f"{other.path} and {track.path} would both become {target}; embed them into different folders."
                )
            if not target.parent.resolve().is_relative_to(self.output.resolve()):
                raise ValueError(f"{target} leads out of {self.output} by a link; name another folder.")
            if target.exists() and json.loads(str(self._read(target, "settings"))) != self.settings:
                raise ValueError(f"{target} was made by another model or with other settings; name another folder.")

    def has(self, track: InputTrack) -> bool:
        target = self._target(track)
        return target.exists() and str(self._read(target, "stamp")) == track.stamp

    def add(self, track: InputTrack, num_samples: int, tables: Iterator[pa.Table]) -> None:
        super().add(track, num_samples, tables)
        part = self._part(track)
        arrays = self._arrays([track], [part], [num_samples / SAMPLING_RATE], self.settings)
        write_npz(self._target(track), part, {**arrays, "stamp": np.array(track.stamp)})
        part.unlink()

    def finish(self, tracks: Sequence[InputTrack], settings: Mapping) -> float:
        shutil.rmtree(self.parts)
        return float(sum(self._read(self._target(track), "duration")[0] for track in tracks))

    def _target(self, track: InputTrack) -> Path:
        return self.output / f"{track.name}.npz"

    def _read(self, target: Path, name: str) -> np.ndarray:
        try:
            with np.load(target, allow_pickle=False) as stored:
                return stored[name]
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{target} is no file of embeddings ({error}); name another folder.") from error


__all__ = ["write_embeddings"]
