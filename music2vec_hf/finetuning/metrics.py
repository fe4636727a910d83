"""Scores of fine-tuned models on whole clips: plain functions of scikit-learn, the same names as in probing."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score


def clip_logits(logits: np.ndarray, clips: np.ndarray, num_frames: np.ndarray) -> np.ndarray:
    """Average the logits of the windows of each clip, each weighted by its frames, as the pipeline does.

    Args:
        logits (`np.ndarray` of shape `(num_windows, K)`).
        clips (`np.ndarray` of shape `(num_windows,)`): which clip a window is of, from 0, none left out.
        num_frames (`np.ndarray` of shape `(num_windows,)`): frames of each window.

    Returns:
        `np.ndarray` of shape `(num_clips, K)`.
    """
    sums = np.zeros((clips.max() + 1, logits.shape[1]))
    np.add.at(sums, clips, logits * num_frames[:, None])
    return sums / np.bincount(clips, num_frames)[:, None]


def score(problem_type: str, names: Sequence[str], logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Score the logits of clips.

    Args:
        problem_type (`str`): as in [`Music2VecConfig`].
        names (`Sequence[str]`): of the labels.
        logits (`np.ndarray` of shape `(n, K)`): for regression the values themselves.
        targets (`np.ndarray`): `(n,)` class indices, `(n, K)` 0/1, or `(n, K)` values.

    Returns:
        `dict`: `accuracy`; or `roc_auc` and `average_precision`, macro over the tags that have both a positive and a
        negative clip, and `tags_left_out`; or `r2_<name>`. `score` is the one to choose by: accuracy, `roc_auc` or
        the mean of the R2.

    Raises:
        ValueError: if no tag can be scored.
    """
    if problem_type == "single_label_classification":
        accuracy = float(accuracy_score(targets, logits.argmax(1)))
        return {"score": accuracy, "accuracy": accuracy}
    if problem_type == "regression":
        values = r2_score(targets, logits, multioutput="raw_values")
        return {
            "score": float(values.mean()),
            **{f"r2_{name}": float(v) for name, v in zip(names, values, strict=True)},
        }
    usable = (targets.min(0) == 0) & (targets.max(0) == 1)
    if not usable.any():
        raise ValueError("No tag has both a positive and a negative clip in this split, so it cannot be scored.")
    area = float(roc_auc_score(targets[:, usable], logits[:, usable], average="macro"))
    precision = float(average_precision_score(targets[:, usable], logits[:, usable], average="macro"))
    left_out = int((~usable).sum())
    return {"score": area, "roc_auc": area, "average_precision": precision, "tags_left_out": left_out}


__all__ = ["clip_logits", "score"]
