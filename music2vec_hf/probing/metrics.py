"""Metrics of the probing tasks: plain functions over scikit-learn, and `evaluate.Metric` classes that wrap them.

Row 13 of DESIGN.md section 3. Everything works offline: no metric is looked up on the Hub. Each metric has one name,
which is also its name in `results.json`:

| name | meaning |
| --- | --- |
| `roc_auc` | macro ROC-AUC: mean over tags of the area under the ROC curve |
| `average_precision` | macro average precision: mean over tags |
| `accuracy` | share of tracks whose class is right |
| `weighted_key_score` | key score of JukeMIR and MARBLE: a fifth counts 0.5 only if the estimate is the upper key |
| `symmetric_key_score` | the same with a fifth in either direction counted (MIREX since 2017) |
| `r2_<dimension>` | coefficient of determination of one dimension over all tracks, never a mean of batches |
"""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score

_TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEY_LABELS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in _TONICS)
"""The 24 key labels in the order of JukeMIR: 12 major, then 12 minor, flats, C first."""


@dataclass(frozen=True)
class MacroScore:
    """Mean of a per-tag score, with what it left out.

    Attributes:
        value (`float`): mean over the tags that can be scored.
        per_tag (`np.ndarray` of shape `(num_tags,)`): score of each tag, NaN where the tag cannot be scored.
        excluded (`tuple[int, ...]`): indices of tags without a positive or without a negative track.
    """

    value: float
    per_tag: np.ndarray
    excluded: tuple[int, ...]


def key_score_table(symmetric: bool = False) -> np.ndarray:
    """Score of every (reference, estimate) pair of keys.

    Same key 1.0; estimate a perfect fifth above the reference in the same mode 0.5; relative key 0.3; parallel key
    0.2; anything else 0. With `symmetric`, a fifth below also scores 0.5. The one-directional rule is that of every
    released mir_eval (`mir_eval.key.weighted_score`, 0.5 to 0.8) and thus of JukeMIR and MARBLE; it is written out
    here so that a later change of mir_eval's default cannot change our numbers.

    Args:
        symmetric (`bool`): count a fifth in both directions.

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


def key_score(references: np.ndarray, estimates: np.ndarray, symmetric: bool = False) -> float:
    """Mean key score over tracks.

    Args:
        references (`np.ndarray` of shape `(n,)`): indices into `KEY_LABELS`.
        estimates (`np.ndarray` of shape `(n,)`): indices into `KEY_LABELS`.
        symmetric (`bool`): see `key_score_table`.
    """
    return float(key_score_table(symmetric)[np.asarray(references), np.asarray(estimates)].mean())


def scorable_tags(references: np.ndarray) -> np.ndarray:
    """Which tags have at least one positive and one negative track.

    Args:
        references (`np.ndarray` of shape `(n, num_tags)`): 0 or 1.

    Returns:
        `np.ndarray` of shape `(num_tags,)`, bool.
    """
    positives = np.asarray(references).sum(axis=0)
    return (positives > 0) & (positives < len(references))


def _macro(references: np.ndarray, scores: np.ndarray, one_tag) -> MacroScore:
    references, scores = np.asarray(references), np.asarray(scores)
    if references.shape != scores.shape or references.ndim != 2:
        raise ValueError(
            f"References of shape {references.shape} and scores of shape {scores.shape} do not fit: "
            "both must be [tracks, tags]."
        )
    usable = scorable_tags(references)
    if not usable.any():
        raise ValueError("No tag has both a positive and a negative track, so no macro score exists for this split.")
    per_tag = np.full(references.shape[1], np.nan)
    for tag in np.flatnonzero(usable):
        per_tag[tag] = one_tag(references[:, tag], scores[:, tag])
    return MacroScore(float(np.nanmean(per_tag)), per_tag, tuple(int(tag) for tag in np.flatnonzero(~usable)))


def macro_roc_auc(references: np.ndarray, scores: np.ndarray) -> MacroScore:
    """Macro ROC-AUC over tags; tags without a positive or a negative track are left out and named.

    Args:
        references (`np.ndarray` of shape `(n, num_tags)`): 0 or 1.
        scores (`np.ndarray` of shape `(n, num_tags)`): any real scores, larger means more likely.

    Raises:
        ValueError: if shapes differ or no tag can be scored.
    """
    return _macro(references, scores, roc_auc_score)


def macro_average_precision(references: np.ndarray, scores: np.ndarray) -> MacroScore:
    """Macro average precision over tags (step-wise, no interpolation); arguments and errors as `macro_roc_auc`."""
    return _macro(references, scores, average_precision_score)


def r2_per_dimension(references: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Coefficient of determination of each target dimension over all tracks.

    Args:
        references, predictions (`np.ndarray` of shape `(n, num_dimensions)`): in the same units.

    Returns:
        `np.ndarray` of shape `(num_dimensions,)`: 1 is perfect, 0 is the mean of the references, below 0 is worse.
    """
    return np.atleast_1d(r2_score(np.asarray(references), np.asarray(predictions), multioutput="raw_values"))


def compute_metric(name: str, references: np.ndarray, outputs: np.ndarray, labels: Sequence[str]) -> float:
    """Score probe outputs with the metric of this name.

    Args:
        name (`str`): one of the names in the module's table.
        references (`np.ndarray`): `(n,)` class indices, `(n, K)` zeros and ones, or `(n, K)` values.
        outputs (`np.ndarray` of shape `(n, K)`): logits, or predicted values for regression.
        labels (`Sequence[str]`): names of the outputs; needed to find the dimension of `r2_<dimension>`.

    Raises:
        ValueError: if there is no metric of this name.
    """
    if name == "accuracy":
        return float(accuracy_score(references, outputs.argmax(axis=1)))
    if name in ("weighted_key_score", "symmetric_key_score"):
        return key_score(references, outputs.argmax(axis=1), symmetric=name == "symmetric_key_score")
    if name == "roc_auc":
        return macro_roc_auc(references, outputs).value
    if name == "average_precision":
        return macro_average_precision(references, outputs).value
    if name == "r2":
        return float(r2_per_dimension(references, outputs).mean())
    if name.startswith("r2_") and name[3:] in labels:
        return float(r2_per_dimension(references, outputs)[list(labels).index(name[3:])])
    raise ValueError(
        f"There is no metric '{name}'. Use accuracy, weighted_key_score, symmetric_key_score, roc_auc, "
        f"average_precision, r2 or one of {', '.join('r2_' + label for label in labels)}."
    )


def _vectors(value_type: str) -> datasets.Sequence:
    return datasets.Sequence(datasets.Value(value_type))


class _MacroTagMetric(evaluate.Metric):
    """Shared part of the two tag metrics; subclasses name the score."""

    description = ""
    score_name = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011",
            inputs_description="predictions: scores, references: 0 or 1, both [tracks, tags]; tag_names: optional",
            features=datasets.Features({"predictions": _vectors("float64"), "references": _vectors("int64")}),
        )

    def _compute(self, predictions, references, tag_names: Sequence[str] | None = None) -> dict:
        function = macro_roc_auc if self.score_name == "roc_auc" else macro_average_precision
        score = function(np.asarray(references), np.asarray(predictions))
        excluded = [tag_names[tag] if tag_names is not None else tag for tag in score.excluded]
        return {self.score_name: score.value, "num_excluded_tags": len(excluded), "excluded_tags": excluded}


class MacroROCAUC(_MacroTagMetric):
    """Macro ROC-AUC as an `evaluate.Metric`; also gives the count and the names of the tags left out."""

    description = "Mean over tags of the area under the ROC curve."
    score_name = "roc_auc"


class MacroAveragePrecision(_MacroTagMetric):
    """Macro average precision as an `evaluate.Metric`; also gives the count and the names of the tags left out."""

    description = "Mean over tags of the average precision."
    score_name = "average_precision"


class _ClassMetric(evaluate.Metric):
    description = ""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="Raffel et al., mir_eval: a transparent implementation of common MIR metrics, ISMIR 2014",
            inputs_description="predictions, references: class indices [tracks]",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
            ),
        )


class Accuracy(_ClassMetric):
    """Accuracy as an `evaluate.Metric`."""

    description = "Share of tracks whose predicted class equals the reference."

    def _compute(self, predictions, references) -> dict:
        return {"accuracy": float(accuracy_score(references, predictions))}


class WeightedKeyScore(_ClassMetric):
    """Weighted key score as an `evaluate.Metric`, the one-directional rule and the symmetric one beside it."""

    description = "Weighted key score; classes are indices into KEY_LABELS (12 major, 12 minor, C first, flats)."

    def _compute(self, predictions, references) -> dict:
        return {
            "weighted_key_score": key_score(references, predictions),
            "symmetric_key_score": key_score(references, predictions, symmetric=True),
        }


class RegressionR2(evaluate.Metric):
    """R2 of each dimension as an `evaluate.Metric`; `add_batch` accumulates, so batches do not change the value."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Coefficient of determination of each target dimension over all tracks.",
            citation="Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011",
            inputs_description="predictions, references: values [tracks, dimensions]; dimension_names: optional",
            features=datasets.Features({"predictions": _vectors("float64"), "references": _vectors("float64")}),
        )

    def _compute(self, predictions, references, dimension_names: Sequence[str] | None = None) -> dict:
        values = r2_per_dimension(np.asarray(references), np.asarray(predictions))
        names = dimension_names if dimension_names is not None else [str(index) for index in range(len(values))]
        scores = {f"r2_{name}": float(value) for name, value in zip(names, values, strict=True)}
        return {"r2": float(values.mean()), **scores}
