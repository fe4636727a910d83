"""Any local data set of the `datasets` library with a column of audio and a column of labels.

The folder is what `save_to_disk` wrote, or what `load_dataset` takes: Parquet files or an audio folder. Audio that
lies inside the data set is written out as files to the cache of `datasets`, because features are computed from files.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas

from music2vec_hf.audio.folder_metadata import METADATA_FILES, read_folder_metadata
from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.shared import class_targets, make_splits, tag_targets

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

    A folder is read as (the first that fits) what `save_to_disk` wrote; Parquet or Arrow files; audio files with
    `metadata.csv`, `.jsonl` or `.parquet` ([`read_folder_metadata`]), whose split is in a column `split` or else the
    folder that they lie in (tags are lists, or text separated by semicolons); files in `<split>/<label>/`. In the
    first two, the one column of classes (`ClassLabel`) is taken where none has the name. Labels are those of the
    column's type, or else all that occur, sorted. Audio files that are in no split are named, and not used.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a split, the audio column, the label column or a label is not there, or several could be meant.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is not a folder; `{task.name}` reads a local data set of `datasets`.")
    tables = (path for kind in ("*.parquet", "*.arrow") for path in folder.rglob(kind))
    if any(path.name not in METADATA_FILES for path in tables):
        rows, names, labels = _read_columns(task, folder)
        extra = []
    else:
        metadata = read_folder_metadata(folder, as_text=True)
        rows, names = _read_folders(task, folder) if metadata is None else _read_metadata(task, folder, metadata)
        labels, used = (), {path for split in SPLITS for _, path in rows[split]}
        extra = [path.relative_to(folder).as_posix() for path in find_audio_files(folder) if path not in used]
    flat = (
        label for values in names.values() for row in values for label in (row if isinstance(row, list) else [row])
    )
    task = replace(task, labels=tuple(labels or sorted(set(flat))))
    to_targets = class_targets if task.name == "custom" else tag_targets
    targets = {split: to_targets(names[split], task.labels, f"'{folder}', split {split}") for split in SPLITS}
    return TaskData(task, make_splits(rows, targets), (NO_BENCHMARK,), tuple(extra))


def _read_metadata(task: Task, folder: Path, table: pandas.DataFrame) -> tuple[dict, dict]:
    """Rows and labels by split of the audio files that metadata names."""
    if task.title not in table:
        raise ValueError(_no_column(task, folder, table))
    root, rows, names = Path(os.path.abspath(folder)), {}, {}
    places = [Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path) for path in table.index]
    split_names = table["split"] if "split" in table else [place.parts[0] for place in places]
    for split, spellings in NAMES_OF_SPLIT.items():
        chosen = [
            (place, label)
            for place, name, label in zip(places, split_names, table[task.title].tolist(), strict=True)
            if name in spellings
        ]
        rows[split] = [(place.as_posix(), folder / place) for place, _ in chosen]
        names[split] = [
            _tags(label) if task.name == "custom-tags" else _label(label, place) for place, label in chosen
        ]
    return rows, names


def _no_column(task: Task, folder: Path, columns: Iterable[str]) -> str:
    return (
        f"'{folder}' has the columns {', '.join(map(str, columns))}; `{task.name}` needs a column `{task.title}`: "
        "rename the column of labels."
    )


def _label(value: object, place: Path) -> str:
    if np.ndim(value) > 0 or pandas.isna(value):
        raise ValueError(f"'{place}' has {value} for its label in the metadata. Give it one, or take its row out.")
    return str(value).strip()


def _tags(value: object) -> list[str]:
    if not isinstance(value, str) and np.ndim(value) == 0:
        return [] if pandas.isna(value) else [str(value)]
    parts = value.split(";") if isinstance(value, str) else map(str, value)
    return [tag.strip() for tag in parts if tag.strip()]


def _read_folders(task: Task, folder: Path) -> tuple[dict, dict]:
    """Rows and labels by split of audio files in `<split>/<label>/`."""
    if task.name != "custom":
        raise ValueError(f"'{folder}' has no metadata.csv; folders can hold the labels of `custom`, not several tags.")
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    rows, names = {}, {}
    for split, spellings in NAMES_OF_SPLIT.items():
        root = folder / _split_name(split, spellings, there, folder)
        paths = find_audio_files(root)
        elsewhere = [path.relative_to(folder).as_posix() for path in paths if path.parent.parent != root]
        if elsewhere:
            raise ValueError(
                f"'{folder}' has {len(elsewhere)} audio files without a label, the first is {elsewhere[0]}: put each "
                "into <split>/<label>/, or write its label into a metadata.csv (columns file_name, label)."
            )
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

    from music2vec_hf.audio.finding import name_audio_column

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
        raise ValueError(_no_column(task, folder, part.column_names))
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
