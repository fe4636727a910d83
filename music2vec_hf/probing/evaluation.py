"""One source on one task: layer and settings chosen on validation, then scored once on test.

Row 13 of DESIGN.md section 3. The choice is made by a function that is not given the test split. Then the chosen probe
alone is trained from several seeds and scored on the test tracks: the score of a layer that was not chosen is never
computed. A track may have several rows (`rows.py`): their outputs are combined before anything is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from music2vec_hf.probing.baselines import chance_outputs
from music2vec_hf.probing.bootstrap import NUM_RESAMPLES, draw_counts, interval, resampled_scores
from music2vec_hf.probing.choosing import Choice, choose_probe
from music2vec_hf.probing.ensembles import combine
from music2vec_hf.probing.metrics import scorable_tags
from music2vec_hf.probing.probes import ProbeData, ProbeJob, TrainedProbe
from music2vec_hf.probing.results import Predictions
from music2vec_hf.probing.rows import FeatureRows, SelectedRows
from music2vec_hf.probing.searches import WEIGHTED, Search, get_search
from music2vec_hf.probing.tasks.declarations import SPLITS, Split, Task, TaskData
from music2vec_hf.probing.training import train_probes

CHANCE = "chance"
PILOT = "pilot"


@dataclass(frozen=True)
class ProbeResult:
    """Result of one source on one task.

    Attributes:
        task (`Task`): with its labels.
        search (`str`): name of the protocol.
        choice (`Choice` or `None`): layer and settings; None for a predictor without features.
        seeds (`tuple[int, ...]`): seeds of the chosen probe.
        scores (`dict[str, dict]`): metric to `value` (mean over seeds), `spread` (standard deviation over seeds),
            `per_seed` and `interval` (95 % bootstrap over test tracks, of the mean over seeds).
        split_sizes (`dict[str, int]`): tracks per split.
        excluded_tags (`dict[str, list[str]]`): split to the tags it cannot score.
        predictions (`Predictions`): outputs for every test track and seed.
        differences (`tuple[str, ...]`): how the data differs from the benchmark's, see `TaskData`.
        probes (`tuple[TrainedProbe, ...]`): the chosen probe, trained from each seed.
        rows (`dict`): `row_seconds` (None: a row is a whole track), `num_rows` and `dropped_rows` by split.
        pilot (`Choice` or `None`): what `quick` chose, if that alone decided on the layer.
    """

    task: Task
    search: str
    choice: Choice | None
    seeds: tuple[int, ...]
    scores: dict[str, dict]
    split_sizes: dict[str, int]
    excluded_tags: dict[str, list[str]]
    predictions: Predictions
    differences: tuple[str, ...] = ()
    probes: tuple[TrainedProbe, ...] = ()
    rows: dict | None = None
    pilot: Choice | None = None


def _several_rows(rows: FeatureRows) -> np.ndarray | None:
    """Track of each row; None if each track is one row."""
    return rows.tracks if (rows.rows_per_track != 1).any() else None


def _probe_data(train: FeatureRows, validation: FeatureRows, task: Task, splits: Mapping[str, Split]) -> ProbeData:
    return ProbeData(
        features=train.features,
        targets=splits["train"].targets[train.tracks],
        validation_features=validation.features,
        validation_targets=splits["validation"].targets,
        problem_type=task.problem_type,
        num_outputs=len(task.labels),
        primary_metric=task.primary_metric,
        target_statistics=task.target_statistics,
        validation_tracks=_several_rows(validation),
        task_name=task.name,
    )


def _checked(features: Mapping[str, np.ndarray] | SelectedRows, task_data: TaskData) -> SelectedRows:
    selected = features if isinstance(features, SelectedRows) else SelectedRows(FeatureRows.one_per_track(features))
    rows, num_tracks = selected.rows, sum(task_data.split_sizes.values())
    if not rows.features:
        raise ValueError("There are no features to probe.")
    for layer, values in rows.features.items():
        if values.ndim != 2 or len(values) != rows.offsets[-1] or len(rows.offsets) != num_tracks + 1:
            raise ValueError(
                f"Features of layer '{layer}' have shape {values.shape}, but the task has {num_tracks} tracks: pass "
                "[tracks, channels] with rows in the order of `task_data.paths`."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"Features of layer '{layer}' hold NaN or infinite values.")
    return selected


def layers_to_try(names: Sequence[str], search: Search, layers: str | Sequence[str] | None = None) -> list[str]:
    """Layers that a search tries, or those of them that the user asked for.

    Args:
        names (`Sequence[str]`): layers that there are features of.
        search (`Search`): it may leave layers out (`conv` under `marble`) or add one (`weighted`).
        layers (`str` or `Sequence[str]`, *optional*): names; None and `"pilot"` mean all.

    Raises:
        ValueError: if a name is not one of the search's layers.
    """
    known = search.layers(names)
    if layers is None or layers == PILOT:
        return known
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        raise ValueError(f"There is no layer {', '.join(unknown)} to try under '{search.name}': {', '.join(known)}.")
    return list(layers)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless there are seeds and all are different."""
    if len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` is {tuple(seeds)}, but it must hold one or more different seeds.")


def probe(
    features: Mapping[str, np.ndarray] | SelectedRows,
    task_data: TaskData,
    search: str | Search = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    layers: str | Sequence[str] | None = None,
    kept_in: Path | None = None,
    progress: str | None = None,
) -> ProbeResult:
    """Probe frozen features on one task.

    Layer and settings are chosen by the validation score (trainings from the first seed); the chosen probe is then
    trained from every seed and scored on the test split.

    Args:
        features: layer to features `[n, C]`, rows in the order of `task_data.paths`; or a protocol's rows of them
            (`rows.select_rows`).
        task_data (`TaskData`): the task's three splits.
        search (`str` or `Search`): protocol.
        seeds (`Sequence[int]`): probe seeds.
        device (`str`): torch device.
        layers (`str` or `Sequence[str]`, *optional*): layers to try; by default all of the search; `"pilot"`: only the
            one that the search `quick` chooses on validation.
        kept_in (`Path`, *optional*), progress (`str`, *optional*): see `choose_probe`.

    Returns:
        `ProbeResult`.

    Raises:
        ValueError: if features do not fit the task, seeds are missing or a layer is unknown.
    """
    search = get_search(search) if isinstance(search, str) else search
    check_seeds(seeds)
    selected, task = _checked(features, task_data), task_data.task
    parts = {split: selected.split(task_data, split) for split in SPLITS}
    data = _probe_data(parts["train"], parts["validation"], task, task_data.splits)
    tried, pilot = layers_to_try(list(data.features), search, layers), None
    if layers == PILOT and len(tried) > 1:
        single = [name for name in tried if name != WEIGHTED]
        pilot = choose_probe(data, single, get_search("quick"), seeds[0], device, kept_in, progress)
        tried = [pilot.layer]
    choice = choose_probe(data, tried, search, seeds[0], device, kept_in, progress)
    jobs = [ProbeJob(choice.layer, choice.settings, seed) for seed in seeds]
    trained = train_probes(jobs, data, search, device)
    outputs = np.stack([_track_outputs(one, parts["test"]) for one in trained])
    result = _result(task_data, search.name, choice, tuple(seeds), outputs)
    sizes = {split: int(part.offsets[-1]) for split, part in parts.items()}
    rows = {"row_seconds": selected.row_seconds, "num_rows": sizes, "dropped_rows": dict(selected.dropped)}
    differences = (*task_data.differences, *selected.differences)
    return replace(result, differences=differences, probes=tuple(trained), rows=rows, pilot=pilot)


def _track_outputs(trained: TrainedProbe, rows: FeatureRows) -> np.ndarray:
    outputs, tracks = trained.predict(rows.features), _several_rows(rows)
    return outputs if tracks is None else combine(outputs, tracks, trained.ensemble)


def chance_result(task_data: TaskData, search: str = "quick") -> ProbeResult:
    """Score of the best constant predictor that the training targets give; see `baselines.chance_outputs`."""
    _, outputs = chance_outputs(task_data)
    return _result(task_data, search, None, (), outputs[None])


def score_predictions(predictions: Predictions, metrics: Sequence[str]) -> dict[str, dict]:
    """Value, spread over seeds and 95 % interval over test tracks of each metric; see `ProbeResult.scores`."""
    counts = draw_counts(len(predictions.track_ids), NUM_RESAMPLES)
    resampled = resampled_scores(metrics, predictions.references, predictions.outputs, counts, predictions.labels)
    scores = {}
    for metric in metrics:
        per_seed = predictions.scores(metric)
        scores[metric] = {
            "value": float(np.mean(per_seed)),
            "spread": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else 0.0,
            "per_seed": per_seed,
            "interval": list(interval(resampled[metric], float(np.mean(per_seed)))),
        }
    return scores


def _result(
    task_data: TaskData, search: str, choice: Choice | None, seeds: tuple[int, ...], outputs: np.ndarray
) -> ProbeResult:
    task, test = task_data.task, task_data.splits["test"]
    predictions = Predictions(task.name, task.labels, test.track_ids, test.targets, outputs)
    excluded = {}
    if task.problem_type == "multi_label_classification":
        for split in ("validation", "test"):
            usable = scorable_tags(task_data.splits[split].targets)
            excluded[split] = [label for label, use in zip(task.labels, usable, strict=True) if not use]
    scores = score_predictions(predictions, task.metrics)
    sizes = task_data.split_sizes
    return ProbeResult(task, search, choice, seeds, scores, sizes, excluded, predictions, task_data.differences)
