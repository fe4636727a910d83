"""The three searches hold the numbers of their protocols, and `quick` finds what it is there for."""

from itertools import product

import numpy as np
import pytest

from music2vec_hf.probing.evaluation import choose_probe
from music2vec_hf.probing.probes import SEARCHES, ProbeData, ProbeSettings, Search, get_search, summed_layers
from music2vec_hf.probing.tasks.loading import TASKS

MODEL_LAYERS = ["conv", *map(str, range(13))]


def test_jukemir_is_the_grid_of_216():
    search = get_search("jukemir")
    expected = product(
        ("linear", "mlp"), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3), (64, 256), (False, True)
    )
    found = [
        (one.kind, one.learning_rate, one.dropout, one.weight_decay, one.batch_size, one.standardise)
        for one in search.settings
    ]
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


@pytest.mark.parametrize(
    ("task", "numbers"),
    {
        "magnatagatune": (3, 10, 100),
        "mtg-jamendo-genre": (3, 10, 100),
        "nsynth-pitch": (3, 10, 50),
        "gtzan": (6, 20, 100),
        "giantsteps": (5, 20, 100),
        "emomusic": (5, 20, 100),
        "vocalset-singer": (5, 20, 100),
        "vocalset-technique": (5, 10, 100),
        "custom": (5, 20, 100),
    }.items(),
)
def test_marble_waits_as_long_as_its_table_says(task, numbers):
    search = get_search("marble").for_task(task)
    assert (search.plateau_patience, search.patience, search.max_steps) == numbers
    assert get_search("quick").for_task(task) == get_search("quick")


def test_marbles_numbers_belong_to_tasks_that_exist():
    assert {name for name in get_search("marble").by_task if not name.startswith("vocalset")} <= set(TASKS)


def test_marble_tries_single_layers_and_the_weighted_sum_but_not_conv():
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
        return choose_probe(data, ["mel"], get_search("quick"))

    large, levelled = chosen(features), chosen(features / features.std(axis=0))
    assert not large.settings.standardise
    assert large.score > levelled.score + 0.2  # the same features without their sizes: four in noise of 400


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="no search 'big'; use one of quick, jukemir, marble"):
        get_search("big")
    with pytest.raises(ValueError, match="no probe 'tree'; use one of linear, mlp"):
        ProbeSettings("tree")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        ProbeSettings(dropout=1.0)
    with pytest.raises(ValueError, match="`patience` \\(0\\) must be 1 or more"):
        Search("none", SEARCHES["quick"].settings, None, 1, 0)
