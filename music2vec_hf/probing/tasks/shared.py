"""What the readers share: tables read by column name, audio found by id, targets, the lists of the package."""

import csv
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.probing.tasks.declarations import SPLITS, Split, Task

__all__ = [
    "class_targets",
    "find_file",
    "index_audio",
    "label_differences",
    "list_path",
    "make_splits",
    "read_label_counts",
    "read_table",
    "split_differences",
    "tag_targets",
    "value_targets",
]


def list_path(name: str) -> Path:
    """A file of `lists/`, which ships with the package."""
    return Path(str(files(__package__).joinpath("lists", name)))


def find_file(folder: Path, name: str, task: Task) -> Path:
    """A file of the data set, in its folder or one folder below.

    Raises:
        FileNotFoundError: if it is in neither; says where the data set comes from.
    """
    found = [path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()]
    if not found:
        raise FileNotFoundError(f"'{folder}' has no {name}, which `{task.name}` needs. Get it from: {task.source}.")
    return found[0]


def read_table(path: Path, delimiter: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read columns of a table by name. Quotes, CR LF, stray blanks and tabs, and trailing empty fields are no matter.

    Raises:
        ValueError: if a column is missing or a row is too short to hold the columns.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            separator = {"\t": "a tab", ",": "a comma"}[delimiter]
            raise ValueError(
                f"'{path}' has no column {_few(missing)}; its columns, separated by {separator}, are {_few(header)}. "
                "Use the data set's own file; other data sets have files of the same name."
            )
        places = [header.index(name) for name in columns]
        rows = []
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if len(row) <= max(places):
                raise ValueError(
                    f"Line {reader.line_num} of '{path}' has {len(row)} fields, its header {len(header)}."
                )
            rows.append({name: row[place].strip() for name, place in zip(columns, places, strict=True)})
    return rows


def _few(names: Sequence[str]) -> str:
    """The first names and how many more there are, no longer than a line."""
    text = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
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


def make_splits(rows: Mapping[str, Sequence[tuple[str, Path]]], targets: Mapping[str, np.ndarray]) -> dict[str, Split]:
    """Splits from (track id, file) pairs and targets of each split.

    Raises:
        ValueError: if a split is empty.
    """
    for name in SPLITS:
        if not rows[name]:
            raise ValueError(f"The data has no track in the split '{name}'; probing needs {', '.join(SPLITS)}.")
    return {
        name: Split(tuple(track for track, _ in rows[name]), tuple(path for _, path in rows[name]), targets[name])
        for name in SPLITS
    }


def class_targets(values: Sequence[str], labels: Sequence[str], where: str) -> np.ndarray:
    """Classes `(n,)` int64 of label names; a ValueError names those that the task does not know."""
    unknown = sorted(set(values) - set(labels))
    if unknown:
        raise ValueError(f"{where} has labels that the task does not know: {', '.join(unknown)}.")
    index = {label: position for position, label in enumerate(labels)}
    return np.array([index[value] for value in values], dtype=np.int64)


def tag_targets(tags: Sequence[Sequence[str]], labels: Sequence[str], where: str) -> np.ndarray:
    """Zeros and ones `(n, K)` float32 of lists of tags; a ValueError names tags that the task does not know."""
    unknown = sorted({tag for row in tags for tag in row} - set(labels))
    if unknown:
        raise ValueError(f"{where} has tags that the task does not know: {', '.join(unknown)}.")
    return np.array([[float(label in row) for label in labels] for row in tags], dtype=np.float32)


def value_targets(rows: Sequence[Mapping[str, str]], columns: Sequence[str], where: str) -> np.ndarray:
    """Values `(n, K)` float32 of columns; a ValueError if one is not a finite number."""
    try:
        targets = np.array([[float(row[column]) for column in columns] for row in rows], dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{where}: columns {', '.join(columns)} must hold numbers ({error}).") from error
    if not np.isfinite(targets).all():
        raise ValueError(f"{where}: columns {', '.join(columns)} have values that are not finite.")
    return targets


def read_label_counts(name: str) -> dict[str, tuple[int, ...]]:
    """Labels of a list of the package, in order, with the benchmark's tracks per split."""
    rows = read_table(list_path(name), "\t", ("label", *SPLITS))
    return {row["label"]: tuple(int(row[split]) for split in SPLITS) for row in rows}


def label_differences(task: Task, splits: Mapping[str, Split], counts: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Sentences on labels that are not as frequent as in the benchmark, for splits that have the benchmark's size."""
    differences = []
    for position, name in enumerate(SPLITS):
        targets, labels = splits[name].targets, task.labels
        if len(targets) != task.counts[position]:
            continue
        found = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=len(labels))
        wrong = [
            f"{label} {int(number)} instead of {counts[label][position]}"
            for label, number in zip(labels, found, strict=True)
            if number != counts[label][position]
        ]
        if wrong:
            differences.append(f"{name}: labels are not as frequent as in the benchmark: {', '.join(wrong)}.")
    return tuple(differences)


def split_differences(split_of: Mapping[str, str], published: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences on tracks that a split rule, run on this copy's metadata, does not put where the published list does.

    Args:
        split_of, published (`Mapping[str, str]`): track to split, by the rule and as published.
    """
    groups = {
        "in another split than in the benchmark": [
            t for t in split_of if published.get(t, split_of[t]) != split_of[t]
        ],
        "not in the benchmark": [track for track in split_of if track not in published],
        "in the benchmark but not in these annotations": [track for track in published if track not in split_of],
    }
    return tuple(f"tracks {what}: {', '.join(tracks)}." for what, tracks in groups.items() if tracks)
