"""What a probing task is: its declaration, its splits, its data with what the check of the data found.

Row 13 of DESIGN.md section 3. The declarations are in `lists/tasks.yaml`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from music2vec_hf.audio.labels import make_targets, name_some
from music2vec_hf.common.metrics import KEY_LABELS
from music2vec_hf.probing.tasks.tables import list_path, read_table

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """Declaration of a probing task.

    Attributes:
        name (`str`): name on the command line and in results.
        title (`str`): short human name.
        problem_type (`str`): `single_label_classification`, `multi_label_classification` or `regression`.
        metrics (`tuple[str, ...]`): what is reported, names of `common/metrics.py`.
        primary_metric (`str`): what chooses layer and settings on the validation split.
        value_metrics (`tuple[str, ...]`): metrics whose mean is the task's value in the task mean.
        license, citation, source, split_rule (`str`): terms of the data, citation, where to get it, how it is split.
        synthetic (`bool`): the data is generated, so a score says nothing about real music.
        labels (`tuple[str, ...]`): names of the outputs; empty until the data is loaded where the data names them.
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
    return Task(name=name, **values)


@dataclass(frozen=True)
class Split:
    """One split of a task: track ids, audio files and targets, in one order.

    Attributes:
        track_ids (`tuple[str, ...]`): one per track.
        paths (`tuple[Path, ...]`): audio files.
        targets (`np.ndarray`): `(n,)` int64 classes, `(n, K)` float32 zeros and ones, or `(n, K)` float32 values.
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
        task (`Task`): with labels.
        splits (`dict[str, Split]`): `"train"`, `"validation"` and `"test"`.
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
    """One track as a reader found it; `label` is its class, its list of tags, or its list of numbers."""

    split: str
    track_id: str
    path: Path
    label: str | Sequence


def make_data(
    task: Task,
    examples: Sequence[Example],
    where: str | Path,
    differences: Mapping[str, Sequence[str]] | None = None,
    extra: Sequence[str] = (),
) -> TaskData:
    """The data of a task, in the order of the examples, with what differs from the benchmark.

    Args:
        task (`Task`): with labels.
        examples (`Sequence[Example]`): of all splits.
        where (`str` or `Path`): what errors call the data.
        differences (`Mapping[str, Sequence[str]]`): sentences that a reader knows, with the tracks of each.
        extra (`Sequence[str]`): audio files that are not used.

    Raises:
        ValueError: if a split is empty, a track occurs twice, or a label is unknown.
    """
    seen: dict[str, str] = {}
    for example in examples:
        if example.track_id in seen:
            before = seen[example.track_id]
            raise ValueError(f"Track '{example.track_id}' is in '{before}' and again in '{example.split}'.")
        seen[example.track_id] = example.split
    splits = {}
    for name in SPLITS:
        chosen = [example for example in examples if example.split == name]
        if not chosen:
            raise ValueError(f"The data has no track in the split '{name}'; probing needs {', '.join(SPLITS)}.")
        labels = [example.label for example in chosen]
        targets = make_targets(task.problem_type, labels, task.labels, f"'{where}', split {name},")
        ids, paths = (tuple(getattr(example, part) for example in chosen) for part in ("track_id", "path"))
        splits[name] = Split(ids, paths, targets)
    found = {**(differences or {}), **_label_differences(task, splits)}
    affected = {sentence: tuple(tracks) for sentence, tracks in found.items()}
    return TaskData(task, splits, tuple(found), tuple(extra), affected)


def _label_differences(task: Task, splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Labels that are not as frequent as in the benchmark, in splits that have its size."""
    differences = {}
    for name, counts, size in zip(SPLITS, zip(*task.label_counts.values(), strict=True), task.counts, strict=False):
        targets = splits[name].targets
        if len(targets) != size:
            continue
        found = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=len(counts))
        wrong = [
            f"{label} {int(number)} instead of {count}"
            for label, number, count in zip(task.label_counts, found, counts, strict=True)
            if number != count
        ]
        if wrong:
            differences[f"{name}: labels are not as frequent as in the benchmark: {name_some(wrong)}."] = wrong
    return differences


def split_differences(split_of: Mapping[str, str], list_name: str) -> dict[str, list[str]]:
    """Sentences on tracks that a split rule, run on this copy's metadata, does not put where the published list does.

    Args:
        split_of (`Mapping[str, str]`): track to split, by the rule.
        list_name (`str`): of the published list in `lists/`.

    Returns:
        `dict[str, list[str]]`: sentence to tracks.
    """
    published = benchmark_split(list_name)
    groups = {
        "in another split than in the benchmark": [
            t for t in split_of if published.get(t, split_of[t]) != split_of[t]
        ],
        "not in the benchmark": [track for track in split_of if track not in published],
        "in the benchmark but not in these annotations": [track for track in published if track not in split_of],
    }
    return {f"tracks {what}: {name_some(tracks)}.": tracks for what, tracks in groups.items() if tracks}


def benchmark_split(list_name: str) -> dict[str, str]:
    """Track id to split, as published, of a list such as `emomusic_split.tsv`."""
    rows = read_table(list_path(list_name), "\t", ("track_id", "split"))
    return {row["track_id"]: row["split"] for row in rows}
