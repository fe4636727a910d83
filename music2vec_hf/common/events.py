"""Events of tracks: beats and chords with their times, and their scores, which are mir_eval's own.

The events of a track are rows (start, end, label): seconds and a place in `EVENT_LABELS`; a beat ends where it starts.
Those of several tracks are one array `[n, E, 3]`, filled up with rows of label -1.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

_ROOTS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
NO_CHORD, NOT_SCORED = 24, 25
"""Classes of silence (`N`), and of what has no major or minor triad (`X`): the latter is in references only."""
CHORD_LABELS = (*(f"{root}:{quality}" for quality in ("maj", "min") for root in _ROOTS), "N", "X")
EVENT_LABELS = {"beats": ("beat", "downbeat"), "chords": CHORD_LABELS}


def stack_events(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Events of tracks, each `[E, 3]` of its own length, as one float64 array `[n, E, 3]`."""
    stacked = np.zeros((len(tracks), max([1, *map(len, tracks)]), 3))
    stacked[..., 2] = -1
    for rows, events in zip(stacked, tracks, strict=True):
        rows[: len(events)] = np.reshape(events, (-1, 3))
    return stacked


def real_events(rows: np.ndarray) -> np.ndarray:
    """The events of one track without what it was filled up with."""
    return rows[rows[:, 2] >= 0]


@functools.cache
def chord_class(label: str) -> int:
    """The class of a chord in the syntax of Harte et al. 2005 (`A:min7/b3`, `N`), as mir_eval's `majmin` compares.

    Raises ValueError for another syntax.
    """
    from mir_eval import chord

    try:
        root, semitones, _ = chord.encode(label, reduce_extended_chords=False)
    except chord.InvalidChordException as error:
        raise ValueError(f"'{label}' is no chord such as A:min7/b3 or N ({error}).") from error
    if root < 0:
        return NO_CHORD if label == chord.NO_CHORD else NOT_SCORED
    for place, quality in enumerate(("maj", "min")):
        if np.array_equal(semitones[:8], chord.QUALITIES[quality][:8]):
            return 12 * place + int(root)
    return NOT_SCORED


def beat_f_measure(reference: np.ndarray, estimate: np.ndarray, label: int) -> float:
    """`mir_eval.beat.f_measure` of one track's events of a label: within 70 ms, 0 where either has none."""
    from mir_eval.beat import f_measure

    times = [np.sort(events[events[:, 2] == label, 0]) for events in (reference, estimate)]
    return float(f_measure(*times)) if all(map(len, times)) else 0.0


def chord_overlap(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Share of the time of one track's major, minor and no chords that the estimate has right: `majmin` of
    `mir_eval.chord.evaluate`; 0 where the reference has none."""
    from mir_eval import chord, util

    reference, estimate = real_events(reference), real_events(estimate)
    if not (reference[:, 2] != NOT_SCORED).any():
        return 0.0
    span = reference[:, 0].min(), reference[:, 1].max()
    # mir_eval would make an empty segment of one that begins where the reference ends.
    estimate = estimate[(estimate[:, 1] > span[0]) & (estimate[:, 0] < span[1])]
    names = [[CHORD_LABELS[int(number)] for number in events[:, 2]] for events in (reference, estimate)]
    adjusted = util.adjust_intervals(estimate[:, :2], names[1], *span, chord.NO_CHORD, chord.NO_CHORD)
    intervals, *labels = util.merge_labeled_intervals(reference[:, :2], names[0], *adjusted)
    return float(chord.weighted_accuracy(chord.majmin(*labels), util.intervals_to_durations(intervals)))


EVENT_SCORES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "beat_f_measure": ("beat F-measure", functools.partial(beat_f_measure, label=0)),
    "downbeat_f_measure": ("downbeat F-measure", functools.partial(beat_f_measure, label=1)),
    "chord_majmin": ("majmin overlap", chord_overlap),
}
"""Name of a metric -> its title, and the score of a track from its reference and its estimate."""


def track_scores(name: str, references: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Score of every track: references `[n, E, 3]` and outputs `[..., n, E', 3]` to `[..., n]`."""
    score, shape = EVENT_SCORES[name][1], outputs.shape[:-2]
    pairs = zip(
        np.broadcast_to(references, (*shape, *references.shape[1:])).reshape(-1, *references.shape[1:]),
        outputs.reshape(-1, *outputs.shape[-2:]),
        strict=True,
    )
    return np.array([score(reference, estimate) for reference, estimate in pairs]).reshape(shape)
