"""What a probing task is: its declaration, its splits, its data with what the check of the data found.

Row 13 of DESIGN.md section 3.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """Declaration of a probing task.

    Attributes:
        name (`str`): name on the command line and in results.
        title (`str`): short human name.
        problem_type (`str`): `single_label_classification`, `multi_label_classification` or `regression`.
        metrics (`tuple[str, ...]`): what is reported, names of `metrics.py`.
        primary_metric (`str`): what chooses layer and settings on the validation split.
        value_metrics (`tuple[str, ...]`): metrics whose mean is the task's value in the task mean.
        loss (`str`): training loss, in words.
        license, citation, source, split_rule (`str`): terms of the data, citation, where to get it, how it is split.
        synthetic (`bool`): the data is generated, so a score says nothing about real music.
        labels (`tuple[str, ...]`): names of the outputs; empty until the data is loaded where the data names them.
        dataset (`str`): the data set that the task is made of; `load_task` looks into a folder of this name.
        counts (`tuple[int, ...]`): tracks of the benchmark's train, validation and test split; empty without one.
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
    loss: str
    license: str
    citation: str
    source: str
    split_rule: str
    synthetic: bool = False
    labels: tuple[str, ...] = ()
    dataset: str = ""
    counts: tuple[int, ...] = ()
    clip_seconds: float | None = None
    clip_counts: tuple[int, ...] = ()
    may_be_unreadable: tuple[str, ...] = ()
    target_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


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
        differences (`tuple[str, ...]`): sentences that say how the data differs from the benchmark's.
        extra (`tuple[str, ...]`): audio files in the folder that the data set does not know; they are not used.
    """

    task: Task
    splits: dict[str, Split]
    differences: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

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
