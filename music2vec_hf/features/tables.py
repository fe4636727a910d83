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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.audio.containers import TABLE_SUFFIXES, PackedFile
from music2vec_hf.audio.decoding import AUDIO_SUFFIXES, AudioSource
from music2vec_hf.audio.listing import Track, list_source
from music2vec_hf.common.files import hold_lock
from music2vec_hf.common.names import printable
from music2vec_hf.common.precision import choose_precision
from music2vec_hf.features.encoders import choose_device, compile_model, load_encoder
from music2vec_hf.features.store import (
    column_of,
    read_metadata,
    tables_of,
    vectors,
    write_table_as_npz,
    write_tables,
)
from music2vec_hf.features.windows import HeardTrack, hear_tracks, window_rows

_LOCK = ".lock"


@dataclass(frozen=True)
class InputTrack:
    """A track to embed.

    Args:
        path (`str`): what the table calls it: the file's path, or its name in the data set.
        name (`str`): its path below the folder or data set that was named; never leaves it.
        source (`AudioSource`): to be opened.
        stamp (`str`): changes where the file does.
    """

    path: str
    name: str
    source: AudioSource | PackedFile
    stamp: str


@dataclass
class Inputs:
    """Tracks, and (path, reason) of files that a manifest names but that are not there."""

    tracks: list[InputTrack]
    rejects: list[tuple[str, str]]


def is_one_file(item: str | os.PathLike) -> bool:
    """Whether this names one audio file, there or not, and no folder, manifest or data set."""
    path = Path(item)
    known = path.suffix.lower() in (".parquet", ".tar", *TABLE_SUFFIXES)
    return not path.is_dir() and (path.suffix.lower() in AUDIO_SUFFIXES or (path.is_file() and not known))


def list_inputs(inputs: Sequence[str | os.PathLike]) -> Inputs:
    """List all tracks of some inputs.

    Args:
        inputs: audio files; or what [`music2vec_hf.audio.listing.list_source`] takes: folders, manifests, Parquet
            files, archives, Hub ids; or corpora that `music2vec prepare` made, of which every clip is a track.

    Raises:
        ValueError: if there is nothing of a name, or no audio in it.
    """
    found = Inputs([], [])
    for item in map(os.fspath, inputs):
        if is_one_file(item):
            name = _inside(printable(os.path.basename(item)))
            found.tracks.append(InputTrack(printable(item), name, Path(item), _stamp(item)))
            continue
        listing = list_source(item)
        found.rejects += listing.rejects
        for track in sorted(listing.tracks, key=_place):
            packed = isinstance(track.path, PackedFile)
            path = track.source if packed else os.fspath(track.path)
            stamp = f"{_stamp(track.path.container)} {track.path}" if packed else _stamp(path)
            found.tracks.append(InputTrack(printable(path), _inside(track.source), track.path, stamp))
    return found


def _place(track: Track) -> tuple:
    """The order of rows in a data set; files stay in theirs."""
    file = track.path
    return (file.container, file.start, file.length) if isinstance(file, PackedFile) else ()


def _inside(name: str) -> str:
    """A relative path that leads nowhere but down."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part.strip("/") not in ("", ".", "..")]
    return "/".join(parts)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "not there"
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class TableSettings:
    """The settings of [`write_embeddings`] beside its own arguments.

    Args:
        pool (`str`): `"mean"` over the track, or `"none"` for every frame.
        window_seconds (`float`): longest piece that the model hears at once.
        precision, overlap_seconds, compile, trust_remote_code: as for [`music2vec_hf.embed`].
        device (`str`): `cpu`, `cuda`, `mps` or `auto`.
    """

    pool: str = "mean"
    window_seconds: float = 30.0
    precision: str = "fp32"
    overlap_seconds: float = 0.0
    device: str = "auto"
    compile: bool = False
    trust_remote_code: bool = False


def write_embeddings(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    layers: Sequence[str] | None = None,
    **settings,
) -> dict:
    """Embed files, folders and data sets into a Parquet or npz file, or into an npz file for each track.

    Where `pool` is `"mean"` there is a row for each track: `path`, `duration` (seconds), `conv` and `layer_0` ...
    (float32, `[C]`). Where it is `"none"` there is a row for each frame: `path`, `time` (its centre, in seconds) and
    the layers; an npz file then has the rows of track `i` from `offsets[i]` to `offsets[i + 1]`. `settings` (JSON; in
    Parquet the file's metadata under `music2vec_hf`) says what made the file.

    The output is written aside and renamed. A run that was killed goes on where it stood when it is started again.
    Files that cannot be read are left out, counted and named. However long a track is, its samples and frames are in
    memory piece by piece only.

    Args:
        model (`str` or `Path`): folder or Hub id of an audio model.
        inputs: audio files; or folders, manifests, Parquet files or corpora, as [`list_inputs`] takes them.
        output (`str` or `Path`): a name that ends in `.parquet` or `.npz`; or a folder that exists or whose name ends
            in a slash, for one npz file a track, named by its path below its input.
        layers (`Sequence[str]`, *optional*): names of layers; all by default.
        settings: see [`TableSettings`].

    Returns:
        `dict`: `tracks`, `reused` (how many of them an earlier run had embedded), `hours`, `layers`, and `rejects`, a
        list of (path, reason).

    Raises:
        ValueError: if there is no audio, none can be read, a layer is unknown, `output` is of another kind, or it is a
            folder with embeddings of other settings.
    """
    settings = TableSettings(**settings)
    kind = _Folder if _is_folder(output) else _Table
    encoder = load_encoder(model, trust_remote_code=settings.trust_remote_code)
    chosen = encoder.check_layers(layers)
    plan = encoder.plan(settings.window_seconds, settings.overlap_seconds, times=settings.pool == "none")
    listing = list_inputs(inputs)
    made_by = {
        "model_hash": encoder.hash,
        "feature_extractor": json.loads(encoder.extractor.to_json_string()),
        "layers": chosen,
        "pool": settings.pool,
        "window_seconds": settings.window_seconds,
        "overlap_seconds": settings.overlap_seconds,
        "precision": choose_precision(settings.precision),
    }
    table = kind(Path(output), made_by)
    table.check(listing.tracks)
    encoder.model.to(choose_device(settings.device))
    if settings.compile:
        compile_model(encoder.model)
    with table.open():
        done = {track for track in listing.tracks if table.has(track)}
        todo = [track for track in listing.tracks if track not in done]
        bar = tqdm(todo, desc="embedding", unit="track", total=len(listing.tracks), initial=len(done))
        refused: dict[InputTrack, str] = {}

        def refuse(number: int, error: Exception) -> None:
            refused[todo[number]] = " ".join(str(error).split())

        sources = (track.source for track in bar)
        for heard in hear_tracks(encoder, sources, plan, chosen, settings.pool, settings.precision, refuse):
            table.add(todo[heard.number], heard, settings.pool)
        rejects = [*listing.rejects, *((track.path, reason) for track, reason in refused.items())]
        used = [track for track in listing.tracks if track not in refused]
        if not used:
            raise ValueError(f"None of the {len(rejects)} files could be read; the first: {rejects[0][1]}")
        # A folder is found from elsewhere, too.
        name = os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)
        seconds = table.finish(used, {"model": name, **made_by})
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


def _rows_of(path: str, heard: HeardTrack, pool: str) -> Iterator[pa.Table]:
    """The rows of one track: one, or those of its frames, window by window."""
    if pool == "mean":
        features = window_rows(heard.windows, heard.plan.sampling_rate).merged(None).features
        columns = {column_of(layer): vectors(values) for layer, values in features.items()}
        yield pa.table({"path": [path], "duration": [heard.seconds], **columns})
        return
    for window in heard.windows:
        times = heard.plan.frame_times(window)
        columns = {column_of(layer): vectors(values) for layer, values in window.features.items()}
        yield pa.table({"path": pa.repeat(path, len(times)), "time": pa.array(times), **columns})


class _Table:
    """A Parquet or npz file, made of a part for each track in a folder beside it."""

    def __init__(self, output: Path, settings: Mapping):
        self.output, self.settings = output, settings
        self.parts = output.with_name(f".{output.name}.parts")

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Keep others from writing it as long as this lasts; the parts stay if there is something to go on from."""
        self.parts.mkdir(parents=True, exist_ok=True)
        busy = f"Another `embed` is writing {self.output}; wait until it has ended, or name another output."
        with hold_lock(self.parts / _LOCK, busy):
            try:
                yield
            finally:
                if self.parts.is_dir() and {path.name for path in self.parts.iterdir()} == {_LOCK}:
                    shutil.rmtree(self.parts)

    def check(self, tracks: Sequence[InputTrack]) -> None:
        """Raise ValueError if what is there must not be touched."""

    def has(self, track: InputTrack) -> bool:
        """Whether an earlier run has embedded the track."""
        return self._part(track).exists()

    def add(self, track: InputTrack, heard: HeardTrack, pool: str) -> None:
        """Write the rows of a track."""
        write_tables(self._part(track), _rows_of(track.path, heard, pool), {"duration": heard.seconds})

    def finish(self, tracks: Sequence[InputTrack], settings: Mapping) -> float:
        """Make the output of the parts of these tracks; gives the seconds of audio in it."""
        parts = [self._part(track) for track in tracks]
        seconds = [read_metadata(part)["duration"] for part in parts]
        if self.output.suffix == ".parquet":
            write_tables(self.output, tables_of(parts), settings)
        else:
            joined = self.parts / "joined.parquet"
            write_tables(joined, tables_of(parts), settings)
            write_table_as_npz(self.output, joined, self._arrays(tracks, parts, settings))
        shutil.rmtree(self.parts)
        return sum(seconds)

    def _part(self, track: InputTrack) -> Path:
        text = json.dumps([self.settings, track.path, track.stamp], sort_keys=True)
        return self.parts / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"

    def _arrays(self, tracks, parts, settings) -> dict[str, np.ndarray]:
        """What an npz file holds beside the columns of numbers."""
        arrays = {"path": np.array([track.path for track in tracks]), "settings": np.array(json.dumps(settings))}
        if self.settings["pool"] == "none":
            counts = [pq.read_metadata(part).num_rows for part in parts]
            arrays["duration"] = np.array([read_metadata(part)["duration"] for part in parts])
            arrays["offsets"] = np.cumsum([0, *counts])
        return arrays


class _Folder(_Table):
    """An npz file for each track, itself the part that a later run finds."""

    def __init__(self, output: Path, settings: Mapping):
        super().__init__(output, settings)
        self.parts = output / ".parts"

    def check(self, tracks: Sequence[InputTrack]) -> None:
        """Refuse two tracks of one name, a name that leads out of the folder by a link, files of other settings."""
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

    def add(self, track: InputTrack, heard: HeardTrack, pool: str) -> None:
        super().add(track, heard, pool)
        part = self._part(track)
        arrays = self._arrays([track], [part], self.settings)
        write_table_as_npz(self._target(track), part, {**arrays, "stamp": np.array(track.stamp)})
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


__all__ = ["InputTrack", "Inputs", "TableSettings", "is_one_file", "list_inputs", "write_embeddings"]
