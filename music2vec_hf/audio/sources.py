"""What a corpus is made from: the tracks of a folder, or those that a manifest lists with their metadata.

A manifest is a CSV, TSV or JSONL file with a column of paths named `file_name`, `path` or `file`. They are relative to
its folder, to the folder in a column `root` where there is one, or absolute.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from music2vec_hf.audio.decoding import AudioSource
from music2vec_hf.audio.reading import AUDIO_SUFFIXES, find_audio_files

PATH_COLUMNS = ("file_name", "path", "file")
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
SPLIT_ORDER = ("train", "validation", "test")

# Columns that every corpus has; a manifest's column of such a name comes along as `manifest_<name>`.
CORPUS_COLUMNS = (
    *("audio", "track_id", "source", "clip_start", "duration", "clip_mean", "clip_std"),
    *("source_sampling_rate", "source_channels", "source_format"),
)


@dataclass(frozen=True)
class Track:
    """One audio file: `path` to open, `source` relative to SOURCE, its `split` and its manifest row."""

    path: AudioSource
    source: str
    track_id: str
    split: str = "train"
    num_bytes: int = 0
    metadata: dict = field(default_factory=dict)


@dataclass
class Listing:
    """Tracks in the order of the corpus, the types of their metadata, and what the manifest made us leave out."""

    tracks: list[Track]
    metadata_types: dict[str, pa.DataType]
    rejects: list[tuple[str, str]]  # (path, reason)
    not_sampled: int | None = None  # tracks that a sample left out; None: no sample was taken

    def digest(self) -> str:
        """A hash of what is listed: names, sizes, splits and metadata."""
        digest = hashlib.sha256()
        for track in self.tracks:
            row = [track.source, track.num_bytes, track.split, track.track_id, track.metadata]
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


def list_tracks(source: str | os.PathLike) -> Listing:
    """List what is to be prepared.

    Args:
        source: a folder, a manifest file, or a folder with exactly one manifest at its top.

    Raises:
        ValueError: if there is no such folder or file, nothing is found, or the manifest cannot be understood.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() not in MANIFEST_SUFFIXES:
            raise ValueError(f"{source} is neither a folder nor a manifest ({', '.join(MANIFEST_SUFFIXES)}).")
        manifest, root = source, source.parent
    elif source.is_dir():
        manifest, root = find_manifest(source), source
    else:
        raise ValueError(f"{source} does not exist; give a folder of audio files or a manifest.")
    listing = _list_manifest(manifest, root) if manifest else _list_folder(root)
    if not listing.tracks:
        raise ValueError(
            f"{manifest} lists no files."
            if manifest
            else f"No audio files below {root}; looked for {', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    return listing


def hash_track_id(source: str) -> str:
    """The track_id of a file: 16 hexadecimal digits of the SHA-256 of its path relative to SOURCE."""
    return hashlib.sha256(os.fsencode(source)).hexdigest()[:16]


def _list_folder(root: Path) -> Listing:
    tracks = []
    for path in find_audio_files(root):
        relative = path.relative_to(root).as_posix()
        tracks.append(Track(path, _printable(relative), hash_track_id(relative), num_bytes=_num_bytes(path)))
    return Listing(tracks, {}, [])


def find_manifest(folder: Path) -> Path | None:
    """The one manifest at the top of `folder`, or None; a table without a column of paths is no manifest."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file())
    manifests = [path for path in tables if not path.name.startswith(".") and _path_column(_header(path))]
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise ValueError(f"{folder} holds {len(manifests)} manifests ({names}); pass the one you mean as SOURCE.")
    return manifests[0] if manifests else None


def _list_manifest(manifest: Path, root: Path) -> Listing:
    rows = _read_rows(manifest)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path_column = _path_column(columns)
    if rows and path_column is None:
        raise ValueError(f"{manifest} has the columns {columns} but none named {', '.join(PATH_COLUMNS)}.")
    types, metadata = type_metadata(
        manifest, rows, leave_out=(path_column, "root", "track_id"), as_text=manifest.suffix.lower() != ".jsonl"
    )
    tracks, rejects, seen = [], [], set()
    for index, row in enumerate(rows):
        if not row.get(path_column):
            rejects.append((f"{manifest.name} row {index + 1}", f"unreadable: the column {path_column} is empty."))
            continue
        path = root / str(row.get("root") or "") / str(row[path_column])
        relative = Path(os.path.relpath(path, root)) if path.is_relative_to(root) else path
        name = relative.as_posix()
        if name in seen:
            rejects.append((_printable(name), "listed twice: the manifest names it before; this row is left out."))
            continue
        seen.add(name)
        split, track_id = read_split(manifest, metadata[index]), str(row.get("track_id") or hash_track_id(name))
        tracks.append(Track(path, _printable(name), track_id, split, _num_bytes(path), metadata[index]))
    return Listing(sort_tracks(tracks), types, rejects)


def type_metadata(
    where: str | os.PathLike, rows: list[dict], leave_out: Iterable[str], as_text: bool
) -> tuple[dict[str, pa.DataType], list[dict]]:
    """The metadata columns of a manifest or data set.

    Args:
        where: what an error calls it.
        rows (`list[dict]`): its rows.
        leave_out: columns that are no metadata.
        as_text (`bool`): values are texts, of which numbers are made where all of a column are.

    Returns:
        the type of every column and the values of every row. A column named like one of the corpus is renamed.

    Raises:
        ValueError: if a column mixes kinds of values.
    """
    kept = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in leave_out]
    types, columns = {}, {}
    for name in kept:
        values = [row.get(name) for row in rows]
        renamed = f"manifest_{name}" if name in CORPUS_COLUMNS else name
        columns[renamed] = _parse_column(values) if as_text else values
        types[renamed] = _column_type(where, name, columns[renamed])
    return types, [{name: values[index] for name, values in columns.items()} for index in range(len(rows))]


def read_split(where: str | os.PathLike, metadata: dict, default: str = "train") -> str:
    """The split that a row of metadata names. Raises ValueError if that is not one word."""
    split = str(metadata.get("split") or default)
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"{where} names the split {split!r}; a split is one word such as train.")
    return split


def sort_tracks(tracks: list[Track]) -> list[Track]:
    """The order of the corpus: train, validation, test, other splits by name; in a split by source."""
    order = {split: rank for rank, split in enumerate(SPLIT_ORDER)}
    return sorted(tracks, key=lambda track: (order.get(track.split, 99), track.split, track.source.split("/")))


def _read_rows(manifest: Path) -> list[dict]:
    with open(manifest, encoding="utf-8-sig", newline="") as file:
        if manifest.suffix.lower() != ".jsonl":
            reader = csv.DictReader(file, delimiter="\t" if manifest.suffix.lower() == ".tsv" else ",")
            return [{name: value for name, value in row.items() if name is not None} for row in reader]
        rows = []
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{manifest} line {number} is not JSON ({error}).") from error
                if not isinstance(rows[-1], dict):
                    raise ValueError(f"{manifest} line {number} is not a JSON object.")
        return rows


def _header(table: Path) -> list[str]:
    """The column names of a table's first row; none if it cannot be read as a table."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            line = file.readline()
        if table.suffix.lower() == ".jsonl":
            row = json.loads(line or "{}")
            return list(row) if isinstance(row, dict) else []
    except (UnicodeDecodeError, json.JSONDecodeError):
        return []
    return next(csv.reader([line], delimiter="\t" if table.suffix.lower() == ".tsv" else ","), [])


def _path_column(columns: Iterable[str]) -> str | None:
    columns = set(columns)
    return next((name for name in PATH_COLUMNS if name in columns), None)


def _parse_column(texts: list[str | None]) -> list:
    """A column of texts as integers or numbers where every value is one; an empty text is a missing value."""
    values = [text if text else None for text in texts]
    present = [value for value in values if value is not None]
    # "007" is a name, not a number.
    if present and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in present):
        return [None if value is None else int(value) for value in values]
    if present and all(re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", value) for value in present):
        return [None if value is None else float(value) for value in values]
    return values


def _column_type(where: str | os.PathLike, name: str, values: list) -> pa.DataType:
    try:
        found = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{where} mixes kinds of values in the column {name!r} ({error}).") from error
    return pa.string() if pa.types.is_null(found) else found


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # Listed all the same: opening it gives the reason for its rejection.
        return 0


def _printable(name: str) -> str:
    """The name as valid Unicode; file names may hold any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")
