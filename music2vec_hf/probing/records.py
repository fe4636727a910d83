"""What a run writes: records of every score, averages over tasks, comparisons with baselines; see `results.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from music2vec_hf.common.results import write_results
from music2vec_hf.probing.bootstrap import interval
from music2vec_hf.probing.choosing import Choice
from music2vec_hf.probing.earlier import set_aside
from music2vec_hf.probing.evaluation import ProbeResult
from music2vec_hf.probing.results import (
    averages,
    difference_as_dict,
    file_stem,
    paired_difference_of_predictions,
    resampled_task_values,
    value_metrics,
)


def _validation(choice: Choice | None) -> dict[str, float]:
    return {layer: best["score"] for layer, best in choice.by_layer.items()} if choice else {}


def _records(result: ProbeResult, about: Mapping) -> list[dict]:
    choice = result.choice
    shared = dict(about) | {
        "task": result.task.name,
        "synthetic": result.task.synthetic,
        "protocol": result.search,
        "split_sizes": result.split_sizes,
        "row_seconds": result.rows["row_seconds"] if choice else None,
        "num_rows": result.rows["num_rows"] if choice else None,
        "dropped_rows": result.rows["dropped_rows"] if choice else None,
        "excluded_tags": result.excluded_tags,
        "differences": list(result.differences),
        "layer": choice.layer if choice else None,
        "probe_settings": asdict(choice.settings) if choice else None,
        "validation_metric": result.task.primary_metric,
        "validation_score": choice.score if choice else None,
        "validation_by_layer": _validation(choice),
        "pilot_by_layer": _validation(result.pilot),
        "seeds": list(result.seeds),
        "ensemble": _ensembles(result),
    }
    return [shared | {"metric": metric} | score for metric, score in result.scores.items()]


def _ensembles(result: ProbeResult) -> list[str] | None:
    """How the rows of a track were combined, for each seed; None where every track is one row."""
    if not result.probes or result.rows["num_rows"] == result.split_sizes:
        return None
    return [trained.ensemble for trained in result.probes]


def _averages_of(name: str, kind: str, results: Mapping[str, ProbeResult]) -> dict:
    scores = {
        task: {metric: result.scores[metric]["value"] for metric in value_metrics(task)}
        for task, result in results.items()
    }
    resampled = resampled_task_values({task: result.predictions for task, result in results.items()})
    mean = np.mean(list(resampled.values()), axis=0)
    names = {"source": name, "source_kind": kind, "tasks": list(results)}
    means = averages(scores)
    return names | means | {"task_mean_interval": list(interval(mean, means["task_mean"]))}


def _comparisons(kinds: Mapping[str, str], results: Mapping[str, Mapping[str, ProbeResult]]) -> list[dict]:
    """Every model against every baseline, on the same resampled test tracks."""
    predictions = {
        name: {task: result.predictions for task, result in by_task.items()} for name, by_task in results.items()
    }
    rows = []
    for name in (name for name, kind in kinds.items() if kind == "model"):
        for baseline in (other for other, kind in kinds.items() if kind != "model"):
            differences = paired_difference_of_predictions(predictions[name], predictions[baseline])
            for task, difference in differences.items():
                rows.append({"source": name, "baseline": baseline, "task": task} | difference_as_dict(difference))
    return rows


def _predictions_file(source: str, task: str) -> str:
    return f"predictions/{file_stem(source)}--{task}.npz"


@dataclass
class Collected:
    """What a run has so far.

    Attributes:
        output (`Path`): folder of the run.
        versions (`dict[str, str]`): of libraries.
        layers (`str`, `Sequence[str]` or None): layers of models that were asked for: None for all, or `"pilot"`.
        window_seconds (`float`): longest piece that a model heard at once.
    """

    output: Path
    versions: dict[str, str]
    layers: str | Sequence[str] | None = None
    window_seconds: float = 30.0
    kinds: dict[str, str] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    results: dict[str, dict[str, ProbeResult]] = field(default_factory=dict)
    timings: list[dict] = field(default_factory=list)

    def keep(self, name: str, kind: str, task: str, result: ProbeResult, model_hash: str | None) -> None:
        """Take the result of one source on one task."""
        self.kinds[name] = kind
        self.results.setdefault(name, {})[task] = result
        about = {
            "source": name,
            "source_kind": kind,
            "model_hash": model_hash,
            "library_versions": self.versions,
            "predictions": _predictions_file(name, task),
            "layers": self._layers,
            "window_seconds": self.window_seconds,
        }
        self.records.extend(_records(result, about))

    @property
    def _layers(self) -> str | list[str]:
        if self.layers is None:
            return "all"
        return self.layers if isinstance(self.layers, str) else list(self.layers)

    def time(self, name: str, features_seconds: float, probe_seconds: float) -> None:
        """Note how long a source took."""
        self.timings.append({"source": name, "features_seconds": features_seconds, "probe_seconds": probe_seconds})

    def write(self, search: str, split_sizes: Mapping[str, dict]) -> Path:
        """Write `results.json` and the predictions; results of another run are set aside. Returns the file's path."""
        content = self._content(search, split_sizes)
        set_aside(self.output, self.records)
        for name, by_task in self.results.items():
            for task, result in by_task.items():
                result.predictions.save(self.output / _predictions_file(name, task))
        return write_results(self.output, content)

    def _content(self, search: str, split_sizes: Mapping[str, dict]) -> dict:
        return {
            "protocol": search,
            "layers": self._layers,
            "window_seconds": self.window_seconds,
            "split_sizes": split_sizes,
            "records": self.records,
            "averages": [_averages_of(name, self.kinds[name], by_task) for name, by_task in self.results.items()],
            "comparisons": _comparisons(self.kinds, self.results),
            "timings": self.timings,
        }
