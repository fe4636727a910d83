"""Scores of beats, chords and melody equal mir_eval's own, on worked examples."""

import mir_eval
import numpy as np
import pytest

from music2vec_hf.common.events import (
    MELODY_LABELS,
    NO_CHORD,
    NOT_SCORED,
    chord_class,
    melody_classes,
    real_events,
    stack_events,
)
from music2vec_hf.common.metrics import get_metric
from music2vec_hf.probing.scores import Predictions, score_predictions
from music2vec_hf.probing.tasks.frames import read_chords, read_melody

BEATS = {
    "as they are": ([0.5, 1.0, 1.5], [0.5, 1.0, 1.5], 1.0),
    "within 70 ms": ([0.5, 1.0, 1.5], [0.56, 0.95, 1.58], 2 / 3),
    "one for two": ([1.0, 1.05], [1.02], 2 / 3),
    "two for one": ([1.0], [0.98, 1.02], 2 / 3),
    "a chain, which the nearest first would break": ([1.0, 1.1], [1.04, 1.17], 1.0),
    "twice as fast": ([0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], 8 / 11),
    "none found": ([0.5], [], 0.0),
    "none there": ([], [0.5], 0.0),
}


def beats(times, label=0):
    return np.array([(time, time, label) for time in times]).reshape(-1, 3)


@pytest.mark.filterwarnings("ignore:.*beats are empty")
@pytest.mark.parametrize("label, metric", [(0, "beat_f_measure"), (1, "downbeat_f_measure")])
def test_f_measures_are_those_of_mir_eval(label, metric):
    references, estimates, expected = zip(*BEATS.values(), strict=True)
    # Events of the other label must not count.
    other = beats([0.2, 0.4, 0.6, 0.8], 1 - label)
    stacked = [
        stack_events([np.concatenate([beats(times, label), other]) for times in side])
        for side in (references, estimates)
    ]
    values = np.array([float(get_metric(metric)(a[None], b[None])) for a, b in zip(*stacked, strict=True)])
    theirs = [mir_eval.beat.f_measure(np.array(a), np.array(b)) for a, b in zip(references, estimates, strict=True)]
    np.testing.assert_array_equal(values, theirs)
    np.testing.assert_allclose(values, expected)
    assert float(get_metric(metric)(*stacked)) == pytest.approx(np.mean(theirs))


REFERENCES = {
    "sevenths and inversions": "0 1 C:maj\n1 2.5 A:min7/b3\n2.5 3 G:7\n3 4 F:maj7",
    "not in the vocabulary": "0 1 N\n1 2 B:dim\n2 3 D:sus4\n3 3.5 X\n3.5 4 E:min",
    "other spellings": "0 1 A#:min\n1 2 Db\n2 3 Cb:maj\n3 4 F#:(1,3,5)",
    "nothing that counts": "0 2 C:aug\n2 4 C:hdim7",
    "a longer one": "0 1 C\n1 6 G",
}
ESTIMATES = ("0 4 C:maj", "0 1.2 C:maj\n1.2 2.4 A:min\n2.4 4 G:maj", "0 1 N\n1 2 Bb:min\n2 3 B:maj\n3 4 Gb:maj")


@pytest.mark.filterwarnings("ignore:No reference chords")
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_overlaps_are_those_of_mir_eval(reference, estimate, tmp_path):
    sides = []
    for name, text in (("reference", REFERENCES[reference]), ("estimate", estimate)):
        (tmp_path / f"{name}.lab").write_text(text)
        intervals, labels = mir_eval.io.load_labeled_intervals(str(tmp_path / f"{name}.lab"))
        sides.append((intervals, labels, read_chords(tmp_path / f"{name}.lab")))
    (truth, names, ours), (guess, guessed, found) = sides
    theirs = mir_eval.chord.evaluate(truth, names, guess, guessed)["majmin"]
    assert float(get_metric("chord_majmin")(stack_events([ours]), stack_events([found]))) == pytest.approx(theirs)


def test_segments_beyond_the_reference_do_not_count():
    reference = stack_events([np.array([(1, 2, 0), (2, 4, 1)], float)])
    for estimate in ([(0, 1, 5), (1, 2, 0), (2, 4, 1), (4, 5, 7)], [(0, 2, 0), (2, 6, 1)]):
        assert float(get_metric("chord_majmin")(reference, stack_events([np.array(estimate, float)]))) == 1
    outside = stack_events([np.array([(4, 5, 0)], float)])
    assert float(get_metric("chord_majmin")(reference, outside)) == 0


def test_classes_of_chords():
    labels = ("C", "Db:min7", "C#:min", "B:maj/5", "N", "X", "C:dim", "G:9", "G:5")
    classes = (0, 13, 13, 11, NO_CHORD, NOT_SCORED, NOT_SCORED, 7, NOT_SCORED)
    assert tuple(map(chord_class, labels)) == classes
    with pytest.raises(ValueError, match=r"'H:moll' is no chord such as A:min7/b3 or N"):
        chord_class("H:moll")


def test_resamples_draw_tracks_and_padding_is_no_event(tmp_path):
    tracks = [beats([1.0]), beats([1.0, 2.0, 3.0]), beats([])]
    references, outputs = stack_events(tracks), stack_events([tracks[0], tracks[1][:1], beats([5.0, 6.0])])[None]
    assert [len(real_events(rows)) for rows in references] == [1, 3, 0]
    weights = np.array([[3, 0, 0], [0, 2, 1]], np.float32)
    np.testing.assert_allclose(get_metric("beat_f_measure")(references, outputs, weights), [[1, 1 / 3]])
    predictions = Predictions("beats", ("beat", "downbeat"), ("a", "b", "c"), references, outputs)
    predictions.save(tmp_path / "kept.npz")
    kept = Predictions.load(tmp_path / "kept.npz")
    assert score_predictions(kept, ["beat_f_measure"])["beat_f_measure"]["value"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="do not fit"):
        get_metric("beat_f_measure")(references, outputs[:, :2])


MELODY = "melody_accuracy", "melody_overall"
# Segments (start, end, class) of reference and estimate, and their two scores.
MELODIES = {
    "as it is": ([(0, 1, 33), (1, 2, 60)], [(0, 1, 33), (1, 2, 60)], (1.0, 1.0)),
    "a semitone or an octave off": ([(0, 1, 33), (1, 2, 40)], [(0, 1, 34), (1, 2, 52)], (0.0, 0.0)),
    "half of it, and heard where none is": ([(0, 1, 33), (1, 2, 60)], [(0, 0.5, 33), (0.5, 2, 3)], (0.5, 0.25)),
    "none found": ([(0, 1, 33), (1, 4, 60)], [(0, 4, 60)], (0.0, 0.75)),
    "none there": ([(0, 4, 60)], [(0, 1, 5), (1, 4, 60)], (0.0, 0.75)),
    "out of range": ([(0, 1, 61), (1, 2, 0)], [(0, 1, 5), (1, 2, 0)], (1.0, 1.0)),
    "too short": ([(0, 2, 20)], [(0, 1.5, 20)], (0.75, 0.75)),
    "no answer": ([(0, 1, 20), (1, 2, 60)], [], (0.0, 0.5)),
}


@pytest.mark.parametrize("case", MELODIES)
def test_worked_melodies(case):
    *sides, expected = MELODIES[case]
    stacked = [stack_events([np.array(side, float).reshape(-1, 3)]) for side in sides]
    assert [float(get_metric(name)(*stacked)) for name in MELODY] == pytest.approx(expected)


def test_scores_of_melodies_are_those_of_mir_eval_against_the_frequencies_of_the_file(tmp_path):
    """Rounding to the nearest semitone changes no score: answers are semitones, and right within 50 cents."""
    rng = np.random.default_rng(0)
    for number in range(30):
        length = int(rng.integers(50, 400))
        # Notes of 1 to 40 frames that glide, and answers of the nearest semitone or one beside it.
        notes = np.repeat(rng.uniform(37, 94, length), rng.integers(1, 41, length))[:length]
        notes = notes + rng.uniform(-0.4, 0.4, length)
        answers = np.round(notes + rng.normal(0, 0.5, length))
        truth, guess = (
            np.where(rng.random(length) < 0.3, none, 440 * 2 ** ((pitches - 69) / 12))
            for pitches, none in ((notes, -1.0), (answers, 0.0))
        )
        times, events = np.arange(length) * 0.01, []
        for name, hertz, separator in (("truth.csv", truth, ","), ("guess.txt", guess, "\t")):
            lines = [f"{time:.2f}{separator}{value:.9f}" for time, value in zip(times, hertz, strict=True)]
            (tmp_path / name).write_text("\n".join(lines) + "\n")
            events.append(stack_events([read_melody(tmp_path / name)]))
        theirs = mir_eval.melody.evaluate(times, np.maximum(truth, 0), times, guess)
        expected = [theirs["Raw Pitch Accuracy"], theirs["Overall Accuracy"]]
        assert [float(get_metric(name)(*events)) for name in MELODY] == pytest.approx(expected), number
        assert 0.0 < expected[0] < 1.0


def test_classes_of_notes():
    notes = np.array([36, 69, 69.4, 69.6, 95.4, 95.6, 35.4, np.nan])
    assert melody_classes(notes).tolist() == [0, 33, 33, 34, 59, 61, 61, 60]
    assert [MELODY_LABELS[place] for place in (0, 33, 59, 60, 61)] == ["C2", "A4", "B6", "N", "X"]
