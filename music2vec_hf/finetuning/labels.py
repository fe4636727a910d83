"""Labels of a corpus as targets of a head: which problem it is, the names, and numbers for the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import ClassLabel, Dataset, List

_TAG_SEPARATOR = ";"


@dataclass(frozen=True)
class Labels:
    """What a head predicts.

    Args:
        columns (`tuple[str, ...]`): of the corpus; more than one only for regression.
        problem_type (`str`): as in [`Music2VecConfig`].
        names (`tuple[str, ...]`): of the classes, tags or dimensions, in the order of the head's outputs.
    """

    columns: tuple[str, ...]
    problem_type: str
    names: tuple[str, ...]

    def targets(self, dataset: Dataset, split: str) -> np.ndarray:
        """The labels of a split as numbers: `(n,)` int64 classes, `(n, K)` float32 0/1, `(n, K)` float32 values.

        Raises:
            ValueError: if a column is missing, a label is missing or unknown; `split` is its name in the sentence.
        """
        values = _values(dataset, self.columns, self.problem_type, split)
        if self.problem_type == "regression":
            return np.asarray(values, dtype=np.float32)
        index = {name: number for number, name in enumerate(self.names)}
        tags = values if self.problem_type == "multi_label_classification" else [[value] for value in values]
        unknown = sorted({tag for row in tags for tag in row} - set(index))
        if unknown:
            raise ValueError(
                f"The split {split} has {len(unknown)} labels that training lacks: {', '.join(unknown[:5])}. "
                "Take these clips out, or put some into the training split."
            )
        if self.problem_type == "single_label_classification":
            return np.array([index[value] for value in values], dtype=np.int64)
        targets = np.zeros((len(tags), len(index)), dtype=np.float32)
        for row, names in enumerate(tags):
            targets[row, [index[name] for name in names]] = 1.0
        return targets


def find_labels(dataset: Dataset, columns: Sequence[str], problem_type: str | None = None, split="train") -> Labels:
    """Read the problem and the names from the training split.

    Args:
        dataset (`datasets.Dataset`): the training split.
        columns (`Sequence[str]`): one column: of strings, whole numbers or `ClassLabel` (one label), of lists of these
            (several labels), or of floats (regression); or several columns of numbers (regression).
        problem_type (`str`, *optional*): states it. A column of strings such as `slow;piano` is one of several labels
            only if that is stated, whole numbers are values only if that is stated.
        split (`str`): the split's name, for errors.

    Raises:
        ValueError: if a column is missing, or the labels do not fit the problem or are fewer than two.
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The split {split} has no column {', '.join(missing)}. It has {', '.join(dataset.column_names)}: "
            "name one of these as `label`."
        )
    feature = dataset.features[columns[0]]
    if problem_type is None:
        listed = isinstance(feature, (List, list))
        floats = len(columns) > 1 or str(getattr(feature, "dtype", "")).startswith("float")
        problem_type = "multi_label_classification" if listed else "single_label_classification"
        problem_type = "regression" if floats else problem_type
    if problem_type == "regression":
        return Labels(tuple(columns), problem_type, tuple(columns))
    if len(columns) > 1:
        raise ValueError(f"{problem_type} takes one column of labels, not {', '.join(columns)}.")
    class_label = feature.feature if isinstance(feature, List) else feature
    if isinstance(class_label, ClassLabel):
        names = class_label.names
    else:
        values = _values(dataset, columns, problem_type, split)
        flat = values if problem_type == "single_label_classification" else [tag for row in values for tag in row]
        names = sorted(set(flat))
    if len(names) < (2 if problem_type == "single_label_classification" else 1):
        raise ValueError(f"The column {columns[0]} of the split {split} has {len(names)} labels, too few to learn.")
    return Labels(tuple(columns), problem_type, tuple(names))


def class_weights(targets: np.ndarray, num_labels: int) -> np.ndarray:
    """Weights for the loss that make classes, or the two sides of a tag, count alike: float32 `[num_labels]`.

    For `(n,)` classes `n / (num_labels * count)`, 1 on average over the clips. For `(n, num_labels)` tags the ratio
    of negative to positive clips (`pos_weight`).
    """
    if targets.ndim == 1:
        counts = np.bincount(targets, minlength=num_labels)
        return (len(targets) / (num_labels * np.maximum(counts, 1))).astype(np.float32)
    positives = targets.sum(0)
    return ((len(targets) - positives) / np.maximum(positives, 1)).astype(np.float32)


def _values(dataset: Dataset, columns: Sequence[str], problem_type: str, split: str) -> list:
    """Labels as names, lists of names, or lists of floats; a label that is missing is an error."""
    rows = list(zip(*(dataset[column][:] for column in columns), strict=True))
    empty = [number for number, row in enumerate(rows) if any(value is None or value != value for value in row)]
    if empty:
        raise ValueError(
            f"{len(empty)} of the {len(rows)} clips of the split {split} have no {', '.join(columns)}, the first is "
            f"number {empty[0]}. Take them out of the corpus."
        )
    if problem_type == "regression":
        try:
            return [[float(value) for value in row] for row in rows]
        except (TypeError, ValueError) as error:
            raise ValueError(f"Regression needs numbers in {', '.join(columns)}: {error}.") from error
    feature = dataset.features[columns[0]]
    inner = feature.feature if isinstance(feature, List) else feature
    name_of = inner.int2str if isinstance(inner, ClassLabel) else str
    if problem_type == "single_label_classification":
        return [name_of(value) for (value,) in rows]
    split_up = (value.split(_TAG_SEPARATOR) if isinstance(value, str) else value for (value,) in rows)
    return [[name_of(tag) for tag in tags if tag != ""] for tags in split_up]


__all__ = ["Labels", "class_weights", "find_labels"]
