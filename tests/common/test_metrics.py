"""Metrics against independent computations: mir_eval, scikit-learn."""

import runpy
import sys

import mir_eval.beat
import mir_eval.chord
import mir_eval.key
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score

from music2vec_hf.common import metrics
from music2vec_hf.common.events import CHORD_LABELS, EVENT_SCORES
from music2vec_hf.common.metrics import (
    KEY_LABELS,
    METRICS,
    get_metric,
    key_score_table,
    metric_title,
    scorable_tags,
    tag_scores,
)

NUM_TRACKS, LABELS = 60, ("arousal", "valence")
NAMES = (*METRICS, "r2_valence")


def data_of(name, seed=0):
    """References and the outputs of four probes; of tags, those of one are tied often, and of one are 0 and -0."""
    rng = np.random.default_rng(seed)
    if name in EVENT_SCORES:
        # Chords and notes are segments of 1 s, on both sides at the same times; beats lie within 3 s of each other.
        references, outputs = rng.random((NUM_TRACKS, 4, 3)), rng.random((4, NUM_TRACKS, 4, 3))
        for events in (references, outputs):
            segments = not name.endswith("beat_f_measure")
            events[..., 0] = np.arange(events.shape[-2]) if segments else np.sort(3 * events[..., 0])
            events[..., 1] = events[..., 0] + segments
            events[..., 2] = rng.integers(0, 3 if segments else 2, events.shape[:-1])
            events[..., 2] += 58 * name.startswith("melody")  # Bb6, B6 or none
        return references, outputs
    if name in ("roc_auc", "average_precision"):
        references = (rng.random((NUM_TRACKS, 5)) < 0.3).astype(int)
        noise = rng.standard_normal((4, NUM_TRACKS, 5))
        zeros = np.where(rng.random((NUM_TRACKS, 5)) < 0.5, 0.0, -0.0)
        return references, np.stack([np.round(noise[0] + references, 1), np.round(noise[1], 1), noise[2], zeros])
    if name.startswith("r2"):
        references = rng.standard_normal((NUM_TRACKS, 2))
        return references, references + rng.standard_normal((4, NUM_TRACKS, 2))
    return rng.integers(0, 24, NUM_TRACKS), rng.standard_normal((4, NUM_TRACKS, 24))


def _by_mir_eval(name, reference, estimate):
    if name == "chord_majmin":
        sides = [
            (events[:, :2], [CHORD_LABELS[int(label)] for label in events[:, 2]]) for events in (reference, estimate)
        ]
        return mir_eval.chord.evaluate(*sides[0], *sides[1])["majmin"]
    if name.startswith("melody"):
        times = np.arange(400) / 100
        hertz = np.array([1864.655, 1975.533, 0.0])
        sides = [hertz[events[np.arange(400) // 100, 2].astype(int) - 58] for events in (reference, estimate)]
        found = mir_eval.melody.evaluate(times, sides[0], times, sides[1])
        return found["Raw Pitch Accuracy" if name == "melody_accuracy" else "Overall Accuracy"]
    label = name == "downbeat_f_measure"
    times = [events[events[:, 2] == label, 0] for events in (reference, estimate)]
    return mir_eval.beat.f_measure(*times) if all(map(len, times)) else 0.0


def reference_score(name, references, outputs):
    """The score by other libraries."""
    if name in EVENT_SCORES:
        return np.mean([_by_mir_eval(name, *pair) for pair in zip(references, outputs, strict=True)])
    if name == "accuracy":
        return accuracy_score(references, outputs.argmax(1))
    if name == "weighted_key_score":
        pairs = zip(references, outputs.argmax(1), strict=True)
        return np.mean([mir_eval.key.weighted_score(KEY_LABELS[one], KEY_LABELS[other]) for one, other in pairs])
    if name == "symmetric_key_score":
        return key_score_table(symmetric=True)[references, outputs.argmax(1)].mean()
    if name == "r2_valence":
        return r2_score(references[:, 1], outputs[:, 1])
    return {"roc_auc": roc_auc_score, "average_precision": average_precision_score, "r2": r2_score}[name](
        references, outputs
    )


@pytest.mark.filterwarnings("ignore:.*melody has no voiced frames")
@pytest.mark.parametrize("name", NAMES)
def test_a_score_equals_that_of_other_libraries(name):
    metric, (references, outputs) = get_metric(name, LABELS), data_of(name)
    expected = [reference_score(name, references, one) for one in outputs]
    scores = metric(references, outputs)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-12)
    assert [float(metric(references.tolist(), one)) for one in outputs] == scores.tolist()  # alone as in a batch
    tensors = metric(torch.as_tensor(references), torch.as_tensor(outputs))
    assert torch.equal(tensors, torch.as_tensor(scores))
    assert metric.lowest <= scores.min() and scores.max() <= metric.highest


@pytest.mark.filterwarnings("ignore:.*melody has no voiced frames")
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_tracks_drawn_again(name):
    metric, (references, outputs) = get_metric(name, LABELS), data_of(name)
    rng = np.random.default_rng(4)
    counts = rng.multinomial(NUM_TRACKS, np.full(NUM_TRACKS, 1 / NUM_TRACKS), size=3)
    drawn = [np.repeat(np.arange(NUM_TRACKS), count) for count in counts]
    expected = [[reference_score(name, references[rows], one[rows]) for rows in drawn] for one in outputs]
    np.testing.assert_allclose(metric(references, outputs, counts), expected, rtol=0, atol=1e-12)
    ones = np.ones((1, NUM_TRACKS))
    np.testing.assert_allclose(metric(references, outputs, ones)[:, 0], metric(references, outputs), atol=1e-12)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_tags_without_a_positive_or_a_negative_track_are_left_out(name):
    references, outputs = data_of(name)
    references[:, 1], references[:, 3] = 0, 1
    assert scorable_tags(references).tolist() == [True, False, True, False, True]
    by_tag = tag_scores(name, references, outputs)
    assert np.isnan(by_tag[:, [1, 3]]).all()
    np.testing.assert_allclose(get_metric(name)(references, outputs), by_tag[:, [0, 2, 4]].mean(1))
    only_positives = np.zeros((2, NUM_TRACKS))  # of the first tag; then nothing that can be scored
    only_positives[0, np.flatnonzero(references[:, 0])] = 1
    references[:, [2, 4]] = references[:, [0]]
    only_positives[1] = 1
    assert np.isnan(get_metric(name)(references, outputs, only_positives)).tolist() == [[True, False]] * 4
    with pytest.raises(ValueError, match="No tag has both a positive and a negative track"):
        get_metric(name)(np.zeros((4, 2)), np.zeros((4, 2)))


def test_key_table_equals_mir_eval_for_all_pairs():
    expected = [
        [mir_eval.key.weighted_score(reference, estimate) for estimate in KEY_LABELS] for reference in KEY_LABELS
    ]
    np.testing.assert_array_equal(key_score_table(), expected)


def test_a_fifth_counts_in_one_direction_only_but_for_the_symmetric_score():
    c, f, g = (KEY_LABELS.index(f"{tonic} major") for tonic in "CFG")
    assert (key_score_table()[c, g], key_score_table()[c, f]) == (0.5, 0)
    difference = key_score_table(symmetric=True) - key_score_table()
    assert (difference > 0).sum() == 24 and set(np.unique(difference)) == {0.0, 0.5}
    np.testing.assert_array_equal(key_score_table(symmetric=True), key_score_table(symmetric=True).T)


def test_r2_of_equal_references_is_that_of_scikit_learn():
    references = np.full((5, 2), 0.1)
    outputs = np.stack([references[:, 0], references[:, 1] + 1], axis=1)
    assert get_metric("r2")(references, outputs) == r2_score(references, outputs) == 0.5
    varied = np.concatenate([references, [[1, 2]]])
    counts = np.array([[1, 2, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])  # the first draws equal references only
    resampled = get_metric("r2")(varied, np.zeros((6, 2)), counts)
    assert resampled[0] == 0 and resampled[1] == pytest.approx(r2_score(varied, np.zeros((6, 2))))


def test_a_tie_of_classes_falls_to_the_first():
    assert get_metric("accuracy")([1], np.array([[0.0, 2.0, 2.0]])) == 1


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match=r"no metric 'f1'.*accuracy.*r2_arousal"):
        get_metric("f1", ("arousal",))
    for references, outputs in ((np.zeros(3), np.zeros((4, 2))), (np.zeros((3, 2)), np.zeros((3, 3)))):
        with pytest.raises(ValueError, match=r"References of shape \(3.* do not fit outputs of shape"):
            get_metric("accuracy")(references, outputs)


def test_every_metric_has_a_title():
    assert [metric_title(name) for name in ("roc_auc", "r2_valence", "other")] == ["ROC-AUC", "R2 valence", "other"]
    assert get_metric("r2_arousal", LABELS).title == "R2 arousal"


def test_the_module_needs_numpy_and_torch_only(monkeypatch):
    for name in ("sklearn", "evaluate", "mir_eval", "transformers", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "get_metric" in runpy.run_path(metrics.__file__)
