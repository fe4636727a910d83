"""Scores with their intervals, averages over tasks, and paired differences of sources."""

from dataclasses import replace

import numpy as np
import pytest

from music2vec_hf.common.metrics import get_metric
from music2vec_hf.probing.scores import (
    Estimate,
    Predictions,
    averages,
    draw_counts,
    estimate,
    score_predictions,
    task_counts,
    task_estimates,
)
from music2vec_hf.probing.scores import paired_difference_of_predictions as paired_difference
from music2vec_hf.probing.tasks.loading import TASKS


def noisy_predictions(noise, seed):
    """Predictions of two tasks on the same 300 tracks, right but for noise."""
    rng = np.random.default_rng(0)
    ids = tuple(f"track-{number}" for number in range(300))
    classes, values = rng.integers(0, 5, 300), rng.standard_normal((300, 2))
    rng = np.random.default_rng(seed)
    logits = np.eye(5)[classes] + noise * rng.standard_normal((2, 300, 5))
    guesses = values + noise * rng.standard_normal((2, 300, 2))
    return {
        "synthetic-genre": Predictions("synthetic-genre", tuple("abcde"), ids, classes, logits),
        "synthetic-emotion": Predictions("synthetic-emotion", ("arousal", "valence"), ids, values, guesses),
    }


def test_the_interval_covers_the_true_accuracy_about_95_times_in_100():
    rng = np.random.default_rng(6)
    logits = np.tile([1.0, 0.0], (1, 100, 1))
    covered = 0
    for number in range(200):
        references = (rng.random(100) >= 0.7).astype(int)  # always guessing class 0 is right with probability 0.7
        predictions = Predictions("", ("0", "1"), tuple(map(str, range(100))), references, logits)
        low, high = estimate(predictions, "accuracy", draw_counts(100, 300, seed=number)).interval
        covered += low <= 0.7 <= high
    # 0.95 x 200 = 190, binomial standard deviation 3.1; percentile intervals cover slightly less than promised.
    assert 178 <= covered <= 199


def few_tracks(task, noise, num_tracks, seed):
    """Predictions of a synthetic task on few tracks; with little noise nearly all right, with -1 all wrong."""
    rng, labels = np.random.default_rng(seed), {"genre": 5, "key": 24, "tags": 3, "emotion": 2}[task]
    if task == "emotion":
        references = rng.standard_normal((num_tracks, labels))
    elif task == "tags":
        references = (rng.random((num_tracks, labels)) < 0.5).astype(np.float32)
        references[0], references[1] = 0, 1
    else:
        references = rng.integers(0, labels, num_tracks)
    told = np.eye(labels)[references] if references.ndim == 1 else references
    outputs = (-told if noise < 0 else told + noise * rng.standard_normal(told.shape))[None]
    names = ("arousal", "valence") if task == "emotion" else tuple(map(str, range(labels)))
    return Predictions(f"synthetic-{task}", names, tuple(map(str, range(num_tracks))), references, outputs)


@pytest.mark.parametrize("num_tracks, noise", [(3, -1), (3, 0.01), (9, 0.4), (9, 2), (30, -1), (30, 2)])
@pytest.mark.parametrize("task", ["genre", "key", "tags", "emotion"])
def test_intervals_stay_within_the_range_of_the_metric_and_hold_the_score(task, noise, num_tracks):
    for seed in range(5):
        item = few_tracks(task, noise, num_tracks, seed)
        for metric, score in score_predictions(item, TASKS[item.task].metrics).items():
            low, high = score["interval"]
            about = get_metric(metric, item.labels)
            assert about.lowest <= low <= score["value"] <= high <= about.highest
        other = replace(item, outputs=few_tracks(task, -1, num_tracks, seed).outputs)
        for difference in paired_difference({item.task: item}, {item.task: other}).values():
            low, high = difference.interval
            assert low <= difference.value <= high
            assert task == "emotion" or -1 <= low <= high <= 1
        mean = Estimate.mean(list(task_estimates({item.task: item}).values()))
        assert mean.interval[1] <= 1 and (task == "emotion" or mean.interval[0] >= 0)


def test_an_interval_is_only_cut_where_the_range_ends():
    """Resampled values lie above the score, as those of average precision do; shifted, they begin below 0."""
    resampled = np.random.default_rng(1).binomial(9, 0.3, 1000) / 9
    low, high = np.percentile(resampled, [2.5, 97.5]) - resampled.mean() + 2 / 9
    assert low < 0
    assert Estimate(2 / 9, resampled).interval == (low, high)
    assert Estimate(2 / 9, resampled, 0.0, 1.0).interval == (0.0, high)


def test_tasks_on_the_same_tracks_share_their_resamples():
    counts = task_counts({"one": ["a", "b", "c"], "two": ["c", "a", "b"], "three": ["x", "y", "z"]}, 50, seed=0)
    np.testing.assert_array_equal(counts["one"][:, [2, 0, 1]], counts["two"])
    assert (counts["one"] != counts["three"]).any()
    assert (counts["one"].sum(axis=1) == 3).all()


def test_both_averages_have_their_definition():
    scores = {
        "synthetic-genre": {"accuracy": 0.4},
        "synthetic-tags": {"roc_auc": 0.8, "average_precision": 0.4},
        "synthetic-emotion": {"r2_arousal": 0.3, "r2_valence": 0.1},
    }
    assert averages(scores) == {"task_mean": pytest.approx((0.4 + 0.6 + 0.2) / 3), "flat_mean": pytest.approx(2 / 5)}


def test_the_difference_of_equal_sources_is_zero_and_of_unequal_ones_is_found():
    good, bad = noisy_predictions(0.4, 1), noisy_predictions(0.8, 2)
    for difference in paired_difference(good, good).values():
        assert difference.value == 0 and difference.interval == (0, 0)
    there, back = paired_difference(good, bad), paired_difference(bad, good)
    for name in ("synthetic-genre", "synthetic-emotion", "task_mean"):
        assert there[name].interval[0] > 0 and back[name].value == pytest.approx(-there[name].value)
    expected = np.mean([there[name].value for name in ("synthetic-genre", "synthetic-emotion")])
    assert there["task_mean"].value == pytest.approx(expected)


def test_a_paired_interval_is_narrower_than_an_unpaired_one():
    good = noisy_predictions(0.6, 1)
    item = good["synthetic-genre"]
    shifted = item.outputs + 0.2 * np.random.default_rng(3).standard_normal(item.outputs.shape)
    near = good | {"synthetic-genre": replace(item, outputs=shifted)}
    low, high = paired_difference(good, near)["synthetic-genre"].interval
    single = score_predictions(item, ["accuracy"])["accuracy"]["interval"]
    assert high - low < single[1] - single[0]


def test_predictions_in_another_order_are_paired_by_track():
    good, bad = noisy_predictions(0.4, 1), noisy_predictions(0.8, 2)
    order = np.random.default_rng(4).permutation(300)
    mixed = {}
    for task, item in bad.items():
        ids = tuple(item.track_ids[row] for row in order)
        mixed[task] = replace(item, track_ids=ids, references=item.references[order], outputs=item.outputs[:, order])
    assert paired_difference(good, mixed) == paired_difference(good, bad)
    fewer = {"synthetic-genre": replace(bad["synthetic-genre"], track_ids=("x",) * 300)}
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(good, fewer)
    with pytest.raises(ValueError, match="No common task"):
        paired_difference(good, {"other": bad["synthetic-genre"]})
