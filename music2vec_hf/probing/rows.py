"""Feature rows: what one training example of a probe is. A track, a clip of a song, or a window of a track.

Features are computed once per window. A protocol makes its rows of them:

| protocol | task | rows of a track |
| --- | --- | --- |
| `quick`, `jukemir` | most | one: the mean over its windows, weighted by their frames |
| all | with `Task.clip_seconds` | one per whole clip from the start, what remains is dropped (JukeMIR) |
| `marble` | most | one per window, each of equal weight; a last window below 1 s is dropped (MARBLE v1) |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from music2vec_hf.probing.tasks.declarations import SPLITS, Task, TaskData
from music2vec_hf.probing.tasks.loading import CLIP_TOLERANCE_SECONDS

MARBLE = "marble"
SHORTEST_WINDOW_SECONDS = 1.0


@dataclass(frozen=True)
class FeatureRows:
    """Features of some tracks, one row or several per track.

    Attributes:
        features (`Mapping[str, np.ndarray]`): layer to features `[num_rows, C]`, float32.
        offsets (`np.ndarray` of shape `(num_tracks + 1,)`): the rows of track `i` are `offsets[i]` to
            `offsets[i + 1] - 1`.
        num_frames (`np.ndarray` of shape `(num_rows,)`): frames that a row is the mean of.
        seconds (`np.ndarray` of shape `(num_rows,)`): length of the audio behind a row.
    """

    features: Mapping[str, np.ndarray]
    offsets: np.ndarray
    num_frames: np.ndarray
    seconds: np.ndarray

    @classmethod
    def one_per_track(cls, features: Mapping[str, np.ndarray]) -> "FeatureRows":
        """Rows that are tracks, of unknown length."""
        num_tracks = max((len(values) for values in features.values()), default=0)
        return cls(features, np.arange(num_tracks + 1), np.ones(num_tracks, np.int64), np.full(num_tracks, np.nan))

    @classmethod
    def joined(cls, parts: Sequence["FeatureRows"]) -> "FeatureRows":
        """The tracks of one part after those of the other."""
        sizes = np.concatenate([part.rows_per_track for part in parts])
        features = {layer: np.concatenate([part.features[layer] for part in parts]) for layer in parts[0].features}
        num_frames, seconds = (np.concatenate([getattr(part, name) for part in parts]) for name in _PER_ROW)
        return cls(features, _offsets(sizes), num_frames, seconds)

    @property
    def rows_per_track(self) -> np.ndarray:
        """Number of rows of each track."""
        return np.diff(self.offsets)

    @property
    def tracks(self) -> np.ndarray:
        """Track of each row."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.rows_per_track)

    def chosen(self, rows: np.ndarray, offsets: np.ndarray) -> "FeatureRows":
        """Only these rows, in this order, as the rows of the tracks that `offsets` states."""
        features = {layer: values[rows] for layer, values in self.features.items()}
        return FeatureRows(features, offsets, self.num_frames[rows], self.seconds[rows])

    def take(self, tracks: Sequence[int]) -> "FeatureRows":
        """The rows of these tracks, in this order."""
        tracks = np.asarray(tracks, dtype=np.int64)
        if np.array_equal(tracks, np.arange(len(self.offsets) - 1)):
            return self
        sizes = self.rows_per_track[tracks]
        offsets = _offsets(sizes)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        return self.chosen(np.repeat(self.offsets[tracks], sizes) + within, offsets)

    def merged(self, windows_per_row: int | None) -> "FeatureRows":
        """Means, weighted by frames, of so many successive windows of a track, or of all its windows.

        Args:
            windows_per_row (`int`, *optional*): the last row of a track may hold fewer; None means all.
        """
        starts = [
            np.arange(first, last, windows_per_row or max(1, last - first))
            for first, last in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]
        offsets, starts = _offsets([len(each) for each in starts]), np.concatenate(starts)
        if len(starts) == len(self.seconds):
            return self
        weights = self.num_frames[:, None].astype(np.float64)
        num_frames, seconds = (np.add.reduceat(getattr(self, name), starts) for name in _PER_ROW)
        features = {
            layer: (np.add.reduceat(values * weights, starts) / num_frames[:, None]).astype(np.float32)
            for layer, values in self.features.items()
        }
        return FeatureRows(features, offsets, num_frames, seconds)


def cut(samples: np.ndarray, num_samples: int | None) -> list[np.ndarray]:
    """Cut a track `[N]` from its start into windows of so many samples, the last one shorter; None cuts nothing."""
    step = num_samples or len(samples)
    return [samples[start : start + step] for start in range(0, len(samples), step)]


_PER_ROW = ("num_frames", "seconds")


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def row_seconds(task: Task, protocol: str, window_seconds: float) -> float | None:
    """Length of a row: the task's clip, the window, or None for a whole track. See the table of this module.

    Raises:
        ValueError: if windows do not divide the task's clip.
    """
    if task.clip_seconds is None:
        return window_seconds if protocol == MARBLE else None
    windows = task.clip_seconds / window_seconds
    if round(windows) < 1 or abs(windows - round(windows)) > 1e-6:
        raise ValueError(
            f"The task '{task.name}' hears clips of {task.clip_seconds:g} s, which windows of {window_seconds:g} s do "
            f"not divide; use windows of {task.clip_seconds:g} s or of a whole fraction of that."
        )
    return task.clip_seconds


@dataclass(frozen=True)
class SelectedRows:
    """The rows of a task, with what was left out on the way.

    Attributes:
        rows (`FeatureRows`): of the task's tracks, in the order of `TaskData.paths`.
        row_seconds (`float` or `None`): length of a row, None for a whole track.
        dropped (`dict[str, int]`): split to the number of rows at the end of tracks that the protocol drops.
        differences (`tuple[str, ...]`): sentences on songs that hold fewer clips than they state.
    """

    rows: FeatureRows
    row_seconds: float | None = None
    dropped: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    differences: tuple[str, ...] = ()

    def split(self, task_data: TaskData, split: str) -> FeatureRows:
        """The rows of one split."""
        tracks = task_data.rows(split)
        return self.rows.take(np.arange(tracks.start, tracks.stop))


def select_rows(rows: FeatureRows, task_data: TaskData, seconds: float | None) -> SelectedRows:
    """Keep the rows that a task's protocol wants.

    Args:
        rows (`FeatureRows`): of the tracks of the task, each of `seconds`.
        task_data (`TaskData`): where the number of whole clips comes from.
        seconds (`float`, *optional*): from `row_seconds`.
    """
    if seconds is None:
        return SelectedRows(rows)
    there = rows.rows_per_track
    last = rows.seconds[rows.offsets[1:] - 1]
    differences = ()
    if task_data.task.clip_seconds is None:
        kept = there - ((last < SHORTEST_WINDOW_SECONDS) & (there > 1))
    else:
        stated = np.concatenate([task_data.splits[split].num_clips for split in SPLITS])
        kept = np.minimum(there, stated)
        # mp3 headers and decoders disagree by a little, damage makes a song shorter by much.
        short = rows.seconds[rows.offsets[:-1] + kept - 1] < seconds - CLIP_TOLERANCE_SECONDS
        differences = _short_songs(task_data, (kept < stated) | (short & (stated > 1)))
    chosen = np.concatenate([np.arange(first, first + n) for first, n in zip(rows.offsets[:-1], kept, strict=True)])
    dropped = {split: int((there - kept)[task_data.rows(split)].sum()) for split in SPLITS}
    return SelectedRows(rows.chosen(chosen, _offsets(kept)), seconds, dropped, differences)


def _short_songs(task_data: TaskData, short: np.ndarray) -> tuple[str, ...]:
    if not short.any():
        return ()
    ids = [track_id for split in SPLITS for track_id in task_data.splits[split].track_ids]
    named = ", ".join(np.asarray(ids)[short])
    return (f"{short.sum()} songs decode to fewer whole clips than their headers state: {named}.",)
