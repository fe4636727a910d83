"""Events of tracks: beats, chords and melody with their times, and their scores, which are mir_eval's own.

The events of a track are rows (start, end, label): seconds and a place in `EVENT_LABELS`; a beat ends where it starts.
Those of several tracks are one array `[n, E, 3]`, filled up with rows of label -1.
"""

import functools
import warnings
from collections.abc import Callable, Sequence

import numpy as np

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
NO_CHORD, NOT_SCORED = 24, 25
"""Classes of silence (`N`), and of what has no major or minor triad (`X`): the latter is in references only."""
CHORD_LABELS = (*(f"{root}:{quality}" for quality in ("maj", "min") for root in TONICS), "N", "X")
LOWEST_NOTE, NO_MELODY = 36, 60
"""The MIDI note (C2) of class 0 of a melody, and the class where there is none (`N`); the highest note is B6."""
MELODY_LABELS = (*(f"{root}{octave}" for octave in range(2, 7) for root in TONICS), "N", "X")
EVENT_LABELS = {"beats": ("beat", "downbeat"), "chords": CHORD_LABELS, "melody": MELODY_LABELS}
UNSCORED = {"beats": -1, "chords": NOT_SCORED, "melody": NO_MELODY + 1}
"""By kind the class `X`; beats have none."""


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


def labels_at(events: np.ndarray, times: np.ndarray, kind: str) -> np.ndarray:
    """The class at each of `times` of segments `[E, 3]`, int64; where there is no segment that of `UNSCORED`."""
    nothing = (-np.inf, -np.inf, UNSCORED[kind])
    events = np.concatenate([[nothing], events])
    place = np.searchsorted(events[:, 0], times, side="right") - 1
    return np.where(times < events[place, 1], events[place, 2], UNSCORED[kind]).astype(np.int64)


def melody_classes(notes: np.ndarray) -> np.ndarray:
    """Classes of MIDI notes, which need not be whole: of the nearest semitone, `N` for NaN, `X` out of range."""
    classes = np.round(notes) - LOWEST_NOTE
    inside = (classes >= 0) & (classes < NO_MELODY)
    return np.where(np.isnan(notes), NO_MELODY, np.where(inside, classes, UNSCORED["melody"]))


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


def melody_score(reference: np.ndarray, estimate: np.ndarray, measure: str) -> float:
    """`mir_eval.melody.raw_pitch_accuracy` or `overall_accuracy` (by `measure`; 50 cents) of one track every 10 ms.

    Where the estimate has no melody its pitch is wrong. What is not scored in the reference is left out. A reference
    without melody has a raw pitch accuracy of 0, as in mir_eval.
    """
    from mir_eval import melody

    reference, estimate = real_events(reference), real_events(estimate)
    times = np.arange(0, reference[:, 1].max(initial=0), 0.01)
    classes = np.stack([labels_at(events, times, "melody") for events in (reference, estimate)])
    classes = classes[:, classes[0] != UNSCORED["melody"]]
    hertz = np.where(classes < NO_MELODY, 440 * 2.0 ** ((classes + LOWEST_NOTE - 69) / 12), 0.0)
    sides = [part for row in hertz for part in (melody.freq_to_voicing(row)[1], melody.hz2cents(row))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(no voiced frames|array is empty)")
        return float(getattr(melody, measure)(*sides))


EVENT_SCORES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "beat_f_measure": ("beat F-measure", functools.partial(beat_f_measure, label=0)),
    "downbeat_f_measure": ("downbeat F-measure", functools.partial(beat_f_measure, label=1)),
    "chord_majmin": ("majmin overlap", chord_overlap),
    "melody_accuracy": ("raw pitch accuracy", functools.partial(melody_score, measure="raw_pitch_accuracy")),
    "melody_overall": ("overall accuracy", functools.partial(melody_score, measure="overall_accuracy")),
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
