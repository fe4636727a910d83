"""Rows of features, and how they are kept: Parquet files, written whole or not at all, piece by piece.

[`FeatureStore`] is the cache. It has one folder per identity (weights, settings, windows) and in it parts of up to
`FILES_PER_PART` files. A part states which audio it holds, so a run that was killed, or has other tasks or another
order of files, takes from it what it needs; a changed file, model or window is never mistaken for an old one.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.common.files import written_aside

FILES_PER_PART = 128
METADATA_KEY = b"music2vec_hf"
_ROWS_PER_GROUP = 1_024
# Numbers like these neither compress nor repeat.
_WRITER_OPTIONS = {"compression": "NONE", "use_dictionary": ["path", "audio"], "write_statistics": False}
_PER_ROW = ("num_frames", "seconds")


@dataclass(frozen=True)
class FeatureRows:
    """Features of some tracks, one row or several per track.

    Attributes:
        features (`Mapping[str, np.ndarray]`): layer to features `[num_rows, C]`, float32, of frames float16.
        offsets (`np.ndarray`, `[num_tracks + 1]`): the rows of track `i` are `offsets[i]` to `offsets[i + 1] - 1`.
        num_frames (`np.ndarray`, `[num_rows]`): frames that a row is the mean of.
        seconds (`np.ndarray`, `[num_rows]`): length of the audio behind a row; of a frame, its time.
    """

    features: Mapping[str, np.ndarray]
    offsets: np.ndarray
    num_frames: np.ndarray
    seconds: np.ndarray

    @classmethod
    def one_per_track(cls, features: Mapping[str, np.ndarray]) -> "FeatureRows":
        """Rows that are tracks, of unknown length."""
        num_tracks = max((len(values) for values in features.values()), default=0)
        return cls(features, np.arange(num_tracks + 1), np.ones(num_tracks, np.int64), np.full(num_tracks, np.nan))

    @classmethod
    def joined(cls, parts: Sequence["FeatureRows"]) -> "FeatureRows":
        """The tracks of one part after those of the other."""
        sizes = np.concatenate([part.rows_per_track for part in parts])
        features = {layer: np.concatenate([part.features[layer] for part in parts]) for layer in parts[0].features}
        num_frames, seconds = (np.concatenate([getattr(part, name) for part in parts]) for name in _PER_ROW)
        return cls(features, row_offsets(sizes), num_frames, seconds)

    @property
    def rows_per_track(self) -> np.ndarray:
        """Number of rows of each track."""
        return np.diff(self.offsets)

    @property
    def tracks(self) -> np.ndarray:
        """Track of each row."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.rows_per_track)

    def chosen(self, rows: np.ndarray, offsets: np.ndarray) -> "FeatureRows":
        """Only these rows, in this order, as the rows of the tracks that `offsets` states."""
        features = {layer: values[rows] for layer, values in self.features.items()}
        return FeatureRows(features, offsets, self.num_frames[rows], self.seconds[rows])

    def take(self, tracks: Sequence[int]) -> "FeatureRows":
        """The rows of these tracks, in this order."""
        tracks = np.asarray(tracks, dtype=np.int64)
        if np.array_equal(tracks, np.arange(len(self.offsets) - 1)):
            return self
        rows = [np.arange(self.offsets[track], self.offsets[track + 1]) for track in tracks]
        return self.chosen(np.concatenate([[], *rows]).astype(np.int64), row_offsets([len(each) for each in rows]))

    def merged(self, windows_per_row: int | None) -> "FeatureRows":
        """Means, weighted by frames, of so many successive windows of a track, the last row perhaps of fewer; of all
        for None."""
        starts = [
            np.arange(first, last, windows_per_row or max(1, last - first))
            for first, last in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]
        offsets, starts = row_offsets([len(each) for each in starts]), np.concatenate(starts)
        if len(starts) == len(self.seconds):
            return self
        weights = self.num_frames[:, None].astype(np.float64)
        num_frames, seconds = (np.add.reduceat(getattr(self, name), starts) for name in _PER_ROW)
        features = {
            layer: (np.add.reduceat(values * weights, starts) / num_frames[:, None]).astype(np.float32)
            for layer, values in self.features.items()
        }
        return FeatureRows(features, offsets, num_frames, seconds)


def row_offsets(sizes: Sequence[int]) -> np.ndarray:
    """Numbers of rows of tracks to [`FeatureRows`]'s `offsets`."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


class FeatureStore:
    """Rows of audio files, computed by an encoder where they are not there yet, and kept.

    The cache in `folder` may hold parts of version 0.1.0 (npz), too; without one nothing is kept.
    """

    def __init__(self, folder: str | Path | None, encoder, window_seconds: float = 30.0, precision: str = "fp32"):
        self.folder, self.encoder = folder, encoder
        self.window_seconds, self.precision = window_seconds, precision

    def rows(
        self,
        paths: Sequence[str | Path],
        row_seconds: float | None = None,
        digests: Sequence[str] | None = None,
        label: str | None = None,
    ) -> FeatureRows:
        """The rows of audio files, in the order of `paths`. Windows are kept, and merged to rows part by part: all
        windows of a large data set are never in memory together.

        Args:
            paths: the files; equal content is heard once.
            row_seconds (`float`, *optional*): length of audio behind a row, a multiple of `window_seconds`; None means
                the whole file. A model's row is the mean over its windows, weighted by frames; spectral statistics are
                those of the row's audio.
            digests (*optional*): what [`audio_digests`] says of the files, where it is known already.
            label (`str`, *optional*): what a progress bar says; None shows none.

        Raises:
            ValueError: for a file that cannot be heard, with its name.
        """
        window, windows_per_row = self.window_seconds, None
        if self.encoder.hears_whole_rows:
            window, windows_per_row = row_seconds, 1
        elif row_seconds is not None:
            windows_per_row = round(row_seconds / window)
        identity = self.encoder.identity(window, self.precision)
        folder = None if self.folder is None else Path(self.folder, _name(identity))
        digests = audio_digests(paths) if digests is None else digests
        wanted = dict(zip(digests, paths, strict=True))
        parts: list[FeatureRows] = []
        found: dict[str, int] = {}

        def keep(digests_of_part: Sequence[str], read: Callable[[], FeatureRows]) -> None:
            new = [place for place, each in enumerate(digests_of_part) if each in wanted and each not in found]
            if new:
                parts.append(read().take(new).merged(windows_per_row))
                found.update({digests_of_part[place]: len(found) + number for number, place in enumerate(new)})
                bar.update(len(new))

        with tqdm(total=len(wanted), desc=f"features of {label}", unit="file", disable=label is None) as bar:
            for digests_of_part, read in _parts(folder):
                keep(digests_of_part, read)
            missing = [digest for digest in wanted if digest not in found]
            for start in range(0, len(missing), FILES_PER_PART):
                part = missing[start : start + FILES_PER_PART]
                windows = self.encoder.rows([wanted[digest] for digest in part], window, self.precision)
                if folder is not None:
                    _write_part(folder, identity, part, windows)
                keep(part, lambda windows=windows: windows)
        return FeatureRows.joined(parts).take([found[digest] for digest in digests])


def _parts(folder: Path | None) -> Iterator[tuple[list[str], Callable[[], FeatureRows]]]:
    """Digests of the audio that each part holds, and what reads its rows. A part half written has a dot."""
    for path in sorted(folder.glob("[!.]*")) if folder is not None else ():
        if path.suffix == ".npz":
            with np.load(path) as stored:
                digests = stored["digests"].tolist()
            yield digests, partial(_read_npz_part, path)
        elif path.suffix == ".parquet":
            yield read_metadata(path)["audio"], partial(_read_part, path)


def _write_part(folder: Path, identity: str, digests: Sequence[str], rows: FeatureRows) -> None:
    columns = {"audio": np.repeat(digests, rows.rows_per_track)}
    columns |= {name: getattr(rows, name) for name in _PER_ROW}
    columns |= {column_of(layer): vectors(values) for layer, values in rows.features.items()}
    metadata = {"identity": identity, "audio": list(digests)}
    write_tables(folder / f"{_name(''.join(digests))}.parquet", iter([pa.table(columns)]), metadata)


def _read_part(path: Path) -> FeatureRows:
    with pq.ParquetFile(path) as file:
        table, digests = file.read(), read_metadata(path)["audio"]
    audio = table["audio"].to_pylist()
    layers = [name for name in table.column_names if name not in ("audio", *_PER_ROW)]
    features = {name.removeprefix("layer_"): matrix(table[name].combine_chunks()) for name in layers}
    num_frames, seconds = (table[name].to_numpy() for name in _PER_ROW)
    return FeatureRows(features, row_offsets([audio.count(digest) for digest in digests]), num_frames, seconds)


def _read_npz_part(path: Path) -> FeatureRows:
    with np.load(path) as stored:
        features = {name.removeprefix("layer_"): stored[name] for name in stored.files if name.startswith("layer_")}
        return FeatureRows(features, stored["offsets"], stored["num_frames"], stored["seconds"])


def audio_digests(paths: Iterable[Path]) -> list[str]:
    """Digest of the content of each file."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    return digests


def _name(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# ---- Parquet and npz files of features ----


def column_of(layer: str) -> str:
    """The column of a layer: `conv`, `layer_0`, ..."""
    return layer if layer == "conv" else f"layer_{layer}"


def vectors(values: np.ndarray) -> pa.Array:
    """`[n, C]` as an Arrow column of `n` lists of `C` numbers, in float32 or, where they are, float16."""
    number = np.float16 if values.dtype == np.float16 else np.float32
    flat = pa.array(np.ascontiguousarray(values, dtype=number).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def matrix(column: pa.Array) -> np.ndarray:
    """What [`vectors`] made a column of: `[n, C]`."""
    return column.flatten().to_numpy().reshape(len(column), -1)


def write_tables(target: Path, tables: Iterator[pa.Table], metadata: Mapping) -> None:
    """Write tables of equal columns, at least one, one after the other to a Parquet file that is either whole or not
    there; `metadata` is kept in it as JSON."""
    metadata = {METADATA_KEY: json.dumps(metadata)}
    with written_aside(target) as aside:
        first = next(tables).replace_schema_metadata(metadata)
        with pq.ParquetWriter(aside, first.schema, **_WRITER_OPTIONS) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table.replace_schema_metadata(metadata))


def read_metadata(path: Path) -> dict | None:
    """The metadata that [`write_tables`] kept, or None."""
    metadata = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    return None if metadata is None else json.loads(metadata)


def tables_of(parts: Sequence[Path]) -> Iterator[pa.Table]:
    """The rows of Parquet files, in order, in tables of about a thousand."""
    held: list[pa.Table] = []
    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                # Without what the file knows of itself, which differs.
                held.append(file.read_row_group(group).replace_schema_metadata(None))
                if sum(table.num_rows for table in held) >= _ROWS_PER_GROUP:
                    yield pa.concat_tables(held).combine_chunks()
                    held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def write_table_as_npz(target: Path, table: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and the columns of numbers of a Parquet file to an npz file; one row group is in memory."""
    with written_aside(target) as aside, zipfile.ZipFile(aside, "w") as archive, pq.ParquetFile(table) as file:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        for field in file.schema_arrow:
            if pa.types.is_string(field.type):
                continue
            is_vector = pa.types.is_fixed_size_list(field.type)
            number = field.type.value_type if is_vector else field.type
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(number.to_pandas_dtype())),
                "fortran_order": False,
                "shape": (file.metadata.num_rows, *([field.type.list_size] if is_vector else [])),
            }
            with archive.open(f"{field.name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for group in range(file.num_row_groups):
                    column = file.read_row_group(group, columns=[field.name]).column(0)
                    for chunk in column.chunks:
                        member.write((chunk.flatten() if is_vector else chunk).to_numpy().tobytes())
