"""Data sets as SOURCE: audio files inside Parquet files or .tar archives, local or on the Hub.

Only names and metadata are read to list them. A process that prepares a track reads that track's bytes.
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Image

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.finding import HUB_ID, find_corpus
from music2vec_hf.audio.reading import AUDIO_SUFFIXES
from music2vec_hf.audio.sources import (
    Listing,
    Track,
    find_manifest,
    hash_track_id,
    list_tracks,
    read_split,
    sort_tracks,
    type_metadata,
)

PACKED_SUFFIXES = (".parquet", ".tar")


@dataclass(frozen=True)
class PackedFile:
    """An audio file inside another file. `read` makes it what `AudioReader` takes for a binary file object.

    Args:
        container (`str`): path or URL of the file that it is in.
        name (`str`): what errors call it.
        start, length (`int`): in an archive first byte and number of bytes; in Parquet row group and row.
        column (`str`, *optional*): the column of audio; None for an archive.
    """

    container: str
    name: str
    start: int = 0
    length: int = -1
    column: str | None = None

    def read(self) -> bytes:
        """All its bytes. Raises AudioError if they cannot be read."""
        try:
            if self.column is not None:
                audio = _read_group(self.container, self.column, self.start)[self.length].as_py() or {}
                if audio.get("bytes") is not None:
                    return audio["bytes"]
                if "://" in self.container:  # what somebody else wrote must not lead to files of this machine
                    raise AudioError(self.name, "unreadable", "its row holds a path in place of its bytes.")
                with open(audio.get("path") or "", "rb") as file:
                    return file.read()
            with _open(self.container) as file:
                file.seek(self.start)
                return file.read(self.length)
        except OSError as error:
            if "://" in self.container:
                # The network, not the file: the run ends, and goes on when it is started again.
                raise
            reason = error.strerror or str(error).split("\n")[0]
            raise AudioError(self.name, "unreadable", f"it cannot be opened ({reason}).") from error


def list_source(source: str | os.PathLike) -> Listing:
    """List what is to be prepared: a folder of audio, a manifest, or a data set.

    Args:
        source: as in [`list_tracks`]; or a folder, file or glob of Parquet files or .tar archives; or the id of a data
            set on the Hub that is made of these, or of plain audio files.

    Raises:
        ValueError: if nothing is found, or what is found cannot be understood.
    """
    text = os.fspath(source)
    if not _is_packed(text):
        return list_tracks(source)
    found = find_corpus(source)
    listed = {"parquet": _list_parquet, "webdataset": _list_archive, "audiofolder": _list_file}
    if found.kind not in listed:
        raise ValueError(f"{text} is read by the loader {found.kind!r}; only Parquet, .tar and audio files can be.")
    files, rows = [], []
    for split, containers in found.files.items():
        for container in containers:
            for file, num_bytes, row in listed[found.kind](container):
                files.append((file, num_bytes, split))
                rows.append(row)
    if not files:
        raise ValueError(f"{text} holds no audio files; looked for {', '.join(sorted(AUDIO_SUFFIXES))}.")
    types, metadata = type_metadata(text, rows, leave_out=("track_id",), as_text=False)
    names = Counter(file.name for file, _, _ in files)
    numbers: Counter = Counter()
    tracks = []
    for (file, num_bytes, split), row, values in zip(files, rows, metadata, strict=True):
        container = os.path.basename(file.container)
        number, numbers[file.container] = numbers[file.container], numbers[file.container] + 1
        # Names without a meaning of their own, such as audio.flac in every row.
        name = (
            file.name if file.name and names[file.name] == 1 else f"{container}/{number:06d}/{file.name}".rstrip("/")
        )
        track_id = str(row.get("track_id") or hash_track_id(name))
        tracks.append(Track(file, name, track_id, read_split(text, values, split), num_bytes, values))
    return Listing(sort_tracks(tracks), types, [])


def _is_packed(source: str) -> bool:
    if os.path.isdir(source):
        # A manifest at the top, or audio alone, is no data set; audio beside data sets is refused by `find_corpus`.
        return find_manifest(Path(source)) is None and any(
            path.suffix in PACKED_SUFFIXES for path in Path(source).rglob("*") if path.is_file()
        )
    if os.path.isfile(source):
        return source.endswith(PACKED_SUFFIXES)
    return bool(glob(source, recursive=True)) or HUB_ID.fullmatch(source) is not None


def _open(container: str) -> BinaryIO:
    return fsspec.open(container, "rb").open() if "://" in container else open(container, "rb")


# ---- one container: (file, bytes, metadata) ----


def _list_file(container: str) -> Iterator[tuple[PackedFile, int, dict]]:
    filesystem, path = fsspec.core.url_to_fs(container)
    yield PackedFile(container, os.path.basename(path)), filesystem.size(path) or 0, {}


def _list_archive(container: str) -> Iterator[tuple[PackedFile, int, dict]]:
    if not container.endswith(".tar"):
        raise ValueError(f"{container} is compressed, which hardly shrinks audio; unpack it to a .tar archive first.")
    members, metadata = [], {}
    try:
        with _open(container) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                stem, suffix = os.path.splitext(member.name)
                hidden = os.path.basename(member.name).startswith(".")
                if not member.isfile() or hidden:
                    continue
                if suffix.lower() in AUDIO_SUFFIXES:
                    members.append((stem, member))
                elif suffix == ".json":
                    metadata[stem] = _read_json(f"{container}/{member.name}", archive.extractfile(member).read())
    except (tarfile.ReadError, EOFError) as error:
        raise ValueError(f"{container} is no whole .tar archive ({error}); fetch it anew or leave it out.") from error
    for stem, member in members:
        folder, base = os.path.split(stem)
        # The key of webdataset ends at the first dot: 0001.audio.flac goes with 0001.json.
        row = metadata.get(stem) or metadata.get(os.path.join(folder, base.split(".")[0])) or {}
        name = member.name.removeprefix("./")
        yield PackedFile(container, name, member.offset_data, member.size), member.size, row


def _read_json(name: str, text: bytes) -> dict:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{name} is not a JSON object.")
    return row


def _list_parquet(container: str) -> Iterator[tuple[PackedFile, int, dict]]:
    with _open(container) as file, pq.ParquetFile(file) as parquet:
        column = _audio_column(container, parquet.schema_arrow)
        others = [name for name in parquet.schema_arrow.names if name != column]
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group, columns=[*others, f"{column}.path"]).to_pylist()
            chunks = parquet.metadata.row_group(group)
            sizes = [chunks.column(index) for index in range(chunks.num_columns)]
            num_bytes = sum(c.total_compressed_size for c in sizes if c.path_in_schema == f"{column}.bytes")
            for number, row in enumerate(rows):
                name = (row.pop(column) or {}).get("path") or ""
                # The length of a single row is not known before it is read.
                yield PackedFile(container, name, group, number, column), num_bytes // len(rows), row


def _audio_column(container: str, schema: pa.Schema) -> str:
    """The one column that holds audio, by its type."""
    features = Features.from_arrow_schema(schema)
    found = [name for name in schema.names if isinstance(features[name], Audio)] or [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and {part.name for part in field.type} == {"bytes", "path"}
        and not isinstance(features[field.name], Image)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{container} has the columns {', '.join(schema.names)}, of which {len(found)} hold audio; exactly one "
            "must, as `datasets.Audio` or a struct of `bytes` and `path`."
        )
    return found[0]


@lru_cache(maxsize=1)
def _read_group(container: str, column: str, group: int) -> pa.ChunkedArray:
    """The audio of a row group; kept, for the next row is mostly of the same."""
    with _open(container) as file, pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(0)


__all__ = ["PackedFile", "list_source"]
