"""The metrics as `evaluate` loads them, against scikit-learn and mir_eval."""

import evaluate
import mir_eval.key
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score

from music2vec_hf.common.metrics import KEY_LABELS
from music2vec_hf.probing import evaluate_metric


def keys(references, estimates):
    pairs = zip(references, estimates, strict=True)
    return np.mean([mir_eval.key.weighted_score(KEY_LABELS[a], KEY_LABELS[b]) for a, b in pairs])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", accuracy_score),
        ("weighted_key_score", keys),
        ("roc_auc", roc_auc_score),
        ("average_precision", average_precision_score),
        ("r2", r2_score),
    ],
)
def test_batches_give_the_score_of_all(name, expected, tmp_path):
    rng = np.random.default_rng(0)
    references = rng.integers(0, 24, 60) if name in ("accuracy", "weighted_key_score") else rng.random((60, 3))
    predictions = references[::-1].copy() if references.ndim == 1 else references + rng.standard_normal((60, 3))
    if name in ("roc_auc", "average_precision"):
        references = (references > 0.6).astype(np.int64)
    metric = evaluate.load(evaluate_metric.__file__, name, cache_dir=str(tmp_path))
    for start in range(0, 60, 25):
        rows = slice(start, start + 25)
        metric.add_batch(predictions=predictions[rows], references=references[rows])
    assert metric.compute() == {name: pytest.approx(expected(references, predictions))}


def test_events_of_tracks_may_differ_in_number(tmp_path):
    metric = evaluate.load(evaluate_metric.__file__, "beat_f_measure", cache_dir=str(tmp_path))
    metric.add(prediction=[[0.5, 0.5, 0], [1.0, 1.0, 0]], reference=[[0.5, 0.5, 0]])
    metric.add(prediction=[[2.0, 2.0, 1]], reference=[[2.0, 2.0, 0], [3.0, 3.0, 0], [3.0, 3.0, 1]])
    assert metric.compute() == {"beat_f_measure": pytest.approx(1 / 3)}


def test_a_metric_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"'f1'.*weighted_key_score"):
        evaluate.load(evaluate_metric.__file__, "f1", cache_dir=str(tmp_path))
