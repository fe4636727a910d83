"""The metrics for `evaluate`: `evaluate.load(music2vec_hf.probing.evaluate_metric.__file__, "weighted_key_score")`.

They are those of `common/metrics.py`, which the probes use, so they give what `results.json` gives, offline.
"""

import datasets
import evaluate
import numpy as np

from music2vec_hf.common.events import EVENT_SCORES, stack_events
from music2vec_hf.common.metrics import KEY_LABELS, METRICS, get_metric

_OF_CLASSES = ("accuracy", "weighted_key_score", "symmetric_key_score")


class MusicMetric(evaluate.Metric):
    """One of the metrics, by `config_name`; batches that are added one by one give the score of all together.

    `predictions` and `references` are class indices `[tracks]` for `accuracy` and the key scores (indices into
    `KEY_LABELS`), scores and zeros or ones `[tracks, tags]` for `roc_auc` and `average_precision`, values
    `[tracks, dimensions]` for `r2`; for beats, chords and melody, lists of a track's events, as in `common/events.py`.

    Raises:
        ValueError: if there is no metric of this name, or nothing can be scored.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise ValueError(f"There is no metric '{self.config_name}'; name one of {', '.join(METRICS)}.")
        number = datasets.Value("int64" if self.config_name in _OF_CLASSES else "float64")
        column = number if self.config_name in _OF_CLASSES else datasets.Sequence(number)
        column = datasets.Sequence(column) if self.config_name in EVENT_SCORES else column
        return evaluate.MetricInfo(
            description=METRICS[self.config_name].title,
            citation="Raffel et al., mir_eval: a transparent implementation of common MIR metrics, ISMIR 2014",
            inputs_description=self.__doc__,
            features=datasets.Features({"predictions": column, "references": column}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        collect = stack_events if self.config_name in EVENT_SCORES else np.asarray
        outputs, references = collect(predictions), collect(references)
        if self.config_name in _OF_CLASSES:
            num_classes = max(len(KEY_LABELS), outputs.max() + 1, references.max() + 1)
            outputs = np.eye(num_classes, dtype=np.float32)[outputs]
        return {self.config_name: float(get_metric(self.config_name)(references, outputs))}
