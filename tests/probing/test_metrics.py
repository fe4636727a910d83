"""Metrics against independent computations: loops written from the definitions, mir_eval, scikit-learn."""

import mir_eval.key
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from music2vec_hf.probing import metrics
from music2vec_hf.probing.bootstrap import draw_counts, interval, metric_of_counts, task_counts
from music2vec_hf.probing.selection import selection_scores


def pair_auc(references, scores):
    """Share of (positive, negative) pairs that are ranked rightly, ties one half."""
    pairs = [(p, n) for p in scores[references == 1] for n in scores[references == 0]]
    return np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])


def stepwise_average_precision(references, scores):
    """Sum over distinct thresholds of the gain in recall times the precision."""
    total, previous = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        recall = references[found].sum() / references.sum()
        total += (recall - previous) * references[found].mean()
        previous = recall
    return total


@pytest.fixture
def tag_data():
    rng = np.random.default_rng(0)
    references = (rng.random((60, 5)) < 0.3).astype(int)
    # One decimal gives ties.
    scores = np.round(rng.standard_normal((60, 5)) + references, 1)
    return references, scores


def test_key_table_equals_mir_eval_for_all_pairs():
    expected = [
        [mir_eval.key.weighted_score(reference, estimate) for estimate in metrics.KEY_LABELS]
        for reference in metrics.KEY_LABELS
    ]
    np.testing.assert_array_equal(metrics.key_score_table(), expected)


def test_fifth_above_counts_in_one_direction_only():
    c, f, g = (metrics.KEY_LABELS.index(f"{tonic} major") for tonic in "CFG")
    assert metrics.key_score([c], [g]) == 0.5
    assert metrics.key_score([c], [f]) == 0.0
    assert metrics.key_score([c], [f], symmetric=True) == 0.5


def test_symmetric_key_table_differs_only_by_the_fifth_below():
    difference = metrics.key_score_table(symmetric=True) - metrics.key_score_table()
    assert (difference > 0).sum() == 24 and set(np.unique(difference)) == {0.0, 0.5}
    np.testing.assert_array_equal(metrics.key_score_table(symmetric=True), metrics.key_score_table(symmetric=True).T)


def test_tag_scores_equal_loops_from_the_definition(tag_data):
    references, scores = tag_data
    expected_auc = np.mean([pair_auc(references[:, tag], scores[:, tag]) for tag in range(5)])
    expected_ap = np.mean([stepwise_average_precision(references[:, tag], scores[:, tag]) for tag in range(5)])
    assert metrics.macro_roc_auc(references, scores).value == pytest.approx(expected_auc)
    assert metrics.macro_average_precision(references, scores).value == pytest.approx(expected_ap)


def test_tags_without_positive_or_negative_are_left_out_and_named(tag_data):
    references, scores = tag_data
    references = references.copy()
    references[:, 1], references[:, 3] = 0, 1
    score = metrics.macro_roc_auc(references, scores)
    assert score.excluded == (1, 3) and np.isnan(score.per_tag[[1, 3]]).all()
    assert score.value == pytest.approx(np.mean([pair_auc(references[:, tag], scores[:, tag]) for tag in (0, 2, 4)]))
    with pytest.raises(ValueError, match="No tag has both a positive and a negative track"):
        metrics.macro_roc_auc(np.zeros((4, 2)), np.zeros((4, 2)))


def test_r2_equals_its_formula():
    rng = np.random.default_rng(1)
    references, predictions = rng.standard_normal((40, 2)), rng.standard_normal((40, 2))
    expected = 1 - ((references - predictions) ** 2).sum(0) / ((references - references.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(metrics.r2_per_dimension(references, predictions), expected)


def test_unknown_metric_lists_the_allowed_ones():
    with pytest.raises(ValueError, match=r"no metric 'f1'.*accuracy.*r2_arousal"):
        metrics.compute_metric("f1", np.zeros(3), np.zeros((3, 2)), ("arousal",))


def test_evaluate_metrics_accumulate_batches_and_equal_the_functions(tmp_path, tag_data):
    references, scores = tag_data
    rng = np.random.default_rng(2)
    values = rng.standard_normal((60, 2))
    guesses = values + rng.standard_normal((60, 2))
    keys, key_guesses = rng.integers(0, 24, 60), rng.integers(0, 24, 60)
    cases = [
        (metrics.MacroROCAUC, references, scores, {"roc_auc": roc_auc_score(references, scores)}),
        (metrics.MacroAveragePrecision, references, scores, {"num_excluded_tags": 0}),
        (metrics.Accuracy, keys, key_guesses, {"accuracy": np.mean(keys == key_guesses)}),
        (metrics.WeightedKeyScore, keys, key_guesses, {"weighted_key_score": metrics.key_score(keys, key_guesses)}),
        (metrics.RegressionR2, values, guesses, {"r2_1": r2_score(values[:, 1], guesses[:, 1])}),
    ]
    for number, (metric_class, truth, guess, expected) in enumerate(cases):
        metric = metric_class(cache_dir=str(tmp_path), experiment_id=str(number))
        for start in range(0, 60, 25):
            metric.add_batch(predictions=guess[start : start + 25], references=truth[start : start + 25])
        result = metric.compute()
        assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_selection_scores_equal_the_test_metrics(tag_data):
    references, scores = tag_data
    rng = np.random.default_rng(3)
    many_ties, untied = np.round(rng.standard_normal(scores.shape), 1), rng.standard_normal(scores.shape)
    zeros = np.where(rng.random(scores.shape) < 0.5, 0.0, -0.0)  # which are equal
    stacked = np.stack([scores, many_ties, untied, zeros])
    got = selection_scores("roc_auc", torch.as_tensor(references), torch.as_tensor(stacked))
    np.testing.assert_allclose(got, [metrics.macro_roc_auc(references, one).value for one in stacked])

    classes, logits = rng.integers(0, 24, 50), rng.standard_normal((2, 50, 24))
    for name in ("accuracy", "weighted_key_score"):
        got = selection_scores(name, torch.as_tensor(classes), torch.as_tensor(logits))
        np.testing.assert_allclose(got, [metrics.compute_metric(name, classes, one, ()) for one in logits])

    values, guesses = rng.standard_normal((50, 2)), rng.standard_normal((3, 50, 2))
    got = selection_scores("r2", torch.as_tensor(values), torch.as_tensor(guesses))
    np.testing.assert_allclose(got, [metrics.r2_per_dimension(values, one).mean() for one in guesses])


def test_selection_refuses_outputs_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        selection_scores("accuracy", torch.zeros(3), torch.full((1, 3, 2), torch.nan))


def test_bootstrap_metrics_equal_scikit_learn_on_the_resampled_tracks(tag_data):
    references, scores = tag_data
    counts = draw_counts(60, 8, seed=4)
    rng = np.random.default_rng(5)
    values = rng.standard_normal((60, 2))
    guesses = values + rng.standard_normal((60, 2))
    keys, logits = rng.integers(0, 24, 60), rng.standard_normal((60, 24))
    resampled = {
        "roc_auc": metric_of_counts("roc_auc", references, scores, counts, ()),
        "average_precision": metric_of_counts("average_precision", references, scores, counts, ()),
        "accuracy": metric_of_counts("accuracy", keys, logits, counts, ()),
        "symmetric_key_score": metric_of_counts("symmetric_key_score", keys, logits, counts, ()),
        "r2_valence": metric_of_counts("r2_valence", values, guesses, counts, ("arousal", "valence")),
    }
    for row, count in enumerate(counts.astype(int)):
        drawn = np.repeat(np.arange(60), count)
        assert resampled["roc_auc"][row] == pytest.approx(roc_auc_score(references[drawn], scores[drawn]), abs=1e-5)
        expected = average_precision_score(references[drawn], scores[drawn])
        assert resampled["average_precision"][row] == pytest.approx(expected, abs=1e-5)
        assert resampled["accuracy"][row] == pytest.approx(np.mean(keys[drawn] == logits[drawn].argmax(1)), abs=1e-6)
        expected = metrics.key_score(keys[drawn], logits[drawn].argmax(1), symmetric=True)
        assert resampled["symmetric_key_score"][row] == pytest.approx(expected, abs=1e-6)
        assert resampled["r2_valence"][row] == pytest.approx(r2_score(values[drawn, 1], guesses[drawn, 1]), abs=1e-5)


def test_interval_covers_the_true_accuracy_about_95_times_in_100():
    rng = np.random.default_rng(6)
    logits = np.tile([1.0, 0.0], (300, 1))
    covered = 0
    for number in range(200):
        references = (rng.random(300) >= 0.7).astype(int)  # always guessing class 0 is right with probability 0.7
        values = metric_of_counts("accuracy", references, logits, draw_counts(300, 300, seed=number), ())
        low, high = interval(values, float((references == 0).mean()))
        covered += low <= 0.7 <= high
    # 0.95 x 200 = 190, binomial standard deviation 3.1; percentile intervals cover slightly less than promised.
    assert 178 <= covered <= 199


def test_tasks_on_the_same_tracks_share_their_resamples():
    counts = task_counts({"one": ["a", "b", "c"], "two": ["c", "a", "b"], "three": ["x", "y", "z"]}, 50, seed=0)
    np.testing.assert_array_equal(counts["one"][:, [2, 0, 1]], counts["two"])
    assert (counts["one"] != counts["three"]).any()
