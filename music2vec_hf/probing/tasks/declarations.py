"""What a probing task is: its declaration, splits and data with what the check of it found; tables of data sets.

Row 13 of DESIGN.md section 3. The declarations are in `lists/tasks.yaml`.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from music2vec_hf.audio.labels import name_some
from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.common.events import EVENT_LABELS
from music2vec_hf.common.metrics import KEY_LABELS

NO_BENCHMARK = "a data set of your own: there is no published score to stand beside."


def list_path(name: str) -> Path:
    """A file of `tasks/lists/`, which ships with the package."""
    return Path(__file__).parent / "lists" / name


def find_one(folder: Path, pattern: str, what: str, source: str) -> Path:
    """The one file of a data set that fits a pattern, such as `**/annotations_final.csv`.

    Args:
        what, source (`str`): for errors: what the file is, and where the data set is to be had.

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
    """Audio files below a folder by the id that `key` gives their relative path (None: no id), whatever their format.

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


# ---- declarations and data ----

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """Declaration of a probing task.

    Attributes:
        metrics (`tuple[str, ...]`): what is reported, names of `common/metrics.py`.
        primary_metric (`str`): what chooses layer and settings on the validation split; of events, over its frames.
        value_metrics (`tuple[str, ...]`): metrics whose mean is the task's value in the task mean.
        license, citation, source, split_rule (`str`): terms of the data, citation, where to get it, how it is split.
        synthetic (`bool`): the data is generated, so a score says nothing about real music.
        labels (`tuple[str, ...]`): names of the outputs; empty until the data is loaded where the data names them.
        events (`str`): `"beats"`, `"chords"` or `"melody"`, which a probe finds frame by frame; else empty.
        dataset (`str`): the data set that the task is made of; `load_task` looks into a folder of this name.
        counts (`tuple[int, ...]`): tracks of the benchmark's train, validation and test split; empty without one.
        label_counts (`Mapping[str, tuple[int, ...]]`): tracks with each label in these splits, where they are known.
        clip_seconds (`float`, *optional*): a track is a song, which the protocol hears in clips of this length.
        clip_counts (`tuple[int, ...]`): clips of the benchmark's splits.
        may_be_unreadable (`tuple[str, ...]`): tracks that common copies hold broken. They are left out, and that is
            said, instead of refusing the data set.
        target_statistics (`tuple[tuple[float, ...], tuple[float, ...]]`, *optional*): mean and standard deviation of
            each output by which a regression standardises its targets, filled in when the data is loaded; None means
            those of the train split. `Split.targets` stay in their own units.
    """

    name: str
    title: str
    problem_type: str
    metrics: tuple[str, ...]
    primary_metric: str
    value_metrics: tuple[str, ...]
    license: str
    citation: str
    source: str
    split_rule: str
    synthetic: bool = False
    labels: tuple[str, ...] = ()
    events: str = ""
    dataset: str = ""
    counts: tuple[int, ...] = ()
    label_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False, repr=False)
    clip_seconds: float | None = None
    clip_counts: tuple[int, ...] = ()
    may_be_unreadable: tuple[str, ...] = ()
    target_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def read_declarations() -> dict[str, Task]:
    """The tasks of `lists/tasks.yaml` by name."""
    content = yaml.safe_load(list_path("tasks.yaml").read_text(encoding="utf-8"))
    return {name: _declare(name, values) for name, values in content["tasks"].items()}


def _declare(name: str, values: dict) -> Task:
    values = {field_name: tuple(value) if isinstance(value, list) else value for field_name, value in values.items()}
    label_list = values.pop("label_list", "")
    if label_list.endswith(".tsv"):
        rows = read_table(list_path(label_list), "\t", ("label", *SPLITS))
        counts = {row["label"]: tuple(int(row[split]) for split in SPLITS) for row in rows}
        values |= {"labels": tuple(counts), "label_counts": counts}
    elif label_list:
        values["labels"] = tuple(list_path(label_list).read_text(encoding="utf-8").splitlines())
    if "weighted_key_score" in values["metrics"]:
        values["labels"] = KEY_LABELS
    if values.get("events"):
        values["labels"] = tuple(label for label in EVENT_LABELS[values["events"]] if label != "X")
    return Task(name=name, **values)


@dataclass(frozen=True)
class Split:
    """One split of a task: track ids, audio files and targets, in one order.

    Attributes:
        targets (`np.ndarray`): `(n,)` int64 classes, `(n, K)` float32 zeros and ones, or `(n, K)` float32 values;
            or `(n, E, 3)` float64 events, as in `common/events.py`.
        num_clips (`tuple[int, ...]`): whole clips of `Task.clip_seconds` in each song, from its start, by the length
            that its header states; at least 1. Empty where a track is one clip.
    """

    track_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: np.ndarray
    num_clips: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """A task with its three splits. Features of a task come in this order: train, then validation, then test.

    Attributes:
        differences (`tuple[str, ...]`): sentences that say how the data differs from the benchmark's. They name the
            first tracks.
        extra (`tuple[str, ...]`): audio files in the folder that the data set does not know; they are not used.
        affected (`Mapping[str, tuple[str, ...]]`): all tracks that a sentence of `differences` is about.
    """

    task: Task
    splits: dict[str, Split]
    differences: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    affected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def comparable(self) -> bool:
        """Whether a score on this data may stand beside published ones."""
        return not self.differences

    @property
    def paths(self) -> list[Path]:
        """Audio files of all splits, train first, then validation, then test."""
        return [path for split in SPLITS for path in self.splits[split].paths]

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of tracks of each split."""
        return {split: len(self.splits[split].track_ids) for split in SPLITS}

    def rows(self, split: str) -> slice:
        """Rows of this split in the features."""
        start = sum(len(self.splits[name].track_ids) for name in SPLITS[: SPLITS.index(split)])
        return slice(start, start + len(self.splits[split].track_ids))


@dataclass(frozen=True)
class Example:
    """One track as a reader found it; `label` is its class, its list of tags, its list of numbers, or its events
    `[E, 3]`."""

    split: str
    track_id: str
    path: Path
    label: str | Sequence | np.ndarray


@dataclass(frozen=True)
class Found:
    """What a reader found in a folder; audio files are not checked yet.

    Attributes:
        where (`str` or `Path`): what errors call the data.
        differences (`Mapping[str, Sequence[str]]`): what differs from the benchmark, in sentences, with tracks.
    """

    task: Task
    examples: Sequence[Example]
    where: str | Path
    differences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extra: Sequence[str] = ()
