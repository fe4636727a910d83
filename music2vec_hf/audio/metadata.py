"""Tables of metadata that name audio files: CSV, TSV, JSONL and Parquet, and the types of their columns."""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from music2vec_hf.common.files import storable

PATH_COLUMNS = ("file_name", "path", "file")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

# Columns that every corpus has; a manifest's column of such a name comes along as `manifest_<name>`.
CORPUS_COLUMNS = (
    *("audio", "track_id", "source", "clip_start", "duration", "clip_mean", "clip_std"),
    *("source_sampling_rate", "source_channels", "source_format"),
)

# The columns of our own tables of rejects, which name files but are no manifests.
_REJECTS = ["path", "reason"]


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
        rows = [json_object(f"{path} line {number}", line) for number, line in lines if line.strip()]
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
        head = file.read(1 << 16) + file.readline()
    utf16 = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = head.decode("utf-16" if utf16 else "latin-1", "replace").removeprefix("\xef\xbb\xbf")
    if path.suffix.lower() == ".jsonl":
        try:
            row = json.loads(text.lstrip().partition("\n")[0] or "{}")
        except json.JSONDecodeError:
            return False
        return isinstance(row, dict) and _path_column(row) is not None
    separator, text = _layout(path, text)
    header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), [])
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
    if match := re.match(r"[\r\n]*sep=(.)\r?\n", text):
        return match[1], text[match.end() :]
    if path.suffix.lower() == ".tsv":
        return "\t", text
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    return next((one for one in ",;\t|" if _path_column(next(csv.reader([header], delimiter=one), []))), ","), text


def _read_separated(path: Path, text: str) -> list[dict]:
    separator, text = _layout(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
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


def json_object(where: str, text: str | bytes) -> dict:
    """The JSON object that a text holds. Raises ValueError, with `where`, if it is none."""
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
        # Whole numbers that are too long to be kept as numbers are names.
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in columns[renamed]):
            columns[renamed] = [None if value is None else str(value) for value in columns[renamed]]
        try:
            found = pa.array(columns[renamed]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(f"{where} mixes kinds of values in the column {name!r} ({error}).") from error
        types[renamed] = pa.string() if pa.types.is_null(found) else found
    return types, [{name: values[index] for name, values in columns.items()} for index in range(len(rows))]


def _parse_column(texts: list[str | None]) -> list:
    """A column of texts as integers or numbers where every value is one; an empty text is a missing value."""
    values = [text if text else None for text in texts]
    present = [value for value in values if value is not None]
    # "007" is a name, not a number.
    if present and all(re.fullmatch(r"-?(0|[1-9]\d*)", value) for value in present):
        return [None if value is None else int(value) for value in values]
    if present and all(re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", value) for value in present):
        return [None if value is None else float(value) for value in values]
    return values


def text_of(value) -> str:
    """A value of metadata as text; empty where it is missing, but not where it is 0."""
    return "" if value is None or value != value else str(value)


def read_split(where: str | os.PathLike, metadata: dict, default: str = "train") -> str:
    """The split that a row of metadata names. Raises ValueError if that is not one word."""
    split = text_of(metadata.get("split")) or default
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"{where} names the split {split!r}; a split is one word such as train.")
    return split
