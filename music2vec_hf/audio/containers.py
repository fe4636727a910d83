"""Files that hold many audio files, data sets in Parquet and .tar archives, and columns of audio."""

import copy
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, ClassLabel, Dataset, Features, IterableDataset, List, Value

from music2vec_hf.audio.decoding import AudioError, is_audio_file
from music2vec_hf.audio.metadata import json_object

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")

# The storage of `datasets.Audio`. The feature itself wants torchcodec wherever Python rows are encoded, this does not.
CLIP = {"bytes": Value("binary"), "path": Value("string")}


@dataclass(frozen=True)
class PackedFile:
    """An audio file inside another file. `read` makes it what `AudioReader` takes for a binary file object.

    Args:
        container (`str`): path or URL of the file that it is in.
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
            with open_file(self.container) as file:
                file.seek(self.start)
                return file.read(self.length)
        except OSError as error:
            if "://" in self.container:
                # The network, not the file: the run ends, and goes on when it is started again.
                raise
            reason = error.strerror or str(error).split("\n")[0]
            raise AudioError(self.name, "unreadable", f"it cannot be opened ({reason}).") from error


@dataclass(frozen=True)
class PackedRow:
    """A packed file, about how many bytes it has, and what its container says of it."""

    file: PackedFile
    num_bytes: int
    metadata: dict


def open_file(path: str) -> BinaryIO:
    """Open a local file, or one behind a URL of `fsspec`, to read bytes."""
    # fsspec would take "::" and the like in a local name for more than a name.
    return fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")


def walk_archive(
    container: str, mode: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The visible files of an archive, one after the other, with what they hold where `wanted(name)`.

    `mode` is `tarfile`'s: "r:", or "r|*" for a stream that may be compressed. A hard link is the file that it names,
    but in a stream; other links are left out, and named. Raises ValueError if it is damaged.
    """
    try:
        with open_file(container) as file, tarfile.open(fileobj=file, mode=mode) as archive:
            seen: dict[str, tarfile.TarInfo] = {}
            for member in archive:
                name = member.name
                if os.path.basename(name).startswith("."):
                    continue
                if member.islnk() and mode == "r:" and member.linkname in seen:
                    member = copy.copy(seen[member.linkname])
                    member.name = name
                if member.isfile():
                    seen[name] = member
                    yield member, archive.extractfile(member).read() if wanted(name) else None
                elif (member.islnk() or member.issym()) and (is_audio_file(name) or name.endswith(".json")):
                    logger.warning(
                        "%s: %s is a link and is left out; pack it with `tar --dereference`.", container, name
                    )
    except (tarfile.ReadError, EOFError) as error:
        raise ValueError(f"{container} is no whole .tar archive ({error}); fetch it anew or leave it out.") from error


def list_plain(container: str) -> Iterator[PackedRow]:
    """An audio file behind a URL."""
    filesystem, path = fsspec.core.url_to_fs(container)
    yield PackedRow(PackedFile(container, os.path.basename(path)), filesystem.size(path) or 0, {})


def list_archive(container: str) -> Iterator[PackedRow]:
    """The audio files of a .tar archive, each with the content of the .json file of its name."""
    if not container.endswith(".tar"):
        raise ValueError(f"{container} is compressed, which hardly shrinks audio; unpack it to a .tar archive first.")
    members, metadata = [], {}
    for member, text in walk_archive(container, "r:", lambda name: name.endswith(".json")):
        stem = os.path.splitext(member.name)[0]
        if is_audio_file(member.name):
            if member.issparse():
                raise ValueError(f"{container} holds {member.name} with holes; pack it anew, without `tar --sparse`.")
            members.append((stem, member))
        elif text is not None:
            metadata[stem] = json_object(f"{container}/{member.name}", text)
    for stem, member in members:
        folder, base = os.path.split(stem)
        # The key of webdataset ends at the first dot: 0001.audio.flac goes with 0001.json.
        row = metadata.get(stem) or metadata.get(os.path.join(folder, base.split(".")[0])) or {}
        name = member.name.removeprefix("./")
        yield PackedRow(PackedFile(container, name, member.offset_data, member.size), member.size, row)


def list_parquet(container: str) -> Iterator[PackedRow]:
    """The rows of a Parquet file; of the column of audio only the paths are read."""
    with open_file(container) as file, pq.ParquetFile(file) as parquet:
        try:
            features = Features.from_arrow_schema(parquet.schema_arrow)
        except ValueError as error:
            raise ValueError(f"{container} has a column of a kind that cannot be kept ({error}); drop it.") from error
        column = audio_column(container, features)
        others = [name for name in parquet.schema_arrow.names if name != column]
        classes = {name: kind for name in others if (kind := class_label(features[name])) is not None}
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group, columns=[*others, f"{column}.path"]).to_pylist()
            chunks = parquet.metadata.row_group(group)
            sizes = [chunks.column(index) for index in range(chunks.num_columns)]
            num_bytes = sum(c.total_compressed_size for c in sizes if c.path_in_schema == f"{column}.bytes")
            for number, row in enumerate(rows):
                name = (row.pop(column) or {}).get("path") or ""
                row |= {field: _class_names(kind, row[field]) for field, kind in classes.items()}
                # The length of a single row is not known before it is read.
                yield PackedRow(PackedFile(container, name, group, number, column), num_bytes // len(rows), row)


def class_label(feature) -> ClassLabel | None:
    """The `ClassLabel` that a column is made of, or its lists are; None if there is none."""
    inner = feature.feature if isinstance(feature, List) else feature
    return inner if isinstance(inner, ClassLabel) else None


def _class_names(kind: ClassLabel, value: int | list | None) -> str | list | None:
    """The name of a class, or of each in a list; none of a class that is missing."""
    if isinstance(value, list):
        return [_class_names(kind, one) for one in value]
    return None if value is None or value < 0 else kind.int2str(value)


@lru_cache(maxsize=1)
def _read_group(container: str, column: str, group: int) -> pa.ChunkedArray:
    """The audio of a row group; kept, for the next row is mostly of the same."""
    with open_file(container) as file, pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(0)


# ---- columns of audio ----


def audio_column(where: str | os.PathLike, features: Features) -> str:
    """The one column that holds audio, by its type: `datasets.Audio`, else a struct of `bytes` and `path`.

    Raises ValueError if none or several do.
    """
    found = audio_columns(features)
    if len(found) != 1:
        what = f"the audio columns {', '.join(found)}" if found else "no column of audio"
        raise ValueError(
            f"{where} has {what} (columns: {', '.join(features)}); exactly one column must hold audio, as "
            "`datasets.Audio` or a struct of `bytes` and `path`: write such a data set with `to_parquet`."
        )
    return found[0]


def audio_columns(features: Features) -> list[str]:
    """All columns that hold audio."""
    typed = [name for name, feature in features.items() if isinstance(feature, Audio)]
    return typed or [name for name, feature in features.items() if _holds_audio(feature)]


def _holds_audio(feature) -> bool:
    if not isinstance(feature, dict) or set(feature) != {"bytes", "path"}:
        return False
    types = {name: getattr(value, "dtype", "") for name, value in feature.items()}
    return types["bytes"] in ("binary", "large_binary") and types["path"] in ("string", "large_string")


def name_audio_column(where: str | os.PathLike, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The data set with its one column of audio called `audio`, still encoded. Raises as [`audio_column`]."""
    found = audio_column(where, dataset.features or Features())
    if found != "audio":
        if "audio" in dataset.features:
            dataset = dataset.remove_columns("audio")
        dataset = dataset.rename_column(found, "audio")
    return dataset.cast_column("audio", CLIP if isinstance(dataset, IterableDataset) else Audio(decode=False))


def encoded_audio(audio: dict) -> bytes | str:
    """The encoded bytes of a row's `audio`, or the path of its file."""
    return audio["bytes"] if audio.get("bytes") is not None else audio.get("path") or b""


def audio_name(audio: dict) -> str | None:
    """What messages call a row's `audio`; None if it has no name."""
    return audio.get("path") or None
