"""The suite: every layer of every source on every task, from audio files to `results.json`.

Rows 12 to 14 of DESIGN.md section 3. Features come from `sources.py`, a protocol's rows of them from `rows.py`, choice
and score from `evaluation.py`; `records.py` writes them down.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from music2vec_hf.probing.evaluation import (
    CHANCE,
    PILOT,
    chance_result,
    check_seeds,
    layers_to_try,
    probe,
)
from music2vec_hf.probing.export import export_probe, plan_exports
from music2vec_hf.probing.feature_cache import audio_digests
from music2vec_hf.probing.records import Collected
from music2vec_hf.probing.results import library_versions
from music2vec_hf.probing.rows import FeatureRows, row_seconds, select_rows
from music2vec_hf.probing.searches import get_search
from music2vec_hf.probing.sources import RANDOM_INIT, FeatureSource, resolve_sources, source_features
from music2vec_hf.probing.tasks.declarations import TaskData
from music2vec_hf.probing.tasks.loading import describe_check, load_task, resolve_tasks

__all__ = ["run_suite"]


def _row_groups(loaded: Mapping[str, TaskData], search: str, window_seconds: float) -> dict[float | None, list[str]]:
    """Length of a row to the tasks whose rows are so long: they share one pass over the audio."""
    groups: dict[float | None, list[str]] = {}
    for name, task_data in loaded.items():
        groups.setdefault(row_seconds(task_data.task, search, window_seconds), []).append(name)
    return groups


def _rows_of_tasks(
    source: FeatureSource,
    loaded: Mapping[str, TaskData],
    groups: Mapping[float | None, Sequence[str]],
    digests: Mapping[Path, str],
    **options,
) -> tuple[dict[str, tuple[FeatureRows, float | None]], str]:
    """Rows of every task, with the length of a row; and the hash of the source."""
    rows_of = {}
    for seconds, tasks in groups.items():
        paths = list(dict.fromkeys(path for task in tasks for path in loaded[task].paths))
        rows, source_hash = source_features(
            source, paths, [digests[path] for path in paths], row_seconds=seconds, **options
        )
        place = {path: number for number, path in enumerate(paths)}
        for task in tasks:
            rows_of[task] = rows.take([place[path] for path in loaded[task].paths]), seconds
    return rows_of, source_hash


def _check_request(sources: Sequence[FeatureSource], seeds: Sequence[int], output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"'{output}' is a file; name a folder for the results.")
    check_seeds(seeds)
    if CHANCE in {source.name for source in sources}:
        raise ValueError("`chance` is always reported and cannot be the name of a source; use another name.")


def run_suite(
    sources: Sequence[str] | Mapping[str, str],
    tasks: str | Sequence[str],
    data: str | Path,
    output: str | Path,
    search: str = "quick",
    seeds: Sequence[int] = (0, 1, 2),
    layers: str | Sequence[str] | None = None,
    random_init_seed: int = 0,
    cache_dir: str | Path | None = None,
    window_seconds: float = 30.0,
    precision: str = "fp32",
    device: str = "cpu",
    progress: bool = True,
    allow_missing: bool = False,
    trust_remote_code: bool = False,
    export: str | Path | None = None,
) -> Path:
    """Probe sources on tasks and write `results.json`, with chance beside them.

    Args:
        sources: see `sources.resolve_sources`: model folders or Hub ids, `random-init`, `mfcc`, `chroma`, `mel`.
        tasks (`str` or `Sequence[str]`): task or group names.
        data (`str` or `Path`): folder of the tasks' data.
        output (`str` or `Path`): folder for results.json, `predictions/` and, unless `cache_dir` is given, `cache/`.
            Results that are there and are not all measured again go to `earlier/1`, `earlier/2`, ...
        search (`str`): name of the protocol.
        seeds (`Sequence[int]`): probe seeds.
        layers (`str` or `Sequence[str]`, *optional*): layers of models to try (`"conv"`, `"0"`, ...); by default all;
            `"pilot"`: for each task only the one that `quick` chooses on validation. JukeMIR fixed its layer by a
            pilot, too.
        random_init_seed (`int`): seed of the weights of `random-init`.
        cache_dir (`str` or `Path`, *optional*): where features and the scores of searches are kept.
        window_seconds (`float`): longest piece that a model hears at once, in seconds.
        precision (`str`): of a model: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).
        device (`str`): torch device.
        progress (`bool`): show progress bars.
        allow_missing (`bool`): leave out tracks without usable audio; see `load_task`.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.
        export (`str` or `Path`, *optional*): folder for the model with its chosen probe of the first seed, see
            `export.plan_exports`.

    Returns:
        `Path`: of results.json.

    Raises:
        ValueError, OSError: before audio is read, if a name, layer or seed is unknown, data is missing, `output` is a
            file or windows do not divide a task's clips; later, if a file cannot be heard.
    """
    output = Path(output)
    named_layers = partial(layers_to_try, search=get_search(search), layers=layers)
    resolved = resolve_sources(sources, random_init_seed)
    _check_request(resolved, seeds, output)
    loaded = {name: load_task(name, data, allow_missing) for name in resolve_tasks(tasks)}
    groups = _row_groups(loaded, search, window_seconds)
    exports = plan_exports(resolved, list(loaded), export)
    for task_data in loaded.values() if progress else ():
        print(describe_check(task_data), file=sys.stderr)
    paths = list(dict.fromkeys(path for task_data in loaded.values() for path in task_data.paths))
    digests = dict(zip(paths, audio_digests(paths), strict=True))
    options = {
        "cache_dir": output / "cache" if cache_dir is None else Path(cache_dir),
        "window_seconds": window_seconds,
        "precision": precision,
        "device": device,
        "progress": progress,
        "trust_remote_code": trust_remote_code,
        "check_layers": None if layers in (None, PILOT) else named_layers,
    }
    collected = Collected(output, library_versions(), layers, window_seconds)
    for source in resolved:
        started = time.perf_counter()
        rows_of, source_hash = _rows_of_tasks(source, loaded, groups, digests, **options)
        extracted = time.perf_counter()
        of_model = source.kind in ("model", RANDOM_INIT)
        for task, task_data in loaded.items():
            selected = select_rows(rows_of[task][0], task_data, rows_of[task][1])
            of_search = options["cache_dir"] / "searches", f"{source.name} on {task}" if progress else None
            result = probe(selected, task_data, search, seeds, device, layers if of_model else None, *of_search)
            collected.keep(source.name, source.kind, task, result, source_hash)
        collected.time(source.name, extracted - started, time.perf_counter() - extracted)
    for task, task_data in loaded.items():
        collected.keep(CHANCE, CHANCE, task, chance_result(task_data, search), None)
    sizes = {task: task_data.split_sizes for task, task_data in loaded.items()}
    path = collected.write(search, sizes)
    models = {source.name: source.model for source in resolved}
    for (name, task), folder in exports.items():
        result = collected.results[name][task]
        export_probe(result.probes[0], result.task, models[name], folder, search, result.scores, window_seconds)
    return path
