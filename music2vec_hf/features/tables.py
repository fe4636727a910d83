"""Embeddings of many files as a table, or as a file for each, as `music2vec embed` writes them, and the nearest
neighbours in such a table.

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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.common.computing import choose_precision
from music2vec_hf.common.files import hold_lock, short_name
from music2vec_hf.features.embeddings import HearingSettings, InputTrack, embed, list_inputs
from music2vec_hf.features.encoders import Encoder, choose_device, compile_model, load_encoder
from music2vec_hf.features.store import (
    column_of,
    matrix,
    read_metadata,
    tables_of,
    vectors,
    write_table_as_npz,
    write_tables,
)
from music2vec_hf.features.windows import HeardTrack, hear_tracks, window_rows

_LOCK = ".lock"


def write_embeddings(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    layers: Sequence[str] | None = None,
    pool: str = "mean",
    window_seconds: float = 30.0,
    **settings,
) -> dict:
    """Embed files, folders and data sets into a Parquet or npz file, or into an npz file for each track.

    Where `pool` is `"mean"` there is a row for each track: `path`, `duration` (seconds), `conv` and `layer_0` ...
    (float32, `[C]`). Where it is `"none"` there is a row for each frame: `path`, `time` (its centre, in seconds) and
    the layers; an npz file then has the rows of track `i` from `offsets[i]` to `offsets[i + 1]`. `settings` (JSON; in
    Parquet the file's metadata under `music2vec_hf`) says what made the file.

    The output is written aside and renamed. A run that was killed goes on where it stood when it is started again.
    Files that cannot be read are left out, counted and named, and truncated ones named, too. However long a track is,
    its samples and frames are in memory piece by piece only.

    Args:
        model (`str` or `Path`): folder or Hub id of an audio model.
        inputs: audio files, folders, manifests, Parquet files, corpora or Hub ids; see [`list_inputs`].
        output (`str` or `Path`): a name that ends in `.parquet` or `.npz`; or a folder that exists or whose name ends
            in a slash, for one npz file a track, named by its path below its input.
        layers (`Sequence[str]`, *optional*): names of layers; all by default.
        pool (`str`): `"mean"` over the track, or `"none"` for every frame.
        window_seconds (`float`): longest piece that the model hears at once.
        settings: see [`HearingSettings`]; the device is `auto` by default.

    Returns:
        `dict`: `tracks`, `reused` (how many of them an earlier run had embedded), `hours`, `layers`; `rejects`, a list
        of (path, reason) of what was left out, and `truncated`, one of files that gave less audio than they state.

    Raises:
        ValueError: if there is no audio, none can be read, a layer is unknown, `output` is of another kind, or it is a
            folder with embeddings of other settings.
    """
    settings = HearingSettings(**{"device": "auto", **settings})
    kind = _Folder if _is_folder(output) else _Table
    encoder = load_encoder(model, trust_remote_code=settings.trust_remote_code)
    chosen = encoder.check_layers(layers)
    plan = encoder.plan(window_seconds, settings.overlap_seconds, times=pool == "none")
    listing, device = list_inputs(inputs), choose_device(settings.device)
    made_by = {
        "model_hash": encoder.hash,
        "feature_extractor": json.loads(encoder.extractor.to_json_string()),
        "layers": chosen,
        "pool": pool,
        "window_seconds": window_seconds,
        "overlap_seconds": settings.overlap_seconds,
        "precision": choose_precision(settings.precision, device.type),
    }
    table = kind(Path(output), made_by)
    table.check(listing.tracks)
    encoder.model.to(device)
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
        for heard in hear_tracks(encoder, sources, plan, chosen, pool, settings.precision, refuse):
            table.add(todo[heard.number], heard, pool)
        rejects = [*listing.rejects, *((track.path, reason) for track, reason in refused.items())]
        used = [track for track in listing.tracks if track not in refused]
        if not used:
            raise ValueError(f"None of the {len(rejects)} files could be read; the first: {rejects[0][1]}")
        # A folder is found from elsewhere, too.
        name = os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)
        parts = table.finish(used, {"model": name, **made_by})
    return {
        "tracks": len(used),
        "reused": len(done),
        "hours": sum(part["duration"] for part in parts) / 3600,
        "layers": chosen,
        "rejects": rejects,
        "truncated": [
            (track.path, part["truncated"]) for track, part in zip(used, parts, strict=True) if part.get("truncated")
        ],
    }


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
        about = {"duration": heard.seconds, "truncated": heard.truncated}
        write_tables(self._part(track), _rows_of(track.path, heard, pool), about)

    def finish(self, tracks: Sequence[InputTrack], settings: Mapping) -> list[dict]:
        """Make the output of the parts of these tracks; gives `duration` and `truncated` of each."""
        parts = [self._part(track) for track in tracks]
        about = [read_metadata(part) for part in parts]
        if self.output.suffix == ".parquet":
            write_tables(self.output, tables_of(parts), settings)
        else:
            joined = self.parts / "joined.parquet"
            write_tables(joined, tables_of(parts), settings)
            write_table_as_npz(self.output, joined, self._arrays(tracks, parts, settings))
        shutil.rmtree(self.parts)
        return about

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
        arrays = self._arrays([track], [part], self.settings) | {"stamp": np.array(track.stamp)}
        if heard.truncated:
            arrays["truncated"] = np.array(heard.truncated)
        write_table_as_npz(self._target(track), part, arrays)
        part.unlink()

    def finish(self, tracks: Sequence[InputTrack], settings: Mapping) -> list[dict]:
        shutil.rmtree(self.parts)
        about = []
        for target in map(self._target, tracks):
            truncated = self._read(target, "truncated", optional=True)
            about.append(
                {"duration": float(self._read(target, "duration")[0]), "truncated": truncated and str(truncated)}
            )
        return about

    def _target(self, track: InputTrack) -> Path:
        folder, name = os.path.split(track.name)
        return self.output / folder / f"{short_name(name, 250)}.npz"

    def _read(self, target: Path, name: str, optional: bool = False) -> np.ndarray | None:
        try:
            with np.load(target, allow_pickle=False) as stored:
                return None if optional and name not in stored.files else stored[name]
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{target} is no file of embeddings ({error}); name another folder.") from error


def find_similar(
    library: str | Path,
    query: str | Path,
    top: int = 10,
    layer: str | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> list[tuple[str, float]]:
    """The tracks whose mean embedding of one layer has the largest cosine with the query's.

    The query is embedded as the library was: by the same model, with the same windows. The library is read block by
    block.

    Args:
        library (`str` or `Path`): Parquet file of `music2vec embed`, with `pool="mean"`.
        query (`str` or `Path`): audio file.
        top (`int`): how many tracks, at least 1.
        layer (`str`, *optional*): `conv`, `0`, `1`, ...; by default the last that the library has.
        model (`str` or `Path`, *optional*): folder or Hub id; by default the one that the library names.
        device (`str`): `cpu`, `cuda`, `mps` or `auto`.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.

    Returns:
        `list[tuple[str, float]]`: path and cosine, the nearest first.

    Raises:
        ValueError: if the library is no such table, does not say which model made it, or another one did; or there is
            no such layer. AudioError for a query that cannot be read.
    """
    if top < 1:
        raise ValueError(f"`top` is {top}. Use at least 1.")
    library = Path(library)
    settings, layer = read_library(library, layer)
    encoder = load_library_encoder(library, settings, model, trust_remote_code)
    names = ("window_seconds", "overlap_seconds", "precision")
    same = {name: settings[name] for name in names if name in settings} | {"feature_extractor": encoder.extractor}
    vector = embed(encoder.model, [Path(query)], layer, device=device, **same)[0]
    return nearest(library, column_of(layer), vector, top)


def nearest(library: Path, column: str, vector: np.ndarray, top: int) -> list[tuple[str, float]]:
    """The rows of a table whose `column` has the largest cosine with `vector` `[C]`: (path, cosine), nearest first."""
    width = pq.read_schema(library).field(column).type
    if pa.types.is_fixed_size_list(width) and width.list_size != len(vector):
        raise ValueError(f"{column} of {library} is {width.list_size} wide, the model {len(vector)}; name its model.")
    paths, cosines = np.zeros(0, object), np.zeros(0)
    query = vector.astype(np.float64) / np.linalg.norm(vector)
    with pq.ParquetFile(library) as file:
        for batch in file.iter_batches(batch_size=8_192, columns=["path", column]):
            rows = matrix(batch.column(column))
            found = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
            paths = np.concatenate([paths, np.array(batch.column("path").to_pylist(), object)])
            cosines = np.concatenate([cosines, found])
            best = np.argsort(-cosines, kind="stable")[:top]
            paths, cosines = paths[best], cosines[best]
    return list(zip(paths.tolist(), cosines.tolist(), strict=True))


def read_library(library: Path, layer: str | None = None) -> tuple[dict, str]:
    """What made a table of embeddings (`settings`), and the layer to compare by: `layer`, or the last that it has.

    Raises ValueError if it is no table of `music2vec embed` with a row per track, or has no such layer.
    """
    if not library.is_file():
        raise ValueError(f"There is no {library}. Make it: `music2vec embed tiny FOLDER --output {library}`.")
    try:
        settings, columns = read_metadata(library) or {}, pq.read_schema(library).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{library} is no Parquet file; name one that `music2vec embed` wrote.") from error
    if settings.get("pool", "mean") != "mean":
        raise ValueError(f"{library} has a row for each frame; embed the library with --pool mean.")
    layers = [name.removeprefix("layer_") for name in columns if name == "conv" or name.startswith("layer_")]
    if "path" not in columns or not layers:
        raise ValueError(f"{library} is no table of embeddings; its columns are {', '.join(columns)}.")
    if layer is not None and str(layer) not in layers:
        raise ValueError(f"{library} has no layer {layer}. It has {', '.join(layers)}.")
    return settings, layers[-1] if layer is None else str(layer)


def load_library_encoder(
    library: Path, settings: Mapping, model: str | Path | None = None, trust_remote_code: bool = False
) -> Encoder:
    """The model that made a table of embeddings, from where `settings` of [`read_library`] or `model` say.

    Raises ValueError if neither names it, or it has other weights.
    """
    if model is None and "model" not in settings:
        raise ValueError(f"{library} does not say which model made it; name that model with --model.")
    encoder = load_encoder(model or settings["model"], trust_remote_code=trust_remote_code)
    if settings.get("model_hash", encoder.hash) != encoder.hash:
        raise ValueError(
            f"{model or settings['model']} has other weights than the model that made {library}; name that one with "
            "--model, or embed the library anew."
        )
    return encoder
