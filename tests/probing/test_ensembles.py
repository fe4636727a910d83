"""From clips to tracks: the four ways, and that validation scores are those of tracks."""

import numpy as np
import pytest
import torch

from music2vec_hf.common.metrics import get_metric
from music2vec_hf.probing.probes import ENSEMBLES, combine, track_scores

RNG = np.random.default_rng(0)
OUTPUTS, TRACKS = RNG.standard_normal((10, 4)), np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


BY_HAND = {
    "vote": lambda rows: np.bincount(rows.argmax(1), minlength=rows.shape[1]),
    "max": lambda rows: rows.max(0),
    "gmean": lambda rows: rows.mean(0),
    "mean": lambda rows: softmax(rows).mean(0),
}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_each_way_equals_its_formula_whatever_the_order_of_rows(ensemble):
    expected = np.stack([BY_HAND[ensemble](OUTPUTS[track == TRACKS]) for track in range(4)])
    combined = combine(OUTPUTS, TRACKS, ensemble)
    assert isinstance(combined, np.ndarray)
    np.testing.assert_allclose(combined, expected, atol=1e-12)
    order = RNG.permutation(10)
    np.testing.assert_allclose(combine(OUTPUTS[order], TRACKS[order], ensemble), expected, atol=1e-12)
    of_probes = combine(torch.as_tensor(np.stack([OUTPUTS, 2 * OUTPUTS])), torch.as_tensor(TRACKS), ensemble)
    assert of_probes.shape == (2, 4, 4)
    np.testing.assert_allclose(of_probes[0], expected, atol=1e-12)
    np.testing.assert_allclose(of_probes[1], combine(2 * OUTPUTS, TRACKS, ensemble), atol=1e-12)


def test_a_tied_vote_falls_to_the_first_class():
    logits = np.array([[0, 0, 5.0], [0, 5.0, 0]])
    assert combine(logits, np.zeros(2, int), "vote").argmax(1).tolist() == [1]


def one_hot(key, height=1.0):
    return height * np.eye(24)[key]


VOTE_IS_RIGHT = [one_hot(3), one_hot(3), one_hot(8, 9.0)]  # the loudest clip is wrong
MAX_IS_RIGHT = [one_hot(8), one_hot(8), one_hot(3, 9.0)]  # and here it alone is right
SONG_OF_CLIP = torch.as_tensor([0, 0, 0, 1, 1, 1])


def test_keys_get_the_best_of_four_ways_of_each_probe():
    outputs = torch.as_tensor(np.stack([VOTE_IS_RIGHT * 2, MAX_IS_RIGHT * 2]))
    found = track_scores("weighted_key_score", torch.tensor([3, 3]), outputs, SONG_OF_CLIP)
    assert found == [(1, "vote"), (1, "max")]


def test_the_way_is_that_of_validation_even_if_test_would_choose_another():
    """The trap: JukeMIR picks the way on validation and keeps it for test."""
    validation = torch.as_tensor(np.array(VOTE_IS_RIGHT * 2))[None]
    ((_, chosen),) = track_scores("weighted_key_score", torch.tensor([3, 3]), validation, SONG_OF_CLIP)
    test = np.array(MAX_IS_RIGHT * 2)
    score = {way: get_metric("weighted_key_score")([3, 3], combine(test, SONG_OF_CLIP, way)) for way in ENSEMBLES}
    assert score[chosen] == 0 and max(score.values()) == score["max"] == 1


def test_ties_fall_to_the_first_way():
    outputs = torch.as_tensor(np.array([one_hot(3)] * 6))[None]
    assert track_scores("weighted_key_score", torch.tensor([3, 3]), outputs, SONG_OF_CLIP) == [(1, "vote")]


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "r2"])
def test_other_tasks_take_the_mean_of_the_outputs(metric):
    outputs, tracks = torch.as_tensor(RNG.standard_normal((3, 40, 2))), torch.arange(40) // 4
    references = {
        "accuracy": torch.arange(10) % 2,
        "roc_auc": torch.stack([torch.arange(10) % 2, torch.arange(10) % 3 == 0], 1).long(),
        "r2": torch.as_tensor(RNG.standard_normal((10, 2))),
    }[metric]
    found = track_scores(metric, references, outputs, tracks)
    expected = get_metric(metric)(references, outputs.reshape(3, 10, 4, 2).mean(2))
    assert found == [(pytest.approx(score), "gmean") for score in expected.tolist()]


def test_scores_that_are_not_finite_are_an_error():
    outputs = torch.zeros(2, 3, 2)
    outputs[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="outputs that are not finite"):
        track_scores("accuracy", torch.tensor([0, 1, 0]), outputs)


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="no ensemble 'median'; use one of vote, max, gmean, mean"):
        combine(OUTPUTS, TRACKS, "median")
    with pytest.raises(ValueError, match=r"10 rows, but `tracks` has shape \(9,\)"):
        combine(OUTPUTS, TRACKS[1:], "max")
    with pytest.raises(ValueError, match="Track 1 has no row"):
        combine(OUTPUTS, np.where(TRACKS == 1, 2, TRACKS), "max")
