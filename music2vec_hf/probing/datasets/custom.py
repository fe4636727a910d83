"""Any local data set of the `datasets` library with a column of audio and a column of labels.

The folder is what `save_to_disk` wrote, or what `load_dataset` takes: Parquet files or an audio folder. Audio that
lies inside the data set is written out as files to the cache of `datasets`, because features are computed from files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...data.audio import find_audio_files
from ..declarations import SPLITS, Task, TaskData
from .shared import class_targets, make_splits, read_table, tag_targets

NAMES_OF_SPLIT = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
NO_BENCHMARK = "a data set of your own: there is no published score to stand beside."

_TERMS = {
    "license": "that of the data set",
    "citation": "that of the data set",
    "source": "a folder of your own",
    "split_rule": "the data set's own splits train, validation and test",
}

TASKS = (
    Task(
        name="custom",
        title="label",
        problem_type="single_label_classification",
        metrics=("accuracy",),
        primary_metric="accuracy",
        value_metrics=("accuracy",),
        loss="cross-entropy, mean",
        **_TERMS,
    ),
    Task(
        name="custom-tags",
        title="tags",
        problem_type="multi_label_classification",
        metrics=("roc_auc", "average_precision"),
        primary_metric="roc_auc",
        value_metrics=("roc_auc", "average_precision"),
        loss="binary cross-entropy with logits, mean over tags",
        **_TERMS,
    ),
)


def read(task: Task, folder: Path) -> TaskData:
    """Read a data set: `custom` takes the classes of its column `label`, `custom-tags` the lists of its column `tags`.

    A folder is read as (the first that fits) what `save_to_disk` wrote; Parquet or Arrow files; `metadata.csv` with
    the columns file_name, split and label or tags (tags separated by semicolons); files in `<split>/<label>/`. In the
    first two, the one column of classes (`ClassLabel`) is taken where none has the name. Labels are those of the
    column's type, or else all that occur, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a split, the audio column or the label column is not there, or several could be meant.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is not a folder; `{task.name}` reads a local data set of `datasets`.")
    if (folder / "dataset_dict.json").is_file() or any(folder.rglob("*.parquet")) or any(folder.rglob("*.arrow")):
        rows, names, labels = _read_columns(task, folder)
    else:
        table = folder / "metadata.csv"
        rows, names = _read_listing(task, table) if table.is_file() else _read_folders(task, folder)
        labels = ()
    flat = (
        label for values in names.values() for row in values for label in (row if isinstance(row, list) else [row])
    )
    task = replace(task, labels=tuple(labels or sorted(set(flat))))
    to_targets = class_targets if task.name == "custom" else tag_targets
    targets = {split: to_targets(names[split], task.labels, f"'{folder}', split {split}") for split in SPLITS}
    return TaskData(task, make_splits(rows, targets), (NO_BENCHMARK,))


def _read_listing(task: Task, table: Path) -> tuple[dict, dict]:
    entries = read_table(table, ",", ("file_name", "split", task.title))
    rows, names = {}, {}
    for split, spellings in NAMES_OF_SPLIT.items():
        chosen = [row for row in entries if row["split"] in spellings]
        rows[split] = [(row["file_name"], table.parent / row["file_name"]) for row in chosen]
        values = [row[task.title] for row in chosen]
        names[split] = values if task.name == "custom" else [_semicolons(value) for value in values]
    return rows, names


def _semicolons(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(";") if tag.strip()]


def _read_folders(task: Task, folder: Path) -> tuple[dict, dict]:
    if task.name != "custom":
        raise ValueError(f"'{folder}' has no metadata.csv; folders can hold the labels of `custom`, not several tags.")
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    rows, names = {}, {}
    for split, spellings in NAMES_OF_SPLIT.items():
        paths = find_audio_files(folder / _split_name(split, spellings, there, folder))
        rows[split] = [(path.relative_to(folder).as_posix(), path) for path in paths]
        names[split] = [path.parent.name for path in paths]
    return rows, names


def _split_name(split: str, spellings: tuple[str, ...], there: Sequence[str], folder: Path) -> str:
    name = next((name for name in spellings if name in there), None)
    if name is None:
        raise ValueError(f"'{folder}' has the splits {', '.join(there)}; probing needs {', '.join(SPLITS)}.")
    return name


def _read_columns(task: Task, folder: Path) -> tuple[dict, dict, tuple[str, ...]]:
    parts = _load_splits(folder)
    column = _label_column(parts["train"], task, folder)
    rows = {split: _audio_files(split, part, folder) for split, part in parts.items()}
    names = {split: _label_names(part, column) for split, part in parts.items()}
    feature = parts["train"].features[column]
    return rows, names, tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _load_splits(folder: Path) -> dict:
    from datasets import load_dataset, load_from_disk

    from ...data.finding import name_audio_column

    found = load_from_disk(str(folder)) if (folder / "dataset_dict.json").is_file() else load_dataset(str(folder))
    return {
        split: name_audio_column(folder, found[_split_name(split, spellings, list(found), folder)])
        for split, spellings in NAMES_OF_SPLIT.items()
    }


def _label_column(part, task: Task, folder: Path) -> str:
    from datasets import ClassLabel

    if task.title in part.column_names:
        return task.title
    typed = [name for name, kind in part.features.items() if isinstance(getattr(kind, "feature", kind), ClassLabel)]
    if len(typed) != 1:
        raise ValueError(
            f"'{folder}' has the columns {', '.join(part.column_names)}; `{task.name}` needs a column `{task.title}`: "
            "rename the column of labels."
        )
    return typed[0]


def _label_names(part, column: str) -> list:
    """Labels of every row as text: one, or a list of them."""
    feature = part.features[column]
    kind = getattr(feature, "feature", feature)
    name_of = kind.int2str if hasattr(kind, "int2str") else str
    return [[name_of(one) for one in row] if isinstance(row, list) else name_of(row) for row in part[column]]


def _audio_files(split: str, part, folder: Path) -> list[tuple[str, Path]]:
    """(track id, file) of every row; audio without a file of its own gets one, named by its content."""
    from datasets import config

    cache = Path(config.HF_DATASETS_CACHE) / "music2vec_hf"
    rows = []
    for number, row in enumerate(part.select_columns("audio")):
        audio = row["audio"]
        path = Path(audio["path"] or "")
        if audio["bytes"] is not None:
            digest = hashlib.blake2b(audio["bytes"], digest_size=16).hexdigest()
            path = cache / f"{digest}{path.suffix}"
            if not path.is_file():
                cache.mkdir(parents=True, exist_ok=True)
                aside = path.with_name(f".{path.name}")
                aside.write_bytes(audio["bytes"])
                aside.replace(path)
        elif not path.is_absolute():
            path = folder / path
        rows.append((f"{split}/{number}", path))
    return rows
