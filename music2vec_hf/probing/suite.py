"""The suite: every layer of every source on every task, from audio files to `results.json`.

One record per source, task and metric. Outputs for every test track and seed lie in `predictions/`, so that two
sources, also of different runs, can be compared on the same resampled test tracks.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path

from tqdm.auto import tqdm

from music2vec_hf.common.computing import results_of
from music2vec_hf.common.files import RESULTS, read_results, write_results, written_aside
from music2vec_hf.features.encoders import RANDOM_INIT, FeatureSource, open_source, resolve_sources
from music2vec_hf.features.store import FeatureRows, FeatureStore, audio_digests
from music2vec_hf.probing.evaluation import (
    CHANCE,
    PILOT,
    Choice,
    ProbeResult,
    chance_result,
    check_seeds,
    layers_to_try,
    probe,
    row_seconds,
    select_rows,
)
from music2vec_hf.probing.export import export_probe, plan_exports
from music2vec_hf.probing.frame_probes import chance_events, check_frame_tasks, probe_frames
from music2vec_hf.probing.probes import get_search
from music2vec_hf.probing.scores import (
    Estimate,
    averages,
    differences,
    file_stem,
    library_versions,
    task_estimates,
    value_metrics,
)
from music2vec_hf.probing.tasks.declarations import TaskData
from music2vec_hf.probing.tasks.loading import TASKS, describe_check, load_task, resolve_tasks

EARLIER = "earlier"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuiteSettings:
    """How a run gets its features, and what else it is to do.

    Attributes:
        layers (`str` or `Sequence[str]`, *optional*): layers of models to try (`"conv"`, `"0"`, ...); by default all;
            `"pilot"`: for each task only the one that `quick` chooses on validation. JukeMIR fixed its layer by a
            pilot, too.
        cache_dir (`str` or `Path`, *optional*): where features and the scores of searches are kept; by default
            `cache/` in the output folder.
        precision (`str`): of a model: `fp32`, `bf16`, or `auto` (bf16 where that is faster).
        allow_missing (`bool`): leave out tracks whose audio is missing or unreadable; see `load_task`.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.
        export (`str` or `Path`, *optional*): folder for the model with its chosen probe of the first seed, see
            `export.plan_exports`.
    """

    layers: str | Sequence[str] | None = None
    random_init_seed: int = 0
    cache_dir: str | Path | None = None
    window_seconds: float = 30.0
    precision: str = "fp32"
    device: str = "cpu"
    progress: bool = True
    allow_missing: bool = False
    trust_remote_code: bool = False
    export: str | Path | None = None


def run_suite(
    sources: Sequence[str] | Mapping[str, str],
    tasks: str | Sequence[str],
    data: str | Path,
    output: str | Path,
    search: str = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    **settings,
) -> Path:
    """Probe sources on tasks and write `results.json`, with chance beside them.

    Args:
        sources: see `resolve_sources`: model folders or Hub ids, `random-init`, `mfcc`, `chroma`, `mel`.
        output (`str` or `Path`): folder for results.json, `predictions/` and, unless `cache_dir` is given, `cache/`.
            Results that are there and are not all measured again go to `earlier/1`, `earlier/2`, ...
        settings: see [`SuiteSettings`].

    Raises:
        ValueError, OSError: before audio is read, if a name, layer or seed is unknown, data is missing, `output` is a
            file or windows do not divide a task's clips; later, if a file cannot be heard.
    """
    output, settings = Path(output), SuiteSettings(**settings)
    named_layers = partial(layers_to_try, search=get_search(search), layers=settings.layers)
    resolved = resolve_sources(sources, settings.random_init_seed)
    _check_request(resolved, seeds, output)
    check_frame_tasks([TASKS[name] for name in resolve_tasks(tasks)], search)
    loaded = {name: load_task(name, data, settings.allow_missing) for name in resolve_tasks(tasks)}
    clip_tasks = {name: each for name, each in loaded.items() if not each.task.events}
    seconds = {name: row_seconds(each.task, search, settings.window_seconds) for name, each in clip_tasks.items()}
    exports = plan_exports(resolved, list(loaded), settings.export)
    for task_data in loaded.values() if settings.progress else ():
        print(describe_check(task_data), file=sys.stderr)
    paths = list(dict.fromkeys(path for task_data in loaded.values() for path in task_data.paths))
    digests = dict(zip(paths, audio_digests(paths), strict=True))
    cache = output / "cache" if settings.cache_dir is None else Path(settings.cache_dir)
    affected = {task: dict(task_data.affected) for task, task_data in loaded.items()}
    results, about, timings = {}, {}, []
    for source in resolved:
        started, name = time.perf_counter(), source.name
        encoder = open_source(source, settings.device, settings.trust_remote_code)
        layers = settings.layers if source.kind in ("model", RANDOM_INIT) else None
        if layers not in (None, PILOT):
            named_layers(encoder.layers)
        store = FeatureStore(cache, encoder, settings.window_seconds, settings.precision)
        rows_of = _rows_of_tasks(store, clip_tasks, seconds, digests, name if settings.progress else None)
        extracted, calls = time.perf_counter(), {}
        about[name] = {"source": name, "source_kind": source.kind, "model_hash": encoder.hash}
        for task, task_data in clip_tasks.items():
            selected = select_rows(rows_of[task], task_data, seconds[task])
            affected[task] |= selected.affected
            notes = {"kept_in": cache / "searches", "progress": f"{name} on {task}" if settings.progress else None}
            calls[task] = partial(probe, selected, task_data, search, seeds, settings.device, layers, **notes)
        results[name] = dict.fromkeys(loaded) | _made(calls, name, search, settings)
        for task, task_data in loaded.items():
            if task_data.task.events:
                label = f"{name} on {task}" if settings.progress else None
                results[name][task] = probe_frames(store, task_data, digests, seeds, settings.device, layers, label)
        ended = time.perf_counter()
        timings.append({"source": name, "features_seconds": extracted - started, "probe_seconds": ended - extracted})
    results[CHANCE] = {task: _chance(task_data, search) for task, task_data in loaded.items()}
    about[CHANCE] = {"source": CHANCE, "source_kind": CHANCE, "model_hash": None}
    affected = {task: {sentence: tracks for sentence, tracks in of.items() if tracks} for task, of in affected.items()}
    content = _content(results, about, search, settings) | {"affected_tracks": affected, "timings": timings}
    path = _write(output, content, results)
    models = {source.name: source.model for source in resolved}
    for (name, task), folder in exports.items():
        result = results[name][task]
        export_probe(
            result.probes[0], result.task, models[name], folder, search, result.scores, settings.window_seconds
        )
    return path


def _made(calls: Mapping[str, Callable], source: str, search: str, settings: SuiteSettings) -> dict[str, ProbeResult]:
    """Probes of a source by task. On a CPU the products of `quick` are too small for several threads: its tasks are
    probed side by side, with one bar for all."""
    num_processes = min(len(calls), os.cpu_count() or 1)
    if num_processes < 2 or search != "quick" or settings.device != "cpu":
        return dict(zip(calls, results_of([*calls.values()], 1), strict=True))
    made = results_of([partial(call, progress=None) for call in calls.values()], num_processes)
    bar = tqdm(made, f"probes of {source}", len(calls), unit="task", disable=not settings.progress)
    return dict(zip(calls, bar, strict=True))


def _chance(task_data: TaskData, search: str) -> ProbeResult:
    return (chance_events if task_data.task.events else chance_result)(task_data, search)


def _check_request(sources: Sequence[FeatureSource], seeds: Sequence[int], output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"'{output}' is a file; name a folder for the results.")
    check_seeds(seeds)
    if CHANCE in {source.name for source in sources}:
        raise ValueError("`chance` is always reported and cannot be the name of a source; use another name.")


def _rows_of_tasks(
    store: FeatureStore,
    loaded: Mapping[str, TaskData],
    seconds: Mapping[str, float | None],
    digests: Mapping[Path, str],
    label: str | None,
) -> dict[str, FeatureRows]:
    """Rows of every task. Tasks whose rows are of one length share a pass."""
    rows_of = {}
    for length in dict.fromkeys(seconds.values()):
        tasks = [task for task in loaded if seconds[task] == length]
        paths = list(dict.fromkeys(path for task in tasks for path in loaded[task].paths))
        rows = store.rows(paths, length, [digests[path] for path in paths], label)
        place = {path: number for number, path in enumerate(paths)}
        rows_of |= {task: rows.take([place[path] for path in loaded[task].paths]) for task in tasks}
    return rows_of


def _predictions_file(source: str, task: str) -> str:
    return f"predictions/{file_stem(source)}--{task}.npz"


def _content(
    results: Mapping[str, Mapping[str, ProbeResult]], about: Mapping[str, dict], search: str, settings: SuiteSettings
) -> dict:
    """What `results.json` holds of the results of each source on each task."""
    layers = "all" if settings.layers is None else settings.layers
    shared = {
        "protocol": search,
        "layers": layers if isinstance(layers, str) else list(layers),
        "window_seconds": settings.window_seconds,
    }
    versions = {"library_versions": library_versions()}
    records, means, estimates = [], [], {}
    for name, by_task in results.items():
        for task, result in by_task.items():
            files = {"predictions": _predictions_file(name, task)}
            records.extend(_records(result, about[name] | versions | files | shared))
        estimates[name] = task_estimates({task: result.predictions for task, result in by_task.items()})
        scores = {
            task: {metric: result.scores[metric]["value"] for metric in value_metrics(task)}
            for task, result in by_task.items()
        }
        interval = list(Estimate.mean(list(estimates[name].values())).interval)
        names = {"source": name, "source_kind": about[name]["source_kind"], "tasks": list(by_task)}
        means.append(names | averages(scores) | {"task_mean_interval": interval})
    comparisons = [
        {"source": name, "baseline": other, "task": task} | asdict(difference)
        for name in results
        for other in results
        if about[name]["source_kind"] == "model" != about[other]["source_kind"]
        for task, difference in differences(estimates[name], estimates[other]).items()
    ]
    sizes = {task: result.split_sizes for task, result in results[CHANCE].items()}
    return shared | {"split_sizes": sizes, "records": records, "averages": means, "comparisons": comparisons}


def _records(result: ProbeResult, about: Mapping) -> list[dict]:
    """A record for each metric."""
    choice, rows = result.choice, result.rows or {}
    ensembles = [trained.ensemble for trained in result.probes]
    shared = dict(about) | {
        "task": result.task.name,
        "synthetic": result.task.synthetic,
        "split_sizes": result.split_sizes,
        **{name: rows.get(name) for name in ("row_seconds", "num_rows", "dropped_rows")},
        "excluded_tags": result.excluded_tags,
        "differences": list(result.differences),
        "layer": choice.layer if choice else None,
        "probe_settings": asdict(choice.settings) if choice else None,
        "validation_metric": result.task.primary_metric,
        "validation_score": choice.score if choice else None,
        "validation_by_layer": _validation(choice),
        "pilot_by_layer": _validation(result.pilot),
        "seeds": list(result.seeds),
        # How the rows of a track were combined, for each seed; None where every track is one row.
        "ensemble": ensembles if rows and rows["num_rows"] != result.split_sizes else None,
    }
    if result.frames:
        shared["frames"] = result.frames
    return [shared | {"metric": metric} | score for metric, score in result.scores.items()]


def _validation(choice: Choice | None) -> dict[str, float]:
    return {layer: best["score"] for layer, best in choice.by_layer.items()} if choice else {}


def _write(output: Path, content: dict, results: Mapping[str, Mapping[str, ProbeResult]]) -> Path:
    """Write `results.json` and the predictions; results of another run are kept in `earlier/`."""
    keep_earlier_results(output, content["records"])
    for name, by_task in results.items():
        for task, result in by_task.items():
            result.predictions.save(output / _predictions_file(name, task))
    return write_results(output, content)


_MEASURED = (
    "source",
    "source_kind",
    "model_hash",
    "task",
    "metric",
    "protocol",
    "layers",
    "window_seconds",
    "row_seconds",
    "seeds",
    "split_sizes",
    "differences",
)
"""Fields of a record that say what was measured."""


def keep_earlier_results(output: Path, records: Sequence[Mapping]) -> None:
    """Move the results in `output` to `output/earlier/1` (or 2, ...), unless `records` measure all of them again.

    The predictions that they name go with them, and a warning says where they are.
    """
    if not (output / RESULTS).is_file():
        return
    try:
        old = read_results(output)["records"]
    except ValueError:
        old = None  # not ours, or damaged: kept as it is
    if old is not None and {_measured(record) for record in old} <= {_measured(record) for record in records}:
        return
    named = {str(record.get("predictions")) for record in old or ()}
    predictions = sorted(name for name in named if Path(name).parent == Path("predictions"))  # no other file
    files = [RESULTS, *(name for name in predictions if (output / name).is_file())]
    folder = next(path for number in count(1) if not (path := output / EARLIER / str(number)).exists())
    with written_aside(folder) as copy:
        for name in files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output / name, copy / name)
    for name in files:  # copied first: a kill in between loses nothing
        (output / name).unlink()
    logger.warning("%s held results of another run; they are in %s now.", output, folder)


def _measured(record: Mapping) -> str:
    return json.dumps([record.get(name) for name in _MEASURED], sort_keys=True)
