"""Data sets of one's own with labels, and the corpus of `music2vec synth`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, concatenate_datasets, config, load_dataset, load_from_disk

from music2vec_hf.audio.containers import METADATA_FILES, name_audio_column
from music2vec_hf.audio.labels import (
    SPLIT_NAMES,
    VALUES,
    class_label,
    find_labels,
    label_values,
    list_labelled,
)
from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.common.files import read_json, written_aside
from music2vec_hf.probing.tasks.declarations import SPLITS, Example, Found, Task

NO_BENCHMARK = "a data set of your own: there is no published score to stand beside."


def read_custom(task: Task, folder: Path) -> Found:
    """Read a data set: `custom` takes the classes of its column `label`, `custom-tags` the lists of its column `tags`.

    A folder is read as (the first that fits) what `save_to_disk` wrote; Parquet or Arrow files; audio files with
    metadata, whose split is in a column `split` or else the folder that they lie in (tags are lists, or text separated
    by semicolons); files in `<split>/<label>/`: see [`list_labelled`]. In the first two, the one column of classes
    (`ClassLabel`) is taken where none has the name. Labels are those of the column's type, or else all that occur,
    sorted. Audio files that are in no split are named, and not used.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is not a folder; `{task.name}` reads a local data set of `datasets`.")
    tables = (path for kind in ("*.parquet", "*.arrow") for path in folder.rglob(kind))
    packed = any(path.name not in METADATA_FILES for path in tables)
    parts = _load_tables(folder) if packed else _list_files(folder, "source")
    column = _label_column(parts["train"].table, task, folder)
    kept = [name for name in (column, "track_id") if name in parts["train"].table.column_names]
    together = concatenate_datasets([part.table.select_columns(kept) for part in parts.values()])
    labels = find_labels(together, [column], task.problem_type, f"'{folder}'")
    task = replace(task, labels=labels.names)
    extra = [] if packed else _unused(folder, parts)
    return Found(task, _examples(parts, task, [column], folder), folder, {NO_BENCHMARK: []}, extra)


def read_synthetic(task: Task, folder: Path) -> Found:
    """Read one of the synthetic tasks from a folder written by `music2vec synth`."""
    for name in ("metadata.csv", "synth.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"'{folder}' has no {name}, so it is no synthetic corpus; make one with `{task.source}`."
            )
    vocabulary = read_json(folder / "synth.json", f"make the corpus again with `{task.source}`")
    labels = {"genre": vocabulary["genres"], "tags": vocabulary["tags"]}.get(task.title, task.labels)
    task = replace(task, labels=tuple(labels))
    columns = task.labels if task.problem_type == VALUES else (task.title,)
    return Found(task, _examples(_list_files(folder, "track_id"), task, columns, folder), folder)


@dataclass(frozen=True)
class _Part:
    """One split: the track id and the audio file of every row, and the rows with their labels."""

    track_ids: list[str]
    paths: list[Path]
    table: Dataset


def _examples(parts: dict[str, _Part], task: Task, columns: Sequence[str], folder: Path) -> list[Example]:
    examples = []
    for split, part in parts.items():
        labels = label_values(part.table, columns, task.problem_type, f"'{folder}', split {split},")
        rows = zip(part.track_ids, part.paths, labels, strict=True)
        examples.extend(Example(split, track_id, path, label) for track_id, path, label in rows)
    return examples


def _by_split(folder: Path, names: Sequence[str]) -> dict[str, set[str]]:
    """Each of our splits with what this data set calls it; `names` are those of the data set."""
    found = {split: {*spellings} & {*names} for split, spellings in SPLIT_NAMES.items()}
    if not all(found.values()):
        there = ", ".join(dict.fromkeys(names))
        raise ValueError(f"'{folder}' has the splits {there}; probing needs {', '.join(SPLITS)}.")
    return found


def _list_files(folder: Path, track_id: str) -> dict[str, _Part]:
    """Audio files of a folder by split; `track_id` is the field of a `Track` by which they are called."""
    tracks = [track for track in list_labelled(folder) if track.metadata]
    table = Dataset.from_list([{**track.metadata, "track_id": getattr(track, track_id)} for track in tracks])
    parts = {}
    for split, names in _by_split(folder, [track.split for track in tracks]).items():
        rows = [row for row, track in enumerate(tracks) if track.split in names]
        chosen = [tracks[row] for row in rows]
        ids = [getattr(one, track_id) for one in chosen]
        parts[split] = _Part(ids, [one.path for one in chosen], table.select(rows))
    return parts


def _unused(folder: Path, parts: dict[str, _Part]) -> list[str]:
    used = {path for part in parts.values() for path in part.paths}
    root = folder.absolute()
    return [path.relative_to(root).as_posix() for path in find_audio_files(root) if path not in used]


def _load_tables(folder: Path) -> dict[str, _Part]:
    found = load_from_disk(str(folder)) if (folder / "dataset_dict.json").is_file() else load_dataset(str(folder))
    parts = {}
    for split, names in _by_split(folder, list(found)).items():
        table = name_audio_column(folder, found[min(names)])
        paths = [_audio_file(row["audio"], folder) for row in table.select_columns("audio")]
        parts[split] = _Part([f"{split}/{row}" for row in range(len(paths))], paths, table)
    return parts


def _label_column(table: Dataset, task: Task, folder: Path) -> str:
    if task.title in table.column_names:
        return task.title
    typed = [name for name, feature in table.features.items() if class_label(feature) is not None]
    if len(typed) != 1:
        raise ValueError(
            f"'{folder}' has the columns {', '.join(table.column_names)}; `{task.name}` needs a column "
            f"`{task.title}`: rename the column of labels."
        )
    return typed[0]


def _audio_file(audio: dict, folder: Path) -> Path:
    """The file of a row. Audio inside the data set gets one in the cache of `datasets`, named by its content."""
    path = Path(audio["path"] or "")
    if audio["bytes"] is None:
        return folder / path
    digest = hashlib.blake2b(audio["bytes"], digest_size=16).hexdigest()
    path = Path(config.HF_DATASETS_CACHE) / "music2vec_hf" / f"{digest}{path.suffix}"
    if not path.is_file():
        with written_aside(path) as aside:
            aside.write_bytes(audio["bytes"])
    return path
