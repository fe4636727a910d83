"""The suite: every layer of every source on every task, chosen on validation, scored once on test.

Rows 13 and 14 of DESIGN.md section 3. The choice of layer and settings is made by a function that is not given the
test split. Then the chosen probe alone is trained from several seeds and scored on the test tracks: the score of a
layer that was not chosen is never computed.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .baselines import chance_outputs
from .bootstrap import NUM_RESAMPLES, draw_counts, interval, resampled_scores
from .checking import describe_check
from .metrics import scorable_tags
from .probes import ProbeData, ProbeJob, train_probes
from .results import (
    FORMAT_VERSION,
    Predictions,
    averages,
    difference_as_dict,
    file_stem,
    library_versions,
    paired_difference_of_predictions,
    resampled_task_values,
    value_metrics,
    write_json,
)
from .searches import ProbeSettings, Search, get_search
from .sources import FeatureSource, audio_digests, resolve_sources, source_features
from .tasks import Split, Task, TaskData, load_task, resolve_tasks

CHANCE = "chance"


@dataclass(frozen=True)
class Choice:
    """What the validation split chose.

    Attributes:
        layer (`str`), settings (`ProbeSettings`): the winner; ties fall to the earlier layer and setting.
        score (`float`): its validation score.
        by_layer (`dict[str, dict]`): layer to its best validation `score` and the `settings` that gave it.
    """

    layer: str
    settings: ProbeSettings
    score: float
    by_layer: dict[str, dict]


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


def choose_probe(
    features: Mapping[str, Mapping[str, np.ndarray]],
    train: Split,
    validation: Split,
    task: Task,
    search: Search,
    seed: int = 0,
    device: str = "cpu",
) -> Choice:
    """Choose layer and settings by the validation score. The test split is not an argument.

    Args:
        features: `"train"` and `"validation"` to layer to features `[n, C]`.
        train, validation (`Split`): the two splits.
        task (`Task`): what is predicted.
        search (`Search`): settings to try on every layer.
        seed (`int`): seed of all trainings of the search.
        device (`str`): torch device.
    """
    data = _probe_data(features, train, validation, task)
    jobs = [ProbeJob(layer, settings, seed) for layer in data.features for settings in search.settings]
    by_layer: dict[str, dict] = {}
    for probe in train_probes(jobs, data, search, device):
        best = by_layer.get(probe.job.layer)
        if best is None or probe.score > best["score"]:
            by_layer[probe.job.layer] = {"score": probe.score, "settings": probe.job.settings}
    layer = max(by_layer, key=lambda name: by_layer[name]["score"])  # the first of equals
    return Choice(layer, by_layer[layer]["settings"], by_layer[layer]["score"], by_layer)


def _probe_data(features: Mapping, train: Split, validation: Split, task: Task) -> ProbeData:
    return ProbeData(
        features=features["train"],
        targets=train.targets,
        validation_features=features["validation"],
        validation_targets=validation.targets,
        problem_type=task.problem_type,
        num_outputs=len(task.labels),
        primary_metric=task.primary_metric,
        target_statistics=task.target_statistics,
    )


def _split_features(features: Mapping[str, np.ndarray], task_data: TaskData, split: str) -> dict[str, np.ndarray]:
    return {layer: values[task_data.rows(split)] for layer, values in features.items()}


def _check_features(features: Mapping[str, np.ndarray], task_data: TaskData) -> None:
    expected = sum(task_data.split_sizes.values())
    if not features:
        raise ValueError("There are no features to probe.")
    for layer, values in features.items():
        if values.ndim != 2 or len(values) != expected:
            raise ValueError(
                f"Features of layer '{layer}' have shape {values.shape}, but the task has {expected} tracks: pass "
                "[tracks, channels] with rows in the order of `task_data.paths`."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"Features of layer '{layer}' hold NaN or infinite values.")


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


def probe(
    features: Mapping[str, np.ndarray],
    task_data: TaskData,
    search: str | Search = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> ProbeResult:
    """Probe frozen features on one task.

    Layer and settings are chosen by the validation score (trainings from the first seed); the chosen probe is then
    trained from every seed and scored on the test split.

    Args:
        features (`Mapping[str, np.ndarray]`): layer to features `[n, C]`, rows in the order of `task_data.paths`.
        task_data (`TaskData`): the task's three splits.
        search (`str` or `Search`): name of a search, or one.
        seeds (`Sequence[int]`): seeds of the chosen probe.
        device (`str`): torch device.

    Returns:
        `ProbeResult`.

    Raises:
        ValueError: if features do not fit the task, hold NaN, or no seed is given.
    """
    search = get_search(search) if isinstance(search, str) else search
    if len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` is {tuple(seeds)}, but it must hold one or more different seeds.")
    _check_features(features, task_data)
    seen = {split: _split_features(features, task_data, split) for split in ("train", "validation")}
    train, validation = task_data.splits["train"], task_data.splits["validation"]
    choice = choose_probe(seen, train, validation, task_data.task, search, seeds[0], device)

    chosen = {split: {choice.layer: layers[choice.layer]} for split, layers in seen.items()}
    jobs = [ProbeJob(choice.layer, choice.settings, seed) for seed in seeds]
    probes = train_probes(jobs, _probe_data(chosen, train, validation, task_data.task), search, device)
    test_features = features[choice.layer][task_data.rows("test")]
    outputs = np.stack([trained.predict(test_features) for trained in probes])
    return _result(task_data, search.name, choice, tuple(seeds), outputs)


def chance_result(task_data: TaskData, search: str = "quick") -> ProbeResult:
    """Score of the best constant predictor that the training targets give; see `baselines.chance_outputs`."""
    _, outputs = chance_outputs(task_data)
    return _result(task_data, search, None, (), outputs[None])


def _records(
    name: str, kind: str, result: ProbeResult, model_hash: str | None, predictions: str, versions: dict
) -> list[dict]:
    choice = result.choice
    shared = {
        "source": name,
        "source_kind": kind,
        "task": result.task.name,
        "synthetic": result.task.synthetic,
        "protocol": result.search,
        "split_sizes": result.split_sizes,
        "excluded_tags": result.excluded_tags,
        "differences": list(result.differences),
        "layer": choice.layer if choice else None,
        "probe_settings": asdict(choice.settings) if choice else None,
        "validation_metric": result.task.primary_metric,
        "validation_score": choice.score if choice else None,
        "validation_by_layer": {layer: best["score"] for layer, best in choice.by_layer.items()} if choice else {},
        "seeds": list(result.seeds),
        "model_hash": model_hash,
        "library_versions": versions,
        "predictions": predictions,
    }
    return [shared | {"metric": metric} | score for metric, score in result.scores.items()]


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


def _load_tasks(
    tasks: str | Sequence[str], data: str | Path, allow_missing: bool
) -> tuple[dict[str, TaskData], list[Path]]:
    loaded = {name: load_task(name, data, allow_missing) for name in resolve_tasks(tasks)}
    return loaded, list(dict.fromkeys(path for task_data in loaded.values() for path in task_data.paths))


def _chosen_layers(features: dict[str, np.ndarray], layers: Sequence[str] | None, source: FeatureSource) -> dict:
    if layers is None or source.kind not in ("model", "random-init"):
        return features
    unknown = [layer for layer in layers if layer not in features]
    if unknown:
        raise ValueError(f"'{source.name}' has no layer {', '.join(unknown)}; it has {', '.join(features)}.")
    return {layer: features[layer] for layer in layers}


@dataclass
class _Collected:
    """What a run has so far; predictions are written as they come."""

    output: Path
    versions: dict[str, str]
    kinds: dict[str, str] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    results: dict[str, dict[str, ProbeResult]] = field(default_factory=dict)
    timings: list[dict] = field(default_factory=list)

    def keep(self, name: str, kind: str, task: str, result: ProbeResult, model_hash: str | None) -> None:
        file_name = f"predictions/{file_stem(name)}--{task}.npz"
        result.predictions.save(self.output / file_name)
        self.kinds[name] = kind
        self.results.setdefault(name, {})[task] = result
        self.records.extend(_records(name, kind, result, model_hash, file_name, self.versions))

    def content(self, search: str, split_sizes: Mapping[str, dict]) -> dict:
        return {
            "format_version": FORMAT_VERSION,
            "protocol": search,
            "split_sizes": split_sizes,
            "records": self.records,
            "averages": [_averages_of(name, self.kinds[name], by_task) for name, by_task in self.results.items()],
            "comparisons": _comparisons(self.kinds, self.results),
            "timings": self.timings,
        }


def run_suite(
    sources: Sequence[str] | Mapping[str, str],
    tasks: str | Sequence[str],
    data: str | Path,
    output: str | Path,
    search: str = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    layers: Sequence[str] | None = None,
    random_init_seed: int = 0,
    cache_dir: str | Path | None = None,
    window_seconds: float = 30.0,
    precision: str = "fp32",
    device: str = "cpu",
    progress: bool = True,
    allow_missing: bool = False,
) -> Path:
    """Probe sources on tasks and write `results.json`, with chance beside them.

    Args:
        sources: see `sources.resolve_sources`: model folders or Hub ids, `random-init`, `mfcc`, `chroma`.
        tasks (`str` or `Sequence[str]`): task or group names.
        data (`str` or `Path`): folder of the tasks' data.
        output (`str` or `Path`): folder for results.json, `predictions/` and, unless `cache_dir` is given, `cache/`.
        search (`str`): name of the protocol.
        seeds (`Sequence[int]`): probe seeds.
        layers (`Sequence[str]`, *optional*): layers of models to try (`"conv"`, `"0"`, ...); by default all.
        random_init_seed (`int`): seed of the weights of `random-init`.
        cache_dir (`str` or `Path`, *optional*): where features are kept.
        window_seconds (`float`): longest piece that a model hears at once, in seconds.
        precision (`str`): of a model: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).
        device (`str`): torch device.
        progress (`bool`): show progress bars.
        allow_missing (`bool`): leave out tracks without usable audio; see `load_task`.

    Returns:
        `Path`: of results.json.

    Raises:
        ValueError, FileNotFoundError: if a name is unknown, data is missing or features do not fit.
    """
    output = Path(output)
    get_search(search)
    resolved = resolve_sources(sources, random_init_seed)
    if CHANCE in {source.name for source in resolved}:
        raise ValueError("`chance` is always reported and cannot be the name of a source; use another name.")
    loaded, paths = _load_tasks(tasks, data, allow_missing)
    for task_data in loaded.values() if progress else ():
        print(describe_check(task_data), file=sys.stderr)
    digests = audio_digests(paths)
    row_of = {path: row for row, path in enumerate(paths)}
    cache_dir = output / "cache" if cache_dir is None else Path(cache_dir)
    collected = _Collected(output, library_versions())
    for source in resolved:
        started = time.perf_counter()
        features, model_hash = source_features(
            source, paths, digests, cache_dir, window_seconds, precision, device, progress
        )
        features = _chosen_layers(features, layers, source)
        extracted = time.perf_counter()
        for task, task_data in loaded.items():
            rows = [row_of[path] for path in task_data.paths]
            of_task = {layer: values[rows] for layer, values in features.items()}
            result = probe(of_task, task_data, search, seeds, device)
            collected.keep(source.name, source.kind, task, result, model_hash)
        collected.timings.append(
            {
                "source": source.name,
                "features_seconds": extracted - started,
                "probe_seconds": time.perf_counter() - extracted,
            }
        )
    for task, task_data in loaded.items():
        collected.keep(CHANCE, CHANCE, task, chance_result(task_data, search), None)
    sizes = {task: task_data.split_sizes for task, task_data in loaded.items()}
    return write_json(output / "results.json", collected.content(search, sizes))
