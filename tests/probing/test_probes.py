"""Probes: the searches hold the numbers of their protocols; clips become tracks in four ways."""

from dataclasses import replace
from itertools import product
from operator import attrgetter

import numpy as np
import pytest
import torch

from music2vec_hf.common.metrics import get_metric
from music2vec_hf.probing.evaluation import choose_probe
from music2vec_hf.probing.probes import (
    ENSEMBLES,
    SEARCHES,
    ProbeData,
    ProbeSettings,
    Search,
    combine,
    get_search,
    summed_layers,
    track_scores,
)
from music2vec_hf.probing.tasks.loading import TASKS

MODEL_LAYERS = ["conv", *map(str, range(13))]
RNG = np.random.default_rng(0)
OUTPUTS, TRACKS = RNG.standard_normal((10, 4)), np.array([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])


def test_jukemir_is_the_grid_of_216():
    search = get_search("jukemir")
    rates, dropouts, decays = (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3)
    expected = product(("linear", "mlp"), rates, dropouts, decays, (64, 256), (False, True))
    names = ("kind", "learning_rate", "dropout", "weight_decay", "batch_size", "standardise")
    found = [attrgetter(*names)(one) for one in search.settings]
    assert len(found) == 216 and set(found) == set(expected)
    assert all(one.dropout_input == one.dropout and one.hidden_size == 512 for one in search.settings)
    assert (search.eval_every, search.patience, search.max_steps, search.epochs) == (8, 256, None, False)
    assert search.plateau_patience is None and search.layers(MODEL_LAYERS) == MODEL_LAYERS


def test_marble_has_six_rates_of_one_probe():
    search = get_search("marble")
    assert [one.learning_rate for one in search.settings] == [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]
    for one in search.settings:
        assert (one.kind, one.hidden_size, one.dropout, one.dropout_input) == ("mlp", 512, 0.2, 0)
        assert (one.weight_decay, one.batch_size, one.standardise) == (0, 64, False)
    assert search.epochs and (search.max_steps, search.eval_every) == (100, 1)


WAITS = {
    "magnatagatune": (3, 10, 100), "mtg-jamendo-genre": (3, 10, 100), "nsynth-pitch": (3, 10, 50),
    "gtzan": (6, 20, 100), "giantsteps": (5, 20, 100), "emomusic": (5, 20, 100),
    "vocalset-singer": (5, 20, 100), "vocalset-technique": (5, 10, 100), "custom": (5, 20, 100),
}  # fmt: skip


@pytest.mark.parametrize("task, numbers", WAITS.items())
def test_marble_waits_as_long_as_its_table_says(task, numbers):
    search = get_search("marble").for_task(task)
    assert (search.plateau_patience, search.patience, search.max_steps) == numbers
    assert get_search("quick").for_task(task) == get_search("quick")


def test_marble_tries_single_layers_and_the_weighted_sum_but_not_conv():
    assert {name for name in get_search("marble").by_task if not name.startswith("vocalset")} <= set(TASKS)
    search = get_search("marble")
    assert search.layers(MODEL_LAYERS) == [*map(str, range(13)), "weighted"]
    assert summed_layers(["conv", "10", "9", "0", "1"]) == ["1", "9", "10"]
    assert search.layers(["mfcc"]) == ["mfcc"]  # nothing to sum
    assert search.layers(["3"]) == ["3"]


def test_quick_costs_at_most_a_twentieth_of_jukemir():
    quick, jukemir = get_search("quick"), get_search("jukemir")
    fewest = len(jukemir.settings) * jukemir.eval_every * jukemir.patience
    assert 20 * len(quick.settings) * quick.max_steps <= fewest
    assert {settings.kind for settings in quick.settings} == {"linear", "mlp"}


def test_quick_sees_features_as_they_are_where_their_size_tells():
    random = np.random.default_rng(0)
    targets = random.integers(0, 4, 300)
    features = 0.02 * random.standard_normal((300, 400))
    features[:, :4] = 4 * np.eye(4)[targets] + 2 * random.standard_normal((300, 4))

    def chosen(features):
        train, validation = np.split(features.astype(np.float32), [100])
        kind = "single_label_classification"
        data = ProbeData({"mel": train}, targets[:100], {"mel": validation}, targets[100:], kind, 4, "accuracy")
        return choose_probe(data, ["mel"], replace(get_search("quick"), max_steps=160))

    large, levelled = chosen(features), chosen(features / features.std(axis=0))
    assert not large.settings.standardise
    assert large.score > levelled.score + 0.2  # the same features without their sizes: four in noise of 400


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


def one_hot(key, height=1.0):
    return height * np.eye(24)[key]


VOTE_IS_RIGHT = [one_hot(3), one_hot(3), one_hot(8, 9.0)]  # the loudest clip is wrong
MAX_IS_RIGHT = [one_hot(8), one_hot(8), one_hot(3, 9.0)]  # and here it alone is right
SONG_OF_CLIP = torch.as_tensor([0, 0, 0, 1, 1, 1])


def test_keys_get_the_best_of_four_ways_of_each_probe():
    outputs = torch.as_tensor(np.stack([VOTE_IS_RIGHT * 2, MAX_IS_RIGHT * 2]))
    found = track_scores("weighted_key_score", torch.tensor([3, 3]), outputs, SONG_OF_CLIP)
    assert found == [(1, "vote"), (1, "max")]


def test_ties_fall_to_the_first_class_and_the_first_way():
    logits = np.array([[0, 0, 5.0], [0, 5.0, 0]])
    assert combine(logits, np.zeros(2, int), "vote").argmax(1).tolist() == [1]
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


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="no search 'big'; use one of quick, jukemir, marble"):
        get_search("big")
    with pytest.raises(ValueError, match="no probe 'tree'; use one of linear, mlp"):
        ProbeSettings("tree")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        ProbeSettings(dropout=1.0)
    with pytest.raises(ValueError, match="`patience` \\(0\\) must be 1 or more"):
        Search("none", SEARCHES["quick"].settings, None, 1, 0)
    with pytest.raises(ValueError, match="no ensemble 'median'; use one of vote, max, gmean, mean"):
        combine(OUTPUTS, TRACKS, "median")
    with pytest.raises(ValueError, match=r"10 rows, but `tracks` has shape \(9,\)"):
        combine(OUTPUTS, TRACKS[1:], "max")
    with pytest.raises(ValueError, match="Track 1 has no row"):
        combine(OUTPUTS, np.where(TRACKS == 1, 2, TRACKS), "max")
