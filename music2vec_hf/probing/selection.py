"""Validation scores of many probes at once, on tensors: what early stopping and the choice of a probe look at.

Same definitions as in `metrics.py`, which scores the test split; here one call scores every probe of a batch, on the
device where it is trained. A test holds the two against each other.
"""

import numpy as np
import torch

from music2vec_hf.probing.ensembles import combine, ensembles_to_try
from music2vec_hf.probing.metrics import key_score_table, scorable_tags


def _mid_ranks(scores: torch.Tensor) -> torch.Tensor:
    """Rank along the last dimension, from 1; ties share the mean of their ranks."""
    scores = scores.contiguous()
    ordered = scores.sort(dim=-1).values
    below = torch.searchsorted(ordered, scores)
    not_above = torch.searchsorted(ordered, scores, right=True)
    return (below + not_above + 1).to(torch.float64) / 2


def _rank_sums(scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Sum of the ranks of the positives `[P, K]`, exact, of scores `[P, K, M]` and zeros and ones `[K, M]`."""
    # numpy sorts float32 several times as fast as torch on a CPU.
    on_cpu = scores.device.type == "cpu"
    order = torch.from_numpy(np.argsort(scores.numpy(), axis=-1)) if on_cpu else scores.argsort(dim=-1)
    ordered, positive = scores.gather(-1, order), positive.expand(scores.shape)
    sums = positive.gather(-1, order) @ torch.arange(
        1, scores.shape[-1] + 1, dtype=positive.dtype, device=order.device
    )
    tied = (ordered[..., 1:] == ordered[..., :-1]).any(dim=-1)
    if tied.any():
        sums[tied] = (_mid_ranks(scores[tied]) * positive[tied]).sum(dim=-1)
    return sums


def track_scores(
    metric: str, references: torch.Tensor, outputs: torch.Tensor, tracks: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[str]]:
    """Score every probe with the task's primary metric over tracks, each by the ensemble that is best for it.

    Args:
        metric (`str`), references (`torch.Tensor`): see `selection_scores`; references of `M` tracks.
        outputs (`torch.Tensor` of shape `[P, num_rows, K]`): outputs of `P` probes.
        tracks (`torch.Tensor` of shape `[num_rows]`, *optional*): track of each row; None if rows are tracks.

    Returns:
        `tuple[torch.Tensor, list[str]]`: scores `[P]`, float64, on the CPU; the ensemble of each probe.
    """
    if tracks is None:
        return selection_scores(metric, references, outputs), ["gmean"] * len(outputs)
    names = ensembles_to_try(metric)
    by_ensemble = torch.stack([selection_scores(metric, references, combine(outputs, tracks, name)) for name in names])
    scores = by_ensemble.amax(dim=0)
    first = (by_ensemble == scores).to(torch.int8).argmax(dim=0)  # ties fall to the first
    return scores, [names[index] for index in first]


def selection_scores(metric: str, references: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Score every probe with the task's primary metric.

    Args:
        metric (`str`): `accuracy`, `weighted_key_score`, `roc_auc` or `r2` (mean over dimensions).
        references (`torch.Tensor`): `[M]` classes, `[M, K]` zeros and ones, or `[M, K]` values.
        outputs (`torch.Tensor` of shape `[P, M, K]`): outputs of `P` probes for `M` tracks.

    Returns:
        `torch.Tensor` of shape `[P]`, float64, on the CPU.

    Raises:
        ValueError: if the metric cannot choose probes, or an output or a score is not finite.
    """
    if not torch.isfinite(outputs).all():
        raise ValueError("A probe gave outputs that are not finite; lower its learning rate or check the features.")
    if metric == "accuracy":
        scores = (outputs.argmax(dim=-1) == references).to(torch.float64).mean(dim=-1)
    elif metric == "weighted_key_score":
        table = torch.as_tensor(key_score_table(), device=outputs.device)
        scores = table[references.expand(len(outputs), -1), outputs.argmax(dim=-1)].mean(dim=-1)
    elif metric == "roc_auc":
        usable = torch.as_tensor(np.flatnonzero(scorable_tags(references.cpu().numpy())), device=outputs.device)
        if len(usable) == 0:
            raise ValueError("No tag has both a positive and a negative validation track, so no probe can be chosen.")
        positive = references[:, usable].T.to(torch.float64)  # [K, M]
        rank_sums = _rank_sums(outputs[:, :, usable].transpose(1, 2).contiguous(), positive)
        num_positive = positive.sum(dim=-1)
        num_negative = positive.shape[-1] - num_positive
        # Mann-Whitney: the rank sum of the positives, less its smallest possible value, over the number of pairs.
        wins = rank_sums - num_positive * (num_positive + 1) / 2
        scores = (wins / (num_positive * num_negative)).mean(dim=-1)
    elif metric == "r2":
        references, outputs = references.to(torch.float64), outputs.to(torch.float64)
        residual = ((references - outputs) ** 2).sum(dim=1)
        spread = ((references - references.mean(dim=0)) ** 2).sum(dim=0)
        scores = (1 - residual / spread).mean(dim=-1)
    else:
        raise ValueError(
            f"'{metric}' cannot choose probes; a task's primary metric is one of accuracy, weighted_key_score, "
            "roc_auc, r2."
        )
    scores = scores.cpu()
    if not torch.isfinite(scores).all():
        raise ValueError(f"The validation score '{metric}' is not finite; do all validation targets have one value?")
    return scores
