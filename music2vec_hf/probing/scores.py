"""Scores of predictions on test tracks, their 95 % intervals, averages over tasks, and paired differences of sources.

Intervals are bootstrapped over test tracks. A resample is a vector of counts: how often each track was drawn. Tasks on
the same tracks, and two sources that are compared, are scored on the same resamples.
"""

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from music2vec_hf.common.files import read_results, write_npz
from music2vec_hf.common.metrics import get_metric
from music2vec_hf.probing.tasks.loading import TASKS

NUM_RESAMPLES = 1000
LIBRARIES = ("music2vec_hf", "torch", "transformers", "numpy", "mir_eval")


@dataclass(frozen=True)
class Predictions:
    """Outputs for the test split, with what is needed to score them again: names of the outputs, tracks and targets.

    `outputs` are logits or predicted values of every seed, `(num_seeds, num_tracks, K)`.
    """

    task: str
    labels: tuple[str, ...]
    track_ids: tuple[str, ...]
    references: np.ndarray
    outputs: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write to an npz file, whole or not at all."""
        text = {name: np.array(getattr(self, name)) for name in ("task", "labels", "track_ids")}
        write_npz(path, text | {"references": self.references, "outputs": self.outputs})

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Read what `save` wrote."""
        with np.load(path) as stored:
            labels, track_ids = tuple(stored["labels"].tolist()), tuple(stored["track_ids"].tolist())
            return cls(str(stored["task"]), labels, track_ids, stored["references"], stored["outputs"])

    def scores(self, metric: str) -> list[float]:
        """Value of a metric for every seed."""
        return get_metric(metric, self.labels)(self.references, self.outputs).tolist()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a score depends on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def file_stem(source: str) -> str:
    """A source's name with every character that a file name might not take replaced by an underscore."""
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in source)


def load_predictions(results: str | Path, source: str | None = None) -> dict[str, Predictions]:
    """Predictions of one source of a results file (or its folder), by task; by default of the first one.

    Raises ValueError if the file has no such source.
    """
    folder = Path(results) if Path(results).is_dir() else Path(results).parent
    content = read_results(results)
    names = list(dict.fromkeys(record["source"] for record in content["records"]))
    source = names[0] if source is None and names else source
    if source not in names:
        raise ValueError(f"'{results}' has no source '{source}'; it has {', '.join(names)}.")
    files = {record["task"]: record["predictions"] for record in content["records"] if record["source"] == source}
    return {task: Predictions.load(folder / name) for task, name in files.items()}


@dataclass(frozen=True)
class Estimate:
    """A score, a mean of scores or a difference of two, with its values on resampled test tracks.

    Attributes:
        value (`float`): on the test tracks themselves.
        resampled (`np.ndarray` of shape `(num_resamples,)`): on the resamples.
        lowest, highest (`float`): range of possible values.
    """

    value: float
    resampled: np.ndarray
    lowest: float = -math.inf
    highest: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval: percentiles of the resampled values, shifted so that their mean is the value.

        The shift matters for average precision: a positive track drawn twice raises the precision of its own rank, so
        resampled values lie above the score. Of few tracks it could lead out of the range of possible values, where
        the interval ends; and it always holds the value.
        """
        low, high = np.nanpercentile(self.resampled, [2.5, 97.5]) - np.nanmean(self.resampled) + self.value
        return float(max(self.lowest, min(low, self.value))), float(min(self.highest, max(high, self.value)))

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference, of estimates on the same resamples."""
        limits = self.lowest - other.highest, self.highest - other.lowest
        return Estimate(self.value - other.value, self.resampled - other.resampled, *limits)

    @classmethod
    def mean(cls, parts: Sequence["Estimate"]) -> "Estimate":
        """The mean, of estimates on the same resamples."""
        resampled = np.mean([part.resampled for part in parts], axis=0)
        value, *limits = (
            float(np.mean([getattr(part, name) for part in parts])) for name in ("value", "lowest", "highest")
        )
        return cls(value, resampled, *limits)


def draw_counts(num_tracks: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw bootstrap resamples of tracks, with replacement, each of as many tracks as there are.

    Args:
        seed (`int`): equal seeds give equal resamples, which is what pairs two sources.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_tracks)`, float32: how often each track was drawn.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_tracks, np.full(num_tracks, 1 / num_tracks), size=num_resamples).astype(np.float32)


def task_counts(
    track_ids: Mapping[str, Sequence[str]], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Counts as of [`draw_counts`] for several tasks, by task; tasks on the same test tracks share one draw.

    Four tasks on the same tracks err together, so their mean must be resampled track by track, not task by task.
    `track_ids` are each task's test tracks, in the order of its predictions.
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


def estimate(predictions: Predictions, metric: str, counts: np.ndarray) -> Estimate:
    """Mean over seeds of a metric, on the test tracks and on resamples of them (`draw_counts`)."""
    score, about = get_metric(metric, predictions.labels), (predictions.references, predictions.outputs)
    return Estimate(float(score(*about).mean()), score(*about, counts).mean(axis=0), score.lowest, score.highest)


def score_predictions(predictions: Predictions, metrics: Sequence[str]) -> dict[str, dict]:
    """Score every metric.

    Returns:
        `dict[str, dict]`: metric to `value` (mean over seeds), `spread` (standard deviation over seeds), `per_seed`
        and `interval` (95 %, over test tracks, of the mean over seeds).
    """
    counts, scores = draw_counts(len(predictions.track_ids)), {}
    for metric in metrics:
        per_seed, found = predictions.scores(metric), estimate(predictions, metric, counts)
        spread = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else 0.0
        scores[metric] = {"value": found.value, "spread": spread, "per_seed": per_seed, "interval": [*found.interval]}
    return scores


def value_metrics(task: str) -> tuple[str, ...]:
    """Metrics whose mean is the task's value (the mean of AUC and AP for tags, of both R2 for emotion)."""
    if task not in TASKS:
        raise ValueError(f"There is no task '{task}'; use one of {', '.join(TASKS)}.")
    return TASKS[task].value_metrics


def averages(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The two averages that the literature mixes, each by its name.

    Returns:
        `dict[str, float]`: `task_mean`, the mean over tasks of each task's value (JukeMIR, MARBLE), and `flat_mean`,
        the plain mean of all value metrics (the Music2Vec rows of the paper's table).
    """
    groups = [[values[metric] for metric in value_metrics(task)] for task, values in scores.items()]
    return {
        "task_mean": float(np.mean([np.mean(group) for group in groups])),
        "flat_mean": float(np.mean(np.concatenate(groups))),
    }


def task_estimates(
    predictions: Mapping[str, Predictions], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Each task's value, resampled on the same tracks for all tasks that share them."""
    counts = task_counts({task: item.track_ids for task, item in predictions.items()}, num_resamples, seed)
    return {
        task: Estimate.mean([estimate(item, metric, counts[task]) for metric in value_metrics(task)])
        for task, item in predictions.items()
    }


@dataclass(frozen=True)
class Difference:
    """Difference of two scores on the same test tracks, with its paired 95 % interval."""

    value: float
    interval: tuple[float, float]


def differences(first: Mapping[str, Estimate], second: Mapping[str, Estimate]) -> dict[str, Difference]:
    """Difference first - second of each task, and under `task_mean` that of the mean over these tasks."""
    by_task = {task: first[task].minus(second[task]) for task in first}
    by_task["task_mean"] = Estimate.mean(list(by_task.values()))
    return {name: Difference(item.value, item.interval) for name, item in by_task.items()}


def paired_difference_of_predictions(
    first: Mapping[str, Predictions],
    second: Mapping[str, Predictions],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Difference first - second of each task that both have, and under `task_mean` that of the mean over these tasks.

    Test tracks of both are resampled alike.

    Raises:
        ValueError: if they share no task, or differ in the test tracks, labels or targets of a task.
    """
    tasks = [task for task in first if task in second]
    if not tasks:
        raise ValueError(f"No common task: one has {', '.join(first)}, the other {', '.join(second)}.")
    first, second = {task: first[task] for task in tasks}, {task: second[task] for task in tasks}
    for task in tasks:
        one, other = first[task], second[task]
        if sorted(one.track_ids) != sorted(other.track_ids) or one.labels != other.labels:
            raise ValueError(f"The test tracks or labels of '{task}' differ, so the difference cannot be paired.")
        second[task] = _in_order(other, one.track_ids)
        if not np.array_equal(one.references, second[task].references):
            raise ValueError(f"The test targets of '{task}' differ, so the difference cannot be paired.")
    return differences(*(task_estimates(side, num_resamples, seed) for side in (first, second)))


def _in_order(item: Predictions, track_ids: Sequence[str]) -> Predictions:
    """The same predictions with tracks in this order."""
    place = {track_id: row for row, track_id in enumerate(item.track_ids)}
    rows = [place[track_id] for track_id in track_ids]
    references, outputs = item.references[rows], item.outputs[:, rows]
    return replace(item, track_ids=tuple(track_ids), references=references, outputs=outputs)


def paired_difference(
    results_a: str | Path,
    results_b: str | Path,
    source_a: str | None = None,
    source_b: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Difference a - b of two sources, of one results file (folder) or two: [`paired_difference_of_predictions`].

    `source_a` and `source_b` are by default the first one of each file.
    """
    first, second = load_predictions(results_a, source_a), load_predictions(results_b, source_b)
    return paired_difference_of_predictions(first, second, num_resamples, seed)
