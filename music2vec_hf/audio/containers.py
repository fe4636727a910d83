"""Files that name or hold many audio files: tables of metadata, data sets in Parquet, .tar archives."""

import codecs
import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, IterableDataset, Value

from music2vec_hf.audio.decoding import AudioError, is_audio_file
from music2vec_hf.common.files import storable

PATH_COLUMNS = ("file_name", "path", "file")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")

# The storage of `datasets.Audio`. The feature itself wants torchcodec wherever Python rows are encoded, this does not.
CLIP = {"bytes": Value("binary"), "path": Value("string")}

# Columns that every corpus has; a manifest's column of such a name comes along as `manifest_<name>`.
CORPUS_COLUMNS = (
    *("audio", "track_id", "source", "clip_start", "duration", "clip_mean", "clip_std"),
    *("source_sampling_rate", "source_channels", "source_format"),
)

# The columns of our own tables of rejects, which name files but are no manifests.
_REJECTS = ["path", "reason"]


# ---- tables of metadata ----


@dataclass(frozen=True)
class Table:
    """Rows about audio files: values by column, of CSV and TSV texts (`as_text`), of JSONL and Parquet what they hold.

    `path_column` names the files.
    """

    path: Path
    rows: list[dict]
    path_column: str
    as_text: bool


def read_table(path: str | os.PathLike) -> Table:
    """Read a table of audio files: CSV (commas, semicolons, tabs or bars), TSV, JSONL, in UTF-8 or UTF-16, or Parquet.

    Raises:
        ValueError: with the table's name, the line where there is one, and what is wrong: another encoding, quotes
            that do not close, a row of more fields than the header, a column that occurs twice, no JSON, no column
            `file_name`, `path` or `file`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            rows = pq.read_table(path).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} cannot be read ({error}); correct it or take it out of the folder.") from error
    elif suffix == ".jsonl":
        lines = enumerate(_decode(path).split("\n"), start=1)
        rows = [_json_object(f"{path} line {number}", line) for number, line in lines if line.strip()]
    else:
        rows = _read_separated(path, _decode(path))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    column = _path_column(columns)
    if rows and column is None:
        raise ValueError(f"{path} has the columns {columns} but none named {', '.join(PATH_COLUMNS)}.")
    return Table(path, rows, column or PATH_COLUMNS[0], suffix in (".csv", ".tsv"))


def names_files(path: Path) -> bool:
    """Whether a table has a column of paths, by its first line in whatever encoding; our own rejects have none."""
    if path.suffix == ".parquet":
        return _path_column(pq.read_schema(path).names) is not None
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    utf16 = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = head.decode("utf-16" if utf16 else "latin-1", "replace").removeprefix("\xef\xbb\xbf")
    if path.suffix.lower() == ".jsonl":
        try:
            row = json.loads(text.partition("\n")[0] or "{}")
        except json.JSONDecodeError:
            return False
        return isinstance(row, dict) and _path_column(row) is not None
    separator, text = _layout(path, text)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    return _path_column(header) is not None and header != _REJECTS


def _decode(path: Path) -> str:
    data = path.read_bytes()
    utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not in UTF-8: line {line} holds the byte 0x{data[error.start]:02X}. Save it as UTF-8 (a "
            "spreadsheet's `CSV UTF-8`), so that names and labels are what they should be."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path} line {line} holds a NUL character, as UTF-16 does. Save the table as UTF-8.")
    return text


def _layout(path: Path, text: str) -> tuple[str, str]:
    """The separator of a table, and its text without the line `sep=;` that spreadsheets put before it."""
    if match := re.match(r"sep=(.)\r?\n", text):
        return match[1], text[match.end() :]
    if path.suffix.lower() == ".tsv":
        return "\t", text
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return next((one for one in ",;\t|" if _path_column(next(csv.reader([header], delimiter=one), []))), ","), text


def _read_separated(path: Path, text: str) -> list[dict]:
    separator, text = _layout(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        named = [name for name in header if name]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"{path} has the column {twice[0]!r} twice; rename one of them.")
        rows = []
        for fields in reader:
            if any(fields[len(header) :]):
                raise ValueError(
                    f"{path} line {reader.line_num} has {len(fields)} fields, its header {len(header)}; put a text "
                    f"that holds {separator!r} into double quotes."
                )
            row = dict(zip(header, [*fields, *[None] * (len(header) - len(fields))], strict=False))
            if any(fields):
                rows.append({name: row[name] for name in named})
    except csv.Error as error:
        raise ValueError(
            f"{path} line {reader.line_num} cannot be read ({error}); double quotes must enclose a whole field, and "
            "a quote within it must stand twice."
        ) from error
    return rows


def _json_object(where: str, text: str | bytes) -> dict:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a JSON object.")
    return row


def _path_column(columns: Iterable[str]) -> str | None:
    names = {name.strip() for name in columns}
    return next((name for name in PATH_COLUMNS if name in names), None)


def type_metadata(
    where: str | os.PathLike, rows: list[dict], leave_out: set[str], as_text: bool
) -> tuple[dict[str, pa.DataType], list[dict]]:
    """The type of every column of metadata but those to `leave_out`, and the values of every row.

    Where values come `as_text`, numbers are made of a column that holds nothing else. A column named like one of the
    corpus is renamed. Raises ValueError, with `where`, if a column mixes kinds of values.
    """
    kept = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in leave_out]
    types, columns = {}, {}
    for name in kept:
        values = [row.get(name) for row in rows]
        renamed = f"manifest_{name}" if name in CORPUS_COLUMNS else name
        columns[renamed] = _parse_column(values) if as_text else list(map(storable, values))
        try:
            found = pa.array(columns[renamed]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{where} mixes kinds of values in the column {name!r} ({error}).") from error
        types[renamed] = pa.string() if pa.types.is_null(found) else found
    return types, [{name: values[index] for name, values in columns.items()} for index in range(len(rows))]


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


# ---- audio files inside other files ----


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

    `mode` is `tarfile`'s: "r:", or "r|*" for a stream that may be compressed. Raises ValueError if it is damaged.
    """
    try:
        with open_file(container) as file, tarfile.open(fileobj=file, mode=mode) as archive:
            for member in archive:
                if member.isfile() and not os.path.basename(member.name).startswith("."):
                    yield member, archive.extractfile(member).read() if wanted(member.name) else None
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
            members.append((stem, member))
        elif text is not None:
            metadata[stem] = _json_object(f"{container}/{member.name}", text)
    for stem, member in members:
        folder, base = os.path.split(stem)
        # The key of webdataset ends at the first dot: 0001.audio.flac goes with 0001.json.
        row = metadata.get(stem) or metadata.get(os.path.join(folder, base.split(".")[0])) or {}
        name = member.name.removeprefix("./")
        yield PackedRow(PackedFile(container, name, member.offset_data, member.size), member.size, row)


def list_parquet(container: str) -> Iterator[PackedRow]:
    """The rows of a Parquet file; of the column of audio only the paths are read."""
    with open_file(container) as file, pq.ParquetFile(file) as parquet:
        column = audio_column(container, Features.from_arrow_schema(parquet.schema_arrow))
        others = [name for name in parquet.schema_arrow.names if name != column]
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group, columns=[*others, f"{column}.path"]).to_pylist()
            chunks = parquet.metadata.row_group(group)
            sizes = [chunks.column(index) for index in range(chunks.num_columns)]
            num_bytes = sum(c.total_compressed_size for c in sizes if c.path_in_schema == f"{column}.bytes")
            for number, row in enumerate(rows):
                name = (row.pop(column) or {}).get("path") or ""
                # The length of a single row is not known before it is read.
                yield PackedRow(PackedFile(container, name, group, number, column), num_bytes // len(rows), row)


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
