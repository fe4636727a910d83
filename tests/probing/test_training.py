"""Laws of the batched probes: batch equals alone, draws depend on seed and step only, features that tell are read."""

from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_tasks import probe_data, song_task

from music2vec_hf.common.metrics import get_metric
from music2vec_hf.probing import training
from music2vec_hf.probing.probes import ENSEMBLES, ProbeData, ProbeJob, ProbeSettings, Search, combine, get_search
from music2vec_hf.probing.training import Draws, Features, Progress, Stack, Targets, initial_parameters, train_probes

NUM_TRACKS, NUM_FEATURES = 150, 12
SHORT = Search("short", (), max_steps=120, eval_every=10, patience=4)
SETTINGS = (
    ProbeSettings("linear", learning_rate=1e-2, dropout_input=0.25, batch_size=32),
    ProbeSettings("linear", learning_rate=1e-3, weight_decay=1e-3, batch_size=32),
    ProbeSettings("mlp", learning_rate=1e-2, dropout=0.5, dropout_input=0.25, batch_size=32, hidden_size=16),
    ProbeSettings("mlp", learning_rate=3e-3, dropout=0.25, batch_size=48, hidden_size=16, standardise=False),
)


def toy_data(problem_type="single_label_classification"):
    """Two layers of different width; layer "good" carries the label, layer "noise" does not."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 2 * NUM_TRACKS)
    good = rng.standard_normal((2 * NUM_TRACKS, NUM_FEATURES)) + 1.5 * np.eye(4, NUM_FEATURES)[classes]
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


def test_targets_are_standardised_by_the_tasks_own_statistics_where_it_has_some():
    data = toy_data("regression")
    of_task = replace(data, target_statistics=((4.0, 5.0), (1.0, 2.0)))
    by_split, by_task = (train_probes([ProbeJob("good", SETTINGS[0], 0)], each, SHORT)[0] for each in (data, of_task))
    np.testing.assert_allclose(by_split.target_mean, data.targets.mean(0), rtol=1e-5)
    assert by_task.target_mean.tolist() == [4.0, 5.0] and by_task.target_scale.tolist() == [1.0, 2.0]


def test_global_random_state_is_not_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_probes([ProbeJob("good", SETTINGS[2], 0)], toy_data(), SHORT)
    assert torch.equal(before, torch.get_rng_state())


def test_small_products_are_left_to_one_thread_and_the_callers_number_comes_back(monkeypatch):
    data, seen = toy_data(), []
    monkeypatch.setattr(training, "_train_block", lambda *args: seen.append(torch.get_num_threads()) or [(0, None)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for least in (training.MIN_FLOPS_OF_THREADS, 0):
            monkeypatch.setattr(training, "MIN_FLOPS_OF_THREADS", least)
            train_probes([ProbeJob("good", SETTINGS[0], 0)], data, SHORT)
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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
    weight, bias = initial_parameters(job, NUM_FEATURES, 4)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias[0])
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(inputs), torch.as_tensor(data.targets)).backward()
        optimizer.step()
    np.testing.assert_allclose(trained.parameters[0], layer.weight.detach().numpy().T, atol=1e-5)
    np.testing.assert_allclose(trained.parameters[1], layer.bias.detach().numpy(), atol=1e-5)


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
    for layer in ("9", "weighted"):
        with pytest.raises(ValueError, match=f"No features for layer {layer}; there are good, noise"):
            train_probes([ProbeJob(layer, SETTINGS[0], 0)], toy_data(), SHORT)


def protocol(name, steps):
    """A published protocol, cut short, and jobs that cover what its settings differ in."""
    search = replace(get_search(name), max_steps=steps)
    chosen = search.settings
    if name == "jukemir":  # two of the nine that share inputs, for each of four inputs
        chosen = [one for one in chosen if one.dropout != 0.5 and (one.batch_size == 64) == one.standardise]
        chosen = [one for one in chosen if (one.learning_rate, one.weight_decay) in ((1e-3, 0), (1e-4, 1e-3))]
    layers = ("2", "weighted") if name == "marble" else ("2",)
    return search, [ProbeJob(layer, replace(one, hidden_size=32), 0) for layer in layers for one in chosen]


def model_data(problem_type="single_label_classification", carrier="2"):
    """Layers "conv" and "0" to "3" of one width; only `carrier` tells the label."""
    data, rng = toy_data(problem_type), np.random.default_rng(9)

    def layers(features):
        noise = {name: rng.standard_normal(features["good"].shape, np.float32) for name in ("conv", *"0123")}
        return noise | {carrier: features["good"] - 3}

    return replace(data, features=layers(data.features), validation_features=layers(data.validation_features))


@pytest.mark.parametrize(
    ("name", "steps", "problem_type"),
    [
        ("quick", 300, "multi_label_classification"),
        ("jukemir", 120, "single_label_classification"),
        ("marble", 40, "regression"),
    ],
)
def test_every_protocol_trains_the_same_probe_in_a_batch_and_alone(name, steps, problem_type):
    search, jobs = protocol(name, steps)
    data = model_data(problem_type)
    together, backward = train_probes(jobs, data, search), train_probes(jobs[::-1], data, search)[::-1]
    alone = [train_probes([job], data, search)[0] for job in jobs]
    for batched, *others in zip(together, backward, alone, strict=True):
        for other in others:
            assert (batched.job, batched.step) == (other.job, other.step)
            assert batched.score == pytest.approx(other.score, abs=1e-6)
            for one, parameter in zip(batched.parameters, other.parameters, strict=True):
                np.testing.assert_allclose(one, parameter, atol=1e-5)
            if batched.layer_weights is not None:
                np.testing.assert_allclose(batched.layer_weights, other.layer_weights, atol=1e-5)
    steps_kept = {probe.step for probe in together}
    assert max(steps_kept) > 100 and len(steps_kept) > 1, "probes stopped at one step: early stopping was not tried"


@pytest.mark.parametrize("layer", ["2", "weighted"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_gradients_equal_those_of_autograd(problem_type, kind, layer):
    """The products written out in `training.py`, against the loss of torch on the same draws."""
    data = model_data(problem_type)
    settings = ProbeSettings(kind, dropout=0.25, dropout_input=0.5, batch_size=32, hidden_size=16)
    features, targets = Features(data, layer, True, "cpu"), Targets(data, "cpu")
    probes = [Progress(seed, ProbeJob(layer, settings, seed), SHORT) for seed in (0, 1)]
    stack = Stack(probes, features, data.num_outputs)
    draws = Draws(7, NUM_TRACKS, 32, False, torch.device("cpu"))
    with torch.no_grad():
        stack.find_gradients(targets, draws)
    rows = draws.rows(0)
    for position in range(2):
        leaves = [tensor[position].clone().requires_grad_() for tensor in stack.parameters]
        inputs = features.train[..., rows, :]
        if layer == "weighted":
            inputs = (leaves[-1].softmax(-1).T[..., None] * inputs).sum(0)
        outputs = (inputs * draws.mask("input", 0, NUM_FEATURES, 0.5)) @ leaves[0].T + leaves[1]
        if kind == "mlp":
            outputs = outputs.relu() * draws.mask("hidden", 0, 16, 0.25) @ leaves[2].T + leaves[3]
        loss = {
            "single_label_classification": lambda out: F.cross_entropy(out, torch.as_tensor(data.targets)[rows]),
            "multi_label_classification": lambda out: F.binary_cross_entropy_with_logits(out, targets.train[rows]),
            "regression": lambda out: F.mse_loss(out, targets.train[rows]),
        }[problem_type](outputs)
        for found, expected in zip(stack.gradients, torch.autograd.grad(loss, leaves), strict=True):
            torch.testing.assert_close(found[position], expected, atol=1e-6, rtol=1e-4)


def test_mini_batches_are_samples_without_replacement_or_epochs():
    sampled = [Draws(step, 10, 4, False, torch.device("cpu")).rows(0).tolist() for step in range(1, 30)]
    assert all(len(set(rows)) == 4 for rows in sampled) and set(chain(*sampled)) == set(range(10))
    assert any(set(one) & set(other) for one, other in pairwise(sampled))
    epochs = [Draws(step, 10, 4, True, torch.device("cpu")).rows(0).tolist() for step in range(1, 7)]
    assert [len(rows) for rows in epochs] == [4, 4, 2] * 2
    assert sorted(chain(*epochs[:3])) == sorted(chain(*epochs[3:])) == list(range(10))
    assert epochs[:3] != epochs[3:]


def test_masks_drop_their_share_and_keep_the_mean():
    draws = Draws(3, 500, 400, False, torch.device("cpu"))
    masks = {p: draws.mask("input", 0, 300, p) for p in (0.2, 0.25, 0.75)}
    for probability, mask in masks.items():
        assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - probability)])
        # 120,000 values: six standard deviations are below 0.009.
        assert (mask == 0).float().mean().item() == pytest.approx(probability, abs=0.009)
    assert ((masks[0.75] > 0) <= (masks[0.25] > 0)).all()  # one draw, cut at two probabilities
    others = [Draws(4, 500, 400, False, torch.device("cpu")).mask("input", 0, 300, 0.25)]
    others += [draws.mask("input", 1, 300, 0.25), draws.mask("hidden", 0, 300, 0.25)]
    for other in others:
        agree = ((other > 0) == (masks[0.25] > 0)).float().mean().item()
        assert agree == pytest.approx(0.75**2 + 0.25**2, abs=0.01)


STILL = ProbeSettings("linear", learning_rate=1e-12, batch_size=64)  # never gets better


def looks_of(search, data, monkeypatch):
    steps, look = [], training._look
    monkeypatch.setattr(training, "_look", lambda *arguments: (steps.append(arguments[2]), look(*arguments))[1])
    (probe,) = train_probes([ProbeJob("2", STILL, 0)], data, search)
    return probe, steps


def test_jukemir_looks_at_the_untrained_probe_and_stops_after_256_looks_without_a_better_one(monkeypatch):
    probe, steps = looks_of(get_search("jukemir"), model_data(), monkeypatch)
    assert probe.step == 0 and steps == list(range(0, 8 * 256 + 1, 8))


def test_marble_looks_after_each_epoch_and_stops_by_its_task(monkeypatch):
    data = replace(model_data(), task_name="magnatagatune")
    probe, steps = looks_of(get_search("marble"), data, monkeypatch)
    epoch = 3  # 150 rows in batches of 64
    assert probe.step == epoch and steps == [epoch * number for number in range(1, 12)]  # the first, then 10 in vain


def test_marbles_plateau_halves_the_rate():
    search = get_search("marble").for_task("magnatagatune")
    progress = Progress(0, ProbeJob("2", search.settings[3], 0), search)
    rates = []
    for epoch in range(1, 11):
        progress.better(0.5, "gmean", epoch)
        rates.append(progress.rate)
    # Epoch 1 is the best; the fourth in vain after it (patience 3) halves the rate, and so does the fourth after that.
    assert rates == [1e-3] * 4 + [5e-4] * 4 + [2.5e-4] * 2
    other = Progress(0, ProbeJob("2", search.settings[3], 0), get_search("jukemir"))
    assert [other.better(0.5, "gmean", step) for step in range(20)] == [True] + [False] * 19 and other.rate == 1e-3


def test_the_halved_rate_is_the_one_that_steps(monkeypatch):
    rates, adam = [], training.adam
    monkeypatch.setattr(
        training, "adam", lambda *parts, **options: (rates.append(options["lr"]), adam(*parts, **options))
    )
    search = replace(get_search("marble"), max_steps=3, plateau_patience=0)
    train_probes([ProbeJob("2", replace(STILL, learning_rate=1e-6), 0)], model_data(), search)
    assert rates == [1e-6] * 6 + [5e-7] * 3  # epochs of three steps; the second brings nothing better


def test_the_weighted_sum_leaves_layer_0_out_and_finds_the_layer_that_tells():
    settings = ProbeSettings("mlp", learning_rate=1e-2, dropout=0.2, standardise=False, hidden_size=32)
    search, job = replace(get_search("marble"), max_steps=40), ProbeJob("weighted", settings, 0)
    (untold,) = train_probes([job], model_data(carrier="0"), search)
    assert untold.score < 0.45  # chance 0.25, standard deviation 0.035, best of 40 looks
    data = model_data(carrier="2")
    (probe,) = train_probes([job], data, search)
    assert probe.score > 0.6 and probe.layer_weights.argmax() == 1
    assert probe.layer_weights.shape == (3,) and probe.layer_weights.sum() == pytest.approx(1)
    outputs = probe.predict(data.validation_features)
    assert np.mean(outputs.argmax(1) == data.validation_targets) == pytest.approx(probe.score)
    spoiled = data.validation_features | {"0": data.features["0"] * 100, "conv": data.features["conv"] * 100}
    np.testing.assert_array_equal(probe.predict(spoiled), outputs)


def test_a_probe_that_stops_being_finite_is_an_error():
    data = toy_data()
    data.features["good"][0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        train_probes([ProbeJob("good", SETTINGS[3], 0)], data, SHORT)


def test_validation_scores_songs_not_clips():
    data = probe_data(*song_task())
    (probe,) = train_probes([ProbeJob("1", SETTINGS[0], 0)], data, SHORT)
    outputs, score = probe.predict(data.validation_features["1"]), get_metric("weighted_key_score")
    of_songs = {way: combine(outputs, data.validation_tracks, way) for way in ENSEMBLES}
    by_song = {way: float(score(data.validation_targets, found)) for way, found in of_songs.items()}
    assert probe.score == pytest.approx(max(by_song.values())) and by_song[probe.ensemble] == max(by_song.values())
    by_clip = score(data.validation_targets[data.validation_tracks], outputs)
    assert probe.score > by_clip + 0.05
