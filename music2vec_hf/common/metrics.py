"""The metrics, each written once: for the score of a split, for its bootstrap, and for the many probes of a search.

A [`Metric`] is a function of references, outputs and weights of tracks. Without weights it gives the score; with the
counts of bootstrap resamples as weights it gives the score of each resample; outputs may have axes before those of
tracks and labels, one score is given for each. Its name is also its name in `results.json`:

| name | meaning |
| --- | --- |
| `accuracy` | share of tracks whose class is right |
| `weighted_key_score` | key score of JukeMIR and MARBLE: a fifth counts 0.5 only if the estimate is the upper key |
| `symmetric_key_score` | the same with a fifth in either direction counted (MIREX since 2017) |
| `roc_auc` | mean over tags of the area under the ROC curve |
| `average_precision` | mean over tags of the average precision (by steps, not interpolated) |
| `r2`, `r2_<dimension>` | coefficient of determination over all tracks: mean over dimensions, or of one |
| `beat_f_measure`, `downbeat_f_measure` | mean over tracks of mir_eval's F-measure within 70 ms |
| `chord_majmin` | mean over tracks of mir_eval's overlap of major, minor and no chords, weighted by duration |
| `melody_accuracy`, `melody_overall` | mean over tracks of mir_eval's raw pitch accuracy, overall accuracy |

Of the last five references are events of tracks and outputs estimated ones, as in `common/events.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from music2vec_hf.common.events import EVENT_SCORES, TONICS, track_scores

KEY_LABELS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)
"""The 24 key labels in the order of JukeMIR: 12 major, then 12 minor, flats, C first."""


@dataclass(frozen=True)
class Metric:
    """A metric: `metric(references, outputs)` is a score, `metric(references, outputs, counts)` one per resample.

    Attributes:
        name (`str`): name in declarations of tasks and in `results.json`.
        title (`str`): name for people.
        function (`Callable`): what calls are handed to, as tensors.
        lowest, highest (`float`): the range of its values; minus infinity for R2.
    """

    name: str
    title: str
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    lowest: float = 0.0
    highest: float = 1.0

    def __call__(self, references, outputs, weights=None):
        """Score outputs.

        Args:
            references (`np.ndarray` or `torch.Tensor`): `(n,)` class indices, `(n, K)` zeros and ones, `(n, K)`
                values, or `(n, E, 3)` events.
            outputs (`np.ndarray` or `torch.Tensor` of shape `(..., n, K)`): logits, any real scores of tags, or
                predicted values. A class is the largest output, the first of equals. Of events `(..., n, E', 3)`.
            weights (`np.ndarray` or `torch.Tensor` of shape `(R, n)`, *optional*): how often each track counts, in
                each of `R` resamples; without them each counts once.

        Returns:
            float64, on other devices than the CPU float32, of the type of `outputs`, of shape `(...)`, or `(..., R)`
            with weights. A resample without any scorable tag is NaN.

        Raises:
            ValueError: if shapes do not fit, or no tag has both a positive and a negative track.
        """
        values, truth = _tensor(outputs), _tensor(references)
        expected = values.shape[-3:-2] if truth.ndim == 3 else values.shape[-2 : values.ndim - (truth.ndim < 2)]
        if truth.shape[: len(expected)] != expected or (truth.ndim < 3 and truth.ndim != len(expected)):
            raise ValueError(
                f"References of shape {tuple(truth.shape)} do not fit outputs of shape {tuple(values.shape)}: "
                "outputs are [..., tracks, labels], references [tracks] or [tracks, labels]."
            )
        weights = None if weights is None else _tensor(weights).to(values.device, _precise(values))
        scores = self.function(truth.to(values.device), values, weights)
        return scores if isinstance(outputs, torch.Tensor) else scores.numpy()


def get_metric(name: str, labels: Sequence[str] = ()) -> Metric:
    """Find a metric by its name.

    Args:
        labels (`Sequence[str]`): names of the outputs, among which `r2_<dimension>` finds its dimension.

    Raises:
        ValueError: if there is no metric of this name.
    """
    dimensions = {f"r2_{label}": number for number, label in enumerate(labels)}
    if name in dimensions:
        return Metric(name, metric_title(name), partial(_r2, dimension=dimensions[name]), -math.inf)
    if name not in METRICS:
        raise ValueError(f"There is no metric '{name}'; use one of {', '.join([*METRICS, *dimensions])}.")
    return METRICS[name]


def metric_title(name: str) -> str:
    """Name of a metric for people; a name that is not known stands for itself."""
    if name in METRICS:
        return METRICS[name].title
    return f"R2 {name[3:]}" if name.startswith("r2_") else name


def key_score_table(symmetric: bool = False) -> np.ndarray:
    """Score of every (reference, estimate) pair of keys.

    Same key 1.0; estimate a perfect fifth above the reference in the same mode 0.5; relative key 0.3; parallel key
    0.2; anything else 0. With `symmetric`, a fifth below also scores 0.5. The one-directional rule is that of every
    released mir_eval (`mir_eval.key.weighted_score`, 0.5 to 0.8) and thus of JukeMIR and MARBLE; it is written out
    here so that a later change of mir_eval's default cannot change our numbers.

    Returns:
        `np.ndarray` of shape `(24, 24)`, float64: rows are references, columns estimates, as in `KEY_LABELS`.
    """
    table = np.zeros((24, 24))
    for reference in range(24):
        tonic, minor = reference % 12, reference >= 12
        mode_offset = 12 if minor else 0
        if symmetric:
            table[reference, (tonic - 7) % 12 + mode_offset] = 0.5
        table[reference, (tonic + 7) % 12 + mode_offset] = 0.5
        # The relative major lies three semitones above a minor key, the relative minor nine above a major one.
        table[reference, (tonic + 3) % 12 if minor else (tonic + 9) % 12 + 12] = 0.3
        table[reference, tonic if minor else tonic + 12] = 0.2
        table[reference, reference] = 1.0
    return table


def scorable_tags(references: np.ndarray) -> np.ndarray:
    """Which tags have at least one positive and one negative track: bool `(K,)` of zeros and ones `(n, K)`."""
    positives = np.asarray(references).sum(axis=0)
    return (positives > 0) & (positives < len(references))


def tag_scores(name: str, references: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """`roc_auc` or `average_precision` of each tag `(..., K)`: NaN where one lacks a positive or a negative track."""
    scores = np.full(np.delete(np.shape(outputs), -2), np.nan)
    usable = scorable_tags(references)
    values = _tensor(outputs)[..., usable].transpose(-1, -2).contiguous()
    positive = _tensor(references)[:, usable].T.to(_precise(values))
    scores[..., usable] = {"roc_auc": _areas, "average_precision": _precisions}[name](positive, values, None).numpy()
    return scores


def _tensor(values) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))


def _precise(values: torch.Tensor) -> torch.dtype:
    """What scores of these outputs are computed in: of accelerators some have no float64, and many a slow one."""
    return torch.float64 if values.device.type == "cpu" else torch.float32


def _mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean over tracks, the last axis; `[..., n]` to `[...]` or `[..., R]`."""
    return values.mean(dim=-1) if weights is None else values @ weights.T / weights.sum(dim=-1)


def _accuracy(references, outputs, weights):
    return _mean((outputs.argmax(dim=-1) == references).to(_precise(outputs)), weights)


def _key_score(references, outputs, weights, symmetric):
    estimates = outputs.argmax(dim=-1)
    table = torch.as_tensor(key_score_table(symmetric), dtype=_precise(outputs), device=outputs.device)
    return _mean(table[references.expand_as(estimates), estimates], weights)


def _r2(references, outputs, weights, dimension=None):
    """As scikit-learn, of which an R2 of constant references is 1 if they are predicted exactly, and else 0."""
    references, outputs = references.to(_precise(outputs)), outputs.to(_precise(outputs))
    if dimension is not None:
        references, outputs = references[:, [dimension]], outputs[..., [dimension]]
    residuals, deviations = (references - outputs) ** 2, references - references.mean(dim=0)
    if weights is None:
        residual, spread = residuals.sum(dim=-2), (deviations**2).sum(dim=0)
    else:
        residual, moment = weights @ residuals, weights @ deviations**2
        spread = moment - (weights @ deviations) ** 2 / weights.sum(dim=-1, keepdim=True)
        spread = torch.where(spread > 1e-12 * moment, spread, 0)  # what rounding leaves of equal references
    values = torch.where(spread > 0, 1 - residual / spread, (residual == 0).to(residual.dtype))
    return values.mean(dim=-1)


def _of_events(references, outputs, weights, name):
    scores = track_scores(name, references.cpu().numpy(), outputs.cpu().numpy())
    return _mean(torch.from_numpy(scores), weights)


def _over_tags(references, outputs, weights, of_tags):
    """Mean over the tags that can be scored; in a resample, over those of which it has both kinds of tracks."""
    usable = torch.as_tensor(scorable_tags(references.cpu().numpy()), device=outputs.device)
    if not usable.any():
        raise ValueError("No tag has both a positive and a negative track in this split, so it cannot be scored.")
    positive = references[:, usable].T.to(_precise(outputs))
    scores = of_tags(positive, outputs[..., usable].transpose(-1, -2).contiguous(), weights)
    return scores.mean(dim=-1) if weights is None else scores.nanmean(dim=-2)


def _areas(positive: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """ROC-AUC of each tag: positive `[K, n]`, scores `[..., K, n]` to `[..., K]` or `[..., K, R]`.

    Mann-Whitney: the positives' sum of ranks, less its smallest possible value, over the number of pairs.
    """
    if weights is not None:
        return _each_tag(_resampled_area, positive, scores, weights)
    num_positive = positive.sum(dim=-1)
    wins = _rank_sums(scores, positive) - num_positive * (num_positive + 1) / 2
    return wins / (num_positive * (positive.shape[-1] - num_positive))


def _rank_sums(scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Sum of the positives' ranks, exact; ties share the mean of their ranks."""
    # numpy sorts float32 several times as fast as torch on a CPU.
    on_cpu = scores.device.type == "cpu"
    order = torch.from_numpy(np.argsort(scores.numpy(), axis=-1)) if on_cpu else scores.argsort(dim=-1)
    ordered, positive = scores.gather(-1, order), positive.expand(scores.shape)
    ranks = torch.arange(1, scores.shape[-1] + 1, dtype=positive.dtype, device=order.device)
    sums = positive.gather(-1, order) @ ranks
    tied = (ordered[..., 1:] == ordered[..., :-1]).any(dim=-1)
    if tied.any():
        ordered, scores = ordered[tied], scores[tied]
        ends = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
        sums[tied] = ((ends + 1).to(positive.dtype) / 2 * positive[tied]).sum(dim=-1)
    return sums


def _precisions(positive: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Average precision of each tag; shapes as in `_areas`."""
    if weights is not None:
        return _each_tag(_resampled_precision, positive, scores, weights)
    ones = torch.ones((1, positive.shape[-1]), dtype=positive.dtype, device=scores.device)
    return _each_tag(_resampled_precision, positive, scores, ones)[..., 0]


def _each_tag(one_tag, positive: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    tables, masks, by_track = scores.reshape(-1, *scores.shape[-2:]), positive > 0, weights.T.contiguous()
    rows = [one_tag(mask, row, by_track) for table in tables for mask, row in zip(masks, table, strict=True)]
    return torch.stack(rows).reshape(*scores.shape[:-1], len(weights))


def _resampled_area(mask: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """ROC-AUC `[R]` of one tag of scores `[n]` in resamples `[n, R]`: share of pairs ranked rightly, ties one half."""
    thresholds, order = scores[mask].sort()
    positives, drawn = weights[mask][order], weights.sum(dim=0)
    total = positives.sum(dim=0)
    ranks = _weight_below(scores, weights, thresholds) + _weight_below(scores, weights, thresholds, ties=True)
    wins = (positives * ranks).sum(dim=0) / 2 - total**2 / 2
    return wins / (total * (drawn - total))  # 0 / 0 where one kind was not drawn


def _resampled_precision(mask: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Average precision of one tag in each resample: mean over positives of the precision at their score."""
    thresholds, order = scores[mask].sort()
    positives, drawn = weights[mask][order], weights.sum(dim=0)
    total = positives.sum(dim=0)
    found = total - _weight_below(thresholds, positives, thresholds)
    retrieved = drawn - _weight_below(scores, weights, thresholds)
    # A positive that was not drawn has weight 0, so its precision does not matter; the 1 avoids 0 / 0.
    precision = (positives * found / retrieved.clamp_min(1)).sum(dim=0) / total
    return torch.where(total < drawn, precision, torch.nan)


def _weight_below(scores: torch.Tensor, weights: torch.Tensor, thresholds: torch.Tensor, ties: bool = False):
    """Weight `[t, R]` of the tracks whose score is below each of `t` sorted thresholds, or equal to it with `ties`."""
    between = torch.searchsorted(thresholds, scores, right=not ties)
    sums = torch.zeros((len(thresholds) + 1, weights.shape[1]), dtype=weights.dtype, device=weights.device)
    return sums.index_add_(0, between, weights).cumsum(dim=0)[:-1]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", _accuracy),
        Metric("weighted_key_score", "weighted score", partial(_key_score, symmetric=False)),
        Metric("symmetric_key_score", "weighted score, symmetric", partial(_key_score, symmetric=True)),
        Metric("roc_auc", "ROC-AUC", partial(_over_tags, of_tags=_areas)),
        Metric("average_precision", "average precision", partial(_over_tags, of_tags=_precisions)),
        Metric("r2", "mean R2", _r2, -math.inf),
        *(Metric(name, title, partial(_of_events, name=name)) for name, (title, _) in EVENT_SCORES.items()),
    )
}
