"""Files of a data set or of the package: tables read by column name, audio found by id."""

import csv
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from music2vec_hf.audio.labels import name_some
from music2vec_hf.audio.reading import find_audio_files


def list_path(name: str) -> Path:
    """A file of `tasks/lists/`, which ships with the package."""
    return Path(str(files(__package__).joinpath("tasks", "lists", name)))


def find_one(folder: Path, pattern: str, what: str, source: str) -> Path:
    """The one file of a data set that fits a pattern, such as `**/annotations_final.csv`.

    Args:
        folder (`Path`): of the data set.
        pattern (`str`): for [`pathlib.Path.glob`].
        what (`str`): what errors call the file.
        source (`str`): where the data set is to be had, for errors.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if there are several: two copies of the data set in one folder.
    """
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise FileNotFoundError(f"'{folder}' has no {what}. Get it from: {source}.")
    if len(found) > 1:
        raise ValueError(f"'{folder}' has {len(found)} copies of {what}: {name_some(found, 2)}. Keep one of them.")
    return found[0]


def read_table(path: Path, delimiter: str, columns: Sequence[str], source: str = "") -> list[dict[str, str]]:
    """Read columns of a table by name. Quotes, CR LF, stray blanks and tabs, and trailing empty fields are no matter.

    Args:
        path (`Path`): of the table, in UTF-8.
        delimiter (`str`): a tab or a comma.
        columns (`Sequence[str]`): needed; others are passed over.
        source (`str`): where the data set is to be had, for errors.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not UTF-8, a column is missing or a row is too short to hold the columns.
    """
    hint = f" Get it from: {source}." if source else ""
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                separator = {"\t": "a tab", ",": "a comma"}[delimiter]
                raise ValueError(
                    f"'{path}' has no column {_few(missing)}; its columns, separated by {separator}, are "
                    f"{_few(header)}. Use the data set's own file; other data sets have files of the same name.{hint}"
                )
            places = [header.index(name) for name in columns]
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                if len(row) <= max(places):
                    raise ValueError(
                        f"Line {reader.line_num} of '{path}' has {len(row)} fields, its header {len(header)}.{hint}"
                    )
                rows.append({name: row[place].strip() for name, place in zip(columns, places, strict=True)})
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' is not there.{hint}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is no table in UTF-8 ({error}); use the data set's own file.{hint}") from error
    return rows


def _few(names: Sequence[str]) -> str:
    """The first names and how many more there are, no longer than a line."""
    text = name_some(names, 8)
    return text if len(text) <= 120 else f"{text[:120]} ..."


def index_audio(folder: Path, key: Callable[[Path], str | None]) -> tuple[dict[str, Path], list[str]]:
    """Find audio files below a folder by an id that their path gives, whatever their format.

    Args:
        folder (`Path`): where to look.
        key: path relative to the folder -> id, or None for a file that has none.

    Returns:
        `tuple[dict[str, Path], list[str]]`: id to file, the first in order of names; and the other files, relative.
    """
    found, others = {}, []
    for path in find_audio_files(folder):
        relative = path.relative_to(folder)
        name = key(relative)
        if name is None or name in found:
            others.append(relative.as_posix())
        else:
            found[name] = path
    return found, others
