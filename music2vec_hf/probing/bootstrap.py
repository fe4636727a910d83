"""Bootstrap over test tracks: the 95 % interval of a score and the paired difference of two sources.

A resample is a vector of counts: how often each test track was drawn. Every metric is written here for counts, all
resamples at once, because a loop over scikit-learn would take minutes. A test holds each of them against scikit-learn
on the resampled tracks themselves.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from music2vec_hf.probing.metrics import key_score_table, scorable_tags

NUM_RESAMPLES = 1000


def draw_counts(num_tracks: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw bootstrap resamples of tracks, with replacement.

    Args:
        num_tracks (`int`): tracks in the test split; each resample has as many.
        num_resamples (`int`): resamples.
        seed (`int`): equal seeds give equal resamples, which is what pairs two sources.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_tracks)`, float32: how often each track was drawn.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_tracks, np.full(num_tracks, 1 / num_tracks), size=num_resamples).astype(np.float32)


def _auc_of_counts(references: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    positive, negative = references > 0, references <= 0
    # 1 where the positive track is ranked above the negative one, 1/2 where they tie.
    difference = scores[positive][:, None] - scores[negative][None, :]
    wins = ((difference > 0) + 0.5 * (difference == 0)).astype(np.float32)
    positive_counts, negative_counts = counts[:, positive], counts[:, negative]
    pairs = positive_counts.sum(axis=1) * negative_counts.sum(axis=1)
    won = ((positive_counts @ wins) * negative_counts).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(counts), np.nan, dtype=np.float32), where=pairs > 0)


def _average_precision_of_counts(references: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    positive = references > 0
    # Precision at the threshold of each positive track: tracks that tie with it are retrieved with it.
    retrieved = (scores[:, None] >= scores[positive][None, :]).astype(np.float32)
    hits = counts[:, positive] @ retrieved[positive]
    # A positive track that was not drawn has weight 0, so its precision does not matter; the 1 avoids 0 / 0.
    precision = hits / np.maximum(counts @ retrieved, 1)
    total = counts[:, positive].sum(axis=1)
    found = (counts[:, positive] * precision).sum(axis=1)
    return np.divide(found, total, out=np.full(len(counts), np.nan, dtype=np.float32), where=total > 0)


def _macro_of_counts(references: np.ndarray, scores: np.ndarray, counts: np.ndarray, one_tag) -> np.ndarray:
    per_tag = []
    for tag in np.flatnonzero(scorable_tags(references)):
        values = one_tag(references[:, tag], scores[:, tag], counts)
        # A resample without a positive or without a negative track of this tag cannot score it.
        drawn = counts @ references[:, tag].astype(np.float32)
        per_tag.append(np.where((drawn > 0) & (drawn < counts.sum(axis=1)), values, np.nan))
    return np.nanmean(per_tag, axis=0)


def _r2_of_counts(references: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    counts = counts.astype(np.float64)
    total = counts.sum(axis=1)
    mean = counts @ references / total
    residual = counts @ (references - predictions) ** 2
    spread = counts @ references**2 - total * mean**2
    return 1 - residual / spread


def metric_of_counts(
    name: str, references: np.ndarray, outputs: np.ndarray, counts: np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """Value of a metric on every resample.

    Args:
        name (`str`): metric, as in `metrics.compute_metric`.
        references (`np.ndarray`): references of the test split.
        outputs (`np.ndarray` of shape `(num_tracks, num_labels)`): logits or predicted values of one seed.
        counts (`np.ndarray` of shape `(num_resamples, num_tracks)`): from `draw_counts`.
        labels (`Sequence[str]`): names of the outputs.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`.

    Raises:
        ValueError: if there is no metric of this name.
    """
    if name == "accuracy":
        return counts @ (outputs.argmax(axis=1) == references).astype(np.float32) / counts.sum(axis=1)
    if name in ("weighted_key_score", "symmetric_key_score"):
        table = key_score_table(symmetric=name == "symmetric_key_score")
        return counts @ table[references, outputs.argmax(axis=1)] / counts.sum(axis=1)
    if name == "roc_auc":
        return _macro_of_counts(references, outputs, counts, _auc_of_counts)
    if name == "average_precision":
        return _macro_of_counts(references, outputs, counts, _average_precision_of_counts)
    if name.startswith("r2_") and name[3:] in labels:
        dimension = list(labels).index(name[3:])
        return _r2_of_counts(references[:, dimension], outputs[:, dimension], counts)
    raise ValueError(f"There is no metric '{name}' for the bootstrap; a task declares which metrics it has.")


def resampled_scores(
    metrics: Sequence[str], references: np.ndarray, outputs: np.ndarray, counts: np.ndarray, labels: Sequence[str]
) -> dict[str, np.ndarray]:
    """Mean over seeds of each metric, on every resample.

    Args:
        outputs (`np.ndarray` of shape `(num_seeds, num_tracks, num_labels)`): outputs of every seed.
        metrics, references, counts, labels: as in `metric_of_counts`.

    Returns:
        `dict[str, np.ndarray]`: metric to values of shape `(num_resamples,)`.
    """
    return {
        name: np.mean([metric_of_counts(name, references, one, counts, labels) for one in outputs], axis=0)
        for name in metrics
    }


def interval(values: np.ndarray, score: float, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval around a score: percentiles of the resampled values, shifted so that their mean is the score.

    The shift matters for average precision: a positive track drawn twice raises the precision of its own rank, so
    resampled values lie above the score.

    Args:
        values (`np.ndarray` of shape `(num_resamples,)`): scores, or differences, of the resamples.
        score (`float`): the score, or difference, of the test split itself.
        level (`float`): coverage.
    """
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail]) - np.nanmean(values) + score
    return float(low), float(high)


def task_counts(track_ids: Mapping[str, Sequence[str]], num_resamples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw resamples for several tasks; tasks on the same test tracks share one draw.

    Four tasks on the same tracks err together, so their mean must be resampled track by track, not task by task.

    Args:
        track_ids (`Mapping[str, Sequence[str]]`): task to its test tracks, in the order of its predictions.

    Returns:
        `dict[str, np.ndarray]`: task to counts of shape `(num_resamples, num_tracks)`.
    """
    drawn: dict[tuple[str, ...], np.ndarray] = {}
    result = {}
    for task, ids in track_ids.items():
        order = np.argsort(np.asarray(ids))
        group = tuple(ids[index] for index in order)
        if group not in drawn:
            drawn[group] = draw_counts(len(group), num_resamples, seed + len(drawn))
        counts = np.empty_like(drawn[group])
        counts[:, order] = drawn[group]
        result[task] = counts
    return result
