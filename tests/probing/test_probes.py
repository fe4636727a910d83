"""Laws of the batched probes: batch equals alone, draws depend on seed and step only, features that tell are read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from music2vec_hf.probing.probes import ProbeData, ProbeJob, _initial_parameters, train_probes
from music2vec_hf.probing.searches import SEARCHES, ProbeSettings, Search, get_search

NUM_TRACKS, NUM_FEATURES = 150, 12
SHORT = Search("short", (), max_steps=120, eval_every=10, patience=4)
SETTINGS = (
    ProbeSettings("linear", learning_rate=1e-2, dropout_input=0.25, batch_size=32),
    ProbeSettings("linear", learning_rate=1e-3, weight_decay=1e-3, batch_size=32),
    ProbeSettings("mlp", learning_rate=1e-2, dropout=0.5, dropout_input=0.25, batch_size=32, hidden_size=16),
    ProbeSettings("mlp", learning_rate=3e-3, dropout=0.25, batch_size=48, hidden_size=16, standardise=False),
)


def toy_data(problem_type="single_label_classification", signal=1.5, seed=0):
    """Two layers of different width; layer "good" carries the label, layer "noise" does not."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, 2 * NUM_TRACKS)
    good = rng.standard_normal((2 * NUM_TRACKS, NUM_FEATURES)) + signal * np.eye(4, NUM_FEATURES)[classes]
    features = {"good": 3 + 2 * good, "noise": rng.standard_normal((2 * NUM_TRACKS, 7))}
    targets = {
        "single_label_classification": (classes, 4, "accuracy"),
        "multi_label_classification": (np.eye(4)[classes], 4, "roc_auc"),
        "regression": (5 + 2 * good[:, :2], 2, "r2"),
    }
    values, num_outputs, metric = targets[problem_type]
    train = {layer: array[:NUM_TRACKS].astype(np.float32) for layer, array in features.items()}
    validation = {layer: array[NUM_TRACKS:].astype(np.float32) for layer, array in features.items()}
    return ProbeData(train, values[:NUM_TRACKS], validation, values[NUM_TRACKS:], problem_type, num_outputs, metric)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_probe_trained_in_a_batch_equals_the_probe_trained_alone(problem_type):
    data = toy_data(problem_type)
    jobs = [ProbeJob(layer, one, seed) for layer in ("good", "noise") for one in SETTINGS for seed in (0, 1)]
    together = train_probes(jobs, data, SHORT)
    alone = train_probes(jobs, data, SHORT, batched=False)
    for batched, single in zip(together, alone, strict=True):
        assert batched.job == single.job and batched.step == single.step
        assert batched.score == pytest.approx(single.score, abs=1e-6)
        for one, other in zip(batched.parameters, single.parameters, strict=True):
            # Products of another batch size add in another order; 120 Adam steps let the last digits grow.
            np.testing.assert_allclose(one, other, atol=2e-4)
    assert len({probe.step for probe in together}) > 1, "probes stopped at one step: early stopping was not tried"


def test_targets_are_standardised_by_the_tasks_own_statistics_where_it_has_some():
    data = toy_data("regression")
    (by_split,) = train_probes([ProbeJob("good", SETTINGS[0], 0)], data, SHORT)
    (by_task,) = train_probes(
        [ProbeJob("good", SETTINGS[0], 0)], replace(data, target_statistics=((4.0, 5.0), (1.0, 2.0))), SHORT
    )
    np.testing.assert_allclose(by_split.target_mean, data.targets.mean(0), rtol=1e-5)
    assert by_task.target_mean.tolist() == [4.0, 5.0] and by_task.target_scale.tolist() == [1.0, 2.0]


def test_results_do_not_depend_on_the_order_of_jobs():
    jobs = [ProbeJob("good", one, seed) for one in SETTINGS for seed in (0, 1)]
    forward, backward = train_probes(jobs, toy_data(), SHORT), train_probes(jobs[::-1], toy_data(), SHORT)
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one.job == other.job and one.score == pytest.approx(other.score, abs=1e-6)


def test_global_random_state_is_not_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_probes([ProbeJob("good", SETTINGS[2], 0)], toy_data(), SHORT)
    assert torch.equal(before, torch.get_rng_state())


def test_linear_probe_step_equals_torch_adam():
    """Three steps against torch's own modules, without dropout and with the whole split as batch."""
    data = toy_data()
    settings = ProbeSettings("linear", learning_rate=1e-2, weight_decay=1e-2, batch_size=NUM_TRACKS)
    job = ProbeJob("good", settings, 3)
    three_steps = Search("three", (), max_steps=3, eval_every=3, patience=9)
    trained = train_probes([job], data, three_steps)[0]
    assert trained.step == 3
    inputs = torch.as_tensor((data.features["good"] - trained.feature_mean) / trained.feature_scale)
    layer = torch.nn.Linear(NUM_FEATURES, 4)
    weight, bias = _initial_parameters(job, NUM_FEATURES, 4)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias[0])
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(inputs), torch.as_tensor(data.targets)).backward()
        optimizer.step()
    np.testing.assert_allclose(trained.parameters[0], layer.weight.detach().numpy().T, atol=1e-5)
    np.testing.assert_allclose(trained.parameters[1], layer.bias.detach().numpy(), atol=1e-5)


def test_separable_features_score_high_and_noise_scores_chance():
    data = toy_data(signal=6.0)
    probes = train_probes([ProbeJob(layer, SETTINGS[0], 0) for layer in ("good", "noise")], data, SHORT)
    assert probes[0].score > 0.95
    assert probes[1].score < 0.45  # chance 0.25, standard deviation 0.035, best of 13 looks


def test_predict_gives_what_validation_saw():
    data = toy_data("regression")
    probe = train_probes([ProbeJob("good", SETTINGS[2], 0)], data, SHORT)[0]
    predictions = probe.predict(data.validation_features["good"])
    residual = ((predictions - data.validation_targets) ** 2).sum(0)
    spread = ((data.validation_targets - data.validation_targets.mean(0)) ** 2).sum(0)
    assert np.mean(1 - residual / spread) == pytest.approx(probe.score, abs=1e-5)
    # Targets have mean 5: predictions come back in the targets' own units.
    assert predictions.mean() == pytest.approx(5, abs=1.0)


def test_a_constant_feature_is_harmless():
    data = toy_data()
    for features in (data.features, data.validation_features):
        features["good"][:, -1] = 7.0
    assert train_probes([ProbeJob("good", SETTINGS[0], 0)], data, SHORT)[0].score > 0.5


def test_mistakes_get_a_sentence():
    with pytest.raises(ValueError, match="no search 'big'; use one of quick"):
        get_search("big")
    with pytest.raises(ValueError, match="no probe 'tree'; use one of linear, mlp"):
        ProbeSettings("tree")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        ProbeSettings(dropout=1.0)
    with pytest.raises(ValueError, match="No features for layer 9; there are good, noise"):
        train_probes([ProbeJob("9", SETTINGS[0], 0)], toy_data(), SHORT)


def test_quick_has_both_kinds_of_probe():
    assert {settings.kind for settings in SEARCHES["quick"].settings} == {"linear", "mlp"}
