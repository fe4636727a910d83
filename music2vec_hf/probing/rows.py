"""Feature rows: features computed once per window, one row or several per track."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


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
