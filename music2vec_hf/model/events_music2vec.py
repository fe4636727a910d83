"""From the logits of frames to events with their times: beats as peaks, chords and notes of a melody as segments."""

import numpy as np

# Of two peaks nearer than this only the higher one counts: of beats (400 a minute), of downbeats.
PEAK_SECONDS = (0.15, 0.4)


def frame_events(logits: np.ndarray, times: np.ndarray, kind: str, settings: list[float]) -> np.ndarray:
    """The events of a track.

    Args:
        logits (`np.ndarray` of shape `(T, K)`): of its frames, one column for each label.
        times (`np.ndarray` of shape `(T,)`): the frames' centres in seconds.
        kind (`str`): `"beats"`: columns are activations; `"chords"`, `"melody"`: columns are classes.
        settings (`list[float]`): of beats, the probability above which a peak of each column counts; of the others,
            the seconds over which log-probabilities are averaged.

    Returns:
        `np.ndarray` of shape `(E, 3)`, float64: start, end (of beats the same), number of the label; by start.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if kind != "beats":
        return _segments(logits, times, settings[0])
    found = []
    for label, threshold in enumerate(settings):
        peaks = times[_peaks(logits[:, label], times, threshold, PEAK_SECONDS[label])]
        found.append(np.stack([peaks, peaks, np.full(len(peaks), label)], axis=1))
    events = np.concatenate(found)
    return events[np.argsort(events[:, 0], kind="stable")]


def _period(times: np.ndarray) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.02


def _peaks(values: np.ndarray, times: np.ndarray, threshold: float, seconds: float) -> list[int]:
    """Frames that are the highest within `seconds` on both sides, and above the threshold."""
    reach = max(1, round(seconds / _period(times)))
    padded = np.pad(values, reach, constant_values=-np.inf)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    kept: list[int] = []
    for frame in np.flatnonzero((values == highest) & (values >= np.log(threshold / (1 - threshold)))):
        if not kept or frame - kept[-1] > reach:  # of equal ones the first
            kept.append(int(frame))
    return kept


def _segments(logits: np.ndarray, times: np.ndarray, seconds: float) -> np.ndarray:
    """The most probable class over time."""
    highest = logits.max(axis=1, keepdims=True)
    scores = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    reach, sums = round(seconds / _period(times) / 2), np.pad(np.cumsum(scores, axis=0), ((1, 0), (0, 0)))
    frames = np.arange(len(scores))
    first, last = np.maximum(frames - reach, 0), np.minimum(frames + reach + 1, len(scores))
    classes = ((sums[last] - sums[first]) / (last - first)[:, None]).argmax(axis=1)
    return class_segments(classes, times)


def class_segments(classes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Classes of frames `[T]` at `times` as events `[E, 3]`, from 0 to the end of the last frame."""
    changes = np.flatnonzero(np.diff(classes)) + 1
    bounds = [0.0, *(times[changes - 1] + times[changes]) / 2, times[-1] + _period(times) / 2]
    return np.stack([bounds[:-1], bounds[1:], classes[[0, *changes]]], axis=1).astype(np.float64)


__all__ = ["PEAK_SECONDS", "class_segments", "frame_events"]
