"""The labelled reader: columns of a data set, or names of folders -> splits, names of labels, targets of a head."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, List

from music2vec_hf.audio.containers import class_label
from music2vec_hf.audio.listing import Track, find_files, list_tracks
from music2vec_hf.audio.metadata import METADATA_FILES, read_table, text_of

CLASSES, TAGS, VALUES = "single_label_classification", "multi_label_classification", "regression"

# What data sets call their splits.
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}

_SPLIT_FOLDERS = {name for names in SPLIT_NAMES.values() for name in names}

TAG_SEPARATOR = ";"
MAX_NAMED = 5


def name_some(items: Sequence, limit: int = MAX_NAMED) -> str:
    """The first items and how many more there are, for a sentence."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in items[:limit]) + more


def make_targets(
    problem_type: str, values: Sequence, names: Sequence[str], where: str, known_by: str = "the task"
) -> np.ndarray:
    """Labels, one entry a track (its class, its list of tags, or its list of numbers), as numbers.

    `names` are those of the classes, tags or dimensions. Errors call the data `where`, what has the names `known_by`.

    Returns:
        `np.ndarray`: `(n,)` int64 classes, `(n, K)` float32 zeros and ones, or `(n, K)` float32 values.

    Raises:
        ValueError: if a label is none of the names, or a value is no finite number.
    """
    if problem_type == VALUES:
        try:
            targets = np.array([[float(value) for value in row] for row in values], dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Regression needs numbers in {', '.join(names)} of {where} ({error}).") from error
        if not np.isfinite(targets).all():
            raise ValueError(f"Not all numbers in {', '.join(names)} of {where} are finite.")
        return targets
    index = {name: number for number, name in enumerate(names)}
    rows = values if problem_type == TAGS else [[value] for value in values]
    unknown = sorted({name for row in rows for name in row} - set(index))
    if unknown:
        raise ValueError(
            f"{len(unknown)} labels of {where} are unknown to {known_by}: {name_some(unknown)}. Take their tracks "
            f"out, or let {known_by} have them."
        )
    if problem_type == CLASSES:
        return np.array([index[value] for value in values], dtype=np.int64)
    targets = np.zeros((len(rows), len(index)), dtype=np.float32)
    for target, row in zip(targets, rows, strict=True):
        target[[index[name] for name in row]] = 1.0
    return targets


@dataclass(frozen=True)
class Labels:
    """What a head predicts: `names` of the classes, tags or dimensions, in the order of its outputs.

    Several `columns` of the data only for regression; `problem_type` as in [`Music2VecConfig`].
    """

    columns: tuple[str, ...]
    problem_type: str
    names: tuple[str, ...]

    def targets(self, table: Dataset, where: str) -> np.ndarray:
        """The labels of all rows as numbers, as [`make_targets`] gives them; `where` is what errors call the data.

        Raises ValueError if a column is missing, a label is missing or not one of `names`.
        """
        values = label_values(table, self.columns, self.problem_type, where)
        return make_targets(self.problem_type, values, self.names, where, "the training split")


def find_labels(
    table: Dataset, columns: Sequence[str], problem_type: str | None = None, where: str = "the split train"
) -> Labels:
    """Read from data which problem its labels pose, and their names.

    Args:
        columns (`Sequence[str]`): one column: of strings, whole numbers or `ClassLabel` (one label), of lists of these
            (several labels), or of floats (regression); or several columns of numbers (regression).
        problem_type (`str`, *optional*): states it. A column of strings such as `slow;piano` is one of several labels
            only if that is stated, whole numbers are values only if that is stated.

    Raises:
        ValueError: if a column is missing, or the labels do not fit the problem or are fewer than two.
    """
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(
            f"There is no column {', '.join(missing)} in {where}. It has {', '.join(table.column_names)}: name one of "
            "these as `label`, or rename the column of labels."
        )
    feature = table.features[columns[0]]
    listed = isinstance(feature, (List, list))
    if problem_type is None:
        floats = len(columns) > 1 or str(getattr(feature, "dtype", "")).startswith("float")
        problem_type = VALUES if floats else TAGS if listed else CLASSES
    if problem_type == VALUES:
        return Labels(tuple(columns), problem_type, tuple(columns))
    if len(columns) > 1:
        raise ValueError(f"{problem_type} takes one column of labels, not {', '.join(columns)}.")
    if listed and problem_type == CLASSES:
        raise ValueError(f"The column {columns[0]} of {where} holds lists; one label a track is needed.")
    typed = class_label(feature)
    if typed is not None:
        names = typed.names
    else:
        values = label_values(table, columns, problem_type, where)
        names = sorted(set(values) if problem_type == CLASSES else {tag for row in values for tag in row})
    if len(names) < (2 if problem_type == CLASSES else 1):
        raise ValueError(f"The column {columns[0]} of {where} has {len(names)} labels, too few to learn.")
    return Labels(tuple(columns), problem_type, tuple(names))


def label_values(table: Dataset, columns: Sequence[str], problem_type: str, where: str) -> list:
    """The labels of all rows as names, lists of names, or lists of numbers.

    Tags are lists, or text separated by semicolons; a row without any has none of them. Anything else that is missing
    raises ValueError, which calls the data `where`.
    """
    rows = list(zip(*(table[column][:] for column in columns), strict=True))
    empty = [number for number, row in enumerate(rows) if any(value is None or value != value for value in row)]
    if empty and problem_type != TAGS:
        first = f" ({table['track_id'][empty[0]]})" if "track_id" in table.column_names else ""
        raise ValueError(
            f"{len(empty)} of the {len(rows)} clips of {where} have no {', '.join(columns)}, the first is number "
            f"{empty[0]}{first}. Give each a label, or take them out."
        )
    if problem_type == VALUES:
        return [list(row) for row in rows]
    typed = class_label(table.features[columns[0]])
    name_of = str if typed is None else typed.int2str
    if problem_type == CLASSES:
        return [name_of(value) for (value,) in rows]
    return [[name_of(tag) for tag in _split_tags(tags)] for (tags,) in rows]


def _split_tags(tags) -> list:
    if tags is None or tags != tags:
        return []
    if not isinstance(tags, (str, list)):
        return [tags]
    parts = tags.split(TAG_SEPARATOR) if isinstance(tags, str) else tags
    parts = [tag.strip() if isinstance(tag, str) else tag for tag in parts]
    return [tag for tag in parts if tag != ""]


def list_labelled(folder: str | os.PathLike) -> list[Track]:
    """The audio files of a folder, with what tables or the names of their folders say of them.

    [`list_source`] reads the tables. Without any, `label` is [`folder_label`]. The split is a file's `split` in a
    table that has such a column, or else the folder below `folder` that it lies in. A file that no table names has no
    metadata.

    Raises:
        ValueError: as [`list_source`]; if a row of a table or a folder cannot be used.
    """
    found = find_files(folder)
    listing = list_tracks(folder, found)
    # All of them, so that one that cannot be used is an error.
    tables = [read_table(path) for path in sorted(Path(folder).rglob("metadata.*")) if path.name in METADATA_FILES]
    named = {
        os.path.abspath(table.path.parent / str(row.get(table.path_column) or ""))
        for table in tables
        for row in table.rows
    }
    if listing.rejects:
        name, reason = listing.rejects[0]
        raise ValueError(f"{folder}: {len(listing.rejects)} entries cannot be used, the first is {name}: {reason}")
    tracks = []
    for track in listing.tracks:
        path = Path(os.path.abspath(track.path))
        row = track.metadata if found.kind == "manifest" or str(path) in named else {}
        if found.kind != "manifest" and not tables:
            row = {"label": folder_label(track.source)}
        split = row.get("split") if "split" in listing.metadata_types else track.source.split("/")[0]
        tracks.append(replace(track, path=path, split=text_of(split), metadata=row))
    return tracks


def folder_label(source: str) -> str | None:
    """The name of the folder that a file lies in; None at the top, or where that is the folder of a split."""
    *folders, _ = source.split("/")
    if folders and folders[0] in _SPLIT_FOLDERS:
        del folders[0]
    return folders[-1] if folders else None
