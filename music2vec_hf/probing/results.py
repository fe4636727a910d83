"""`results.json` and the predictions beside it: the one format in which a score is kept, written and compared.

One record per (source, task, metric). Outputs for every test track and seed lie in `predictions/`, so that two
sources, also of different runs, can be compared on the same resampled test tracks.
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from music2vec_hf.common.files import write_npz
from music2vec_hf.common.results import read_results
from music2vec_hf.probing.bootstrap import NUM_RESAMPLES, interval, resampled_scores, task_counts
from music2vec_hf.probing.metrics import compute_metric
from music2vec_hf.probing.tasks.loading import TASKS

LIBRARIES = ("music2vec_hf", "torch", "transformers", "numpy", "scikit-learn", "mir_eval")


@dataclass(frozen=True)
class Predictions:
    """Outputs for the test split, with what is needed to score them again.

    Attributes:
        task (`str`): task name.
        labels (`tuple[str, ...]`): names of the outputs.
        track_ids (`tuple[str, ...]`): test tracks.
        references (`np.ndarray`): test targets.
        outputs (`np.ndarray` of shape `(num_seeds, num_tracks, K)`): logits or predicted values of every seed.
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
        return [compute_metric(metric, self.references, one, self.labels) for one in self.outputs]


def file_stem(source: str) -> str:
    """A source's name with every character that a file name might not take replaced by an underscore."""
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in source)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a score depends on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def value_metrics(task: str) -> tuple[str, ...]:
    """Metrics whose mean is the task's value (the mean of AUC and AP for tags, of both R2 for emotion)."""
    if task not in TASKS:
        raise ValueError(f"There is no task '{task}'; use one of {', '.join(TASKS)}.")
    return TASKS[task].value_metrics


def averages(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The two averages that the literature mixes, each by its name.

    Args:
        scores (`Mapping[str, Mapping[str, float]]`): task to metric to value.

    Returns:
        `dict[str, float]`: `task_mean`, the mean over tasks of each task's value (JukeMIR, MARBLE), and `flat_mean`,
        the plain mean of all value metrics (the Music2Vec rows of the paper's table).
    """
    groups = [[values[metric] for metric in value_metrics(task)] for task, values in scores.items()]
    return {
        "task_mean": float(np.mean([np.mean(group) for group in groups])),
        "flat_mean": float(np.mean(np.concatenate(groups))),
    }


def resampled_task_values(
    predictions: Mapping[str, Predictions], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Each task's value on resampled test tracks, the same tracks for all tasks that share them.

    Returns:
        `dict[str, np.ndarray]`: task to values of shape `(num_resamples,)`, means over seeds.
    """
    counts = task_counts({task: item.track_ids for task, item in predictions.items()}, num_resamples, seed)
    values = {}
    for task, item in predictions.items():
        scores = resampled_scores(value_metrics(task), item.references, item.outputs, counts[task], item.labels)
        values[task] = np.mean(list(scores.values()), axis=0)
    return values


def _point_task_values(predictions: Mapping[str, Predictions]) -> dict[str, float]:
    return {
        task: float(np.mean([np.mean(item.scores(metric)) for metric in value_metrics(task)]))
        for task, item in predictions.items()
    }


def load_predictions(results: str | Path, source: str | None = None) -> dict[str, Predictions]:
    """Predictions of one source of a results file, by task.

    Args:
        results (`str` or `Path`): results.json or its folder.
        source (`str`, *optional*): name of the source; by default the first one of the file.

    Raises:
        ValueError: if the file has no such source.
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
class Difference:
    """Difference of two scores on the same test tracks, with its paired 95 % interval."""

    value: float
    interval: tuple[float, float]


def _in_order(item: Predictions, track_ids: Sequence[str]) -> Predictions:
    """The same predictions with tracks in this order."""
    place = {track_id: row for row, track_id in enumerate(item.track_ids)}
    rows = [place[track_id] for track_id in track_ids]
    return Predictions(item.task, item.labels, tuple(track_ids), item.references[rows], item.outputs[:, rows])


def paired_difference_of_predictions(
    first: Mapping[str, Predictions],
    second: Mapping[str, Predictions],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Difference first - second per task and of the task mean, resampling test tracks of both alike.

    Args:
        first, second (`Mapping[str, Predictions]`): task to predictions; tasks that only one has are left out.

    Returns:
        `dict[str, Difference]`: task to difference, and under `task_mean` that of the mean over these tasks.

    Raises:
        ValueError: if they share no task, or differ in the test tracks, labels or targets of a task.
    """
    tasks = [task for task in first if task in second]
    if not tasks:
        raise ValueError(f"No common task: one has {', '.join(first)}, the other {', '.join(second)}.")
    for task in tasks:
        if (
            sorted(first[task].track_ids) != sorted(second[task].track_ids)
            or first[task].labels != second[task].labels
        ):
            raise ValueError(f"The test tracks or labels of '{task}' differ, so the difference cannot be paired.")
    first = {task: first[task] for task in tasks}
    second = {task: _in_order(second[task], first[task].track_ids) for task in tasks}
    for task in tasks:
        if not np.array_equal(first[task].references, second[task].references):
            raise ValueError(f"The test targets of '{task}' differ, so the difference cannot be paired.")
    resampled = [resampled_task_values(side, num_resamples, seed) for side in (first, second)]
    points = [_point_task_values(side) for side in (first, second)]
    differences = {}
    for task in tasks:
        value = points[0][task] - points[1][task]
        differences[task] = Difference(value, interval(resampled[0][task] - resampled[1][task], value))
    mean = np.mean([resampled[0][task] - resampled[1][task] for task in tasks], axis=0)
    value = float(np.mean([item.value for item in differences.values()]))
    return differences | {"task_mean": Difference(value, interval(mean, value))}


def paired_difference(
    results_a: str | Path,
    results_b: str | Path,
    source_a: str | None = None,
    source_b: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Difference a - b of two sources, of one results file or of two, with paired bootstrap intervals.

    Args:
        results_a, results_b (`str` or `Path`): results.json files or their folders.
        source_a, source_b (`str`, *optional*): sources; by default the first one of each file.

    Returns:
        `dict[str, Difference]`: see `paired_difference_of_predictions`.
    """
    first, second = load_predictions(results_a, source_a), load_predictions(results_b, source_b)
    return paired_difference_of_predictions(first, second, num_resamples, seed)


def difference_as_dict(difference: Difference) -> dict:
    """A `Difference` as plain JSON values."""
    return asdict(difference) | {"interval": list(difference.interval)}
