"""The report: one HTML page and PNG figures from `results.json`, and the same table as plain text.

Row 14 of DESIGN.md section 3. What the page says about who is better is computed from the paired intervals.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from . import figures
from .results import Predictions, file_stem, read_results
from .tasks import TASKS

METRIC_TITLES = {
    "accuracy": "accuracy",
    "weighted_key_score": "weighted score",
    "symmetric_key_score": "weighted score, symmetric",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "r2": "mean R2",
    "r2_arousal": "R2 arousal",
    "r2_valence": "R2 valence",
}
TASK_MEAN, FLAT_MEAN = "task mean", "flat mean"


def _title(task: str) -> str:
    return TASKS[task].title if task in TASKS else task


def merge_results(results: Sequence[dict], names: Sequence[str]) -> dict:
    """Put several results files side by side; a source name that occurs in more than one gets its file's name.

    Args:
        results (`Sequence[dict]`): contents of results files.
        names (`Sequence[str]`): a name for each file.
    """
    owners: dict[str, set[str]] = {}
    for name, content in zip(names, results, strict=True):
        for record in content["records"]:
            owners.setdefault(record["source"], set()).add(name)

    merged = {"records": [], "averages": [], "comparisons": []}
    for name, content in zip(names, results, strict=True):

        def renamed(source: str, name: str = name) -> str:
            return f"{name}/{source}" if len(owners.get(source, ())) > 1 else source

        for part in merged:
            for row in content.get(part, []):
                changed = {key: renamed(row[key]) for key in ("source", "baseline") if key in row}
                merged[part].append(row | changed)
    return merged


def table_rows(results: Mapping) -> list[dict]:
    """Rows of the score table: `label`, `cells` (source to value, interval, detail, kind), `counts_in_mean`."""
    rows: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        task, metric = record["task"], record["metric"]
        label = f"{_title(task)}: {METRIC_TITLES.get(metric, metric)}"
        counts = task in TASKS and metric in TASKS[task].value_metrics
        row = rows.setdefault((task, metric), {"label": label, "cells": {}, "counts_in_mean": counts})
        low, high = record["interval"]
        spread = f"± {record['spread']:.3f} " if len(record["seeds"]) > 1 else ""
        row["cells"][record["source"]] = {
            "value": record["value"],
            "interval": record["interval"],
            "detail": f"{spread}[{low:.3f}, {high:.3f}]",
            "kind": record["source_kind"],
        }
    table = list(rows.values())
    for label, key in ((TASK_MEAN, "task_mean"), (FLAT_MEAN, "flat_mean")):
        cells = {}
        for average in results.get("averages", []):
            if len(average["tasks"]) < 2:
                continue
            bounds = average["task_mean_interval"] if key == "task_mean" else None
            detail = f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
            cell = {"value": average[key], "interval": bounds, "detail": detail, "kind": average["source_kind"]}
            cells[average["source"]] = cell
        if cells:
            table.append({"label": label, "cells": cells, "counts_in_mean": False})
    return table


def _source_names(results: Mapping) -> dict[str, str]:
    return {record["source"]: record["source_kind"] for record in results["records"]}


def verdicts(results: Mapping) -> list[str]:
    """One sentence per model and baseline: where the paired 95 % interval lies above, below or around zero."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in results.get("comparisons", []):
        pairs.setdefault((row["source"], row["baseline"]), []).append(row)
    sentences = []
    for (source, baseline), rows in pairs.items():
        groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not separable from": []}
        for row in rows:
            if row["task"] == "task_mean" and len(rows) == 2:
                continue  # the mean over a single task repeats it
            low, high = row["interval"]
            verdict = "better than" if low > 0 else "worse than" if high < 0 else "not separable from"
            name = TASK_MEAN if row["task"] == "task_mean" else _title(row["task"])
            groups[verdict].append(f"{name} ({row['value']:+.3f}, 95 % {low:+.3f} to {high:+.3f})")
        parts = [f"{verdict} {baseline} on {', '.join(items)}" for verdict, items in groups.items() if items]
        failed = "" if groups["better than"] else f" It beats {baseline} on none of the tasks."
        sentences.append(f"{source} is {'; '.join(parts)}.{failed}")
    return sentences or ["No model stands beside a baseline in these results, so nothing is compared."]


def notices(results: Mapping) -> list[str]:
    """What a reader must know before reading a score."""
    lines = []
    if any(record.get("synthetic") for record in results["records"]):
        lines.append(
            "The data is synthetic: audio and labels come from a generator, emotion labels are generator parameters "
            "and not human ratings. Scores rank representations on this corpus and say nothing about real music."
        )
    for record in results["records"]:
        for difference in record.get("differences", ()):
            line = f"{_title(record['task'])} is not comparable with published scores: {difference}"
            if line not in lines:
                lines.append(line)
        for split, tags in (record.get("excluded_tags") or {}).items():
            line = f"{_title(record['task'])}: tags that cannot be scored on {split} ({len(tags)}): {', '.join(tags)}."
            if tags and line not in lines:
                lines.append(line)
    return lines


def protocol_notes(results: Mapping) -> list[str]:
    """Protocol, sizes, seeds and what the numbers mean, in sentences."""
    records = results["records"]
    protocols = sorted({record["protocol"] for record in records})
    sizes = dict.fromkeys(
        f"{_title(record['task'])} "
        + "/".join(str(record["split_sizes"][split]) for split in ("train", "validation", "test"))
        for record in records
    )
    seeds = sorted({len(record["seeds"]) for record in records if record["seeds"]})
    number = " or ".join(map(str, seeds)) or "no"
    return [
        f"Protocol {', '.join(protocols)}: layer and probe settings are chosen on the validation split; the chosen "
        f"probe is trained from {number} seeds and scored once on the test split. Value: mean over seeds; ±: standard "
        "deviation over seeds; brackets: 95 % bootstrap interval over test tracks, which holds neither the luck of "
        "the probe's seeds nor that of the pretraining seed.",
        f"Tracks in train/validation/test: {', '.join(sizes)}.",
        "Chance: most frequent training class, share of each tag in training, or mean of the training targets. "
        "Task mean: mean over tasks of each task's value (tags: mean of ROC-AUC and average precision; emotion: mean "
        "of both R2). Flat mean: plain mean of the value metrics.",
    ]


def format_table(results: Mapping) -> str:
    """The score table as Markdown, readable as plain text: one line per metric, one column per source.

    Args:
        results (`Mapping`): content of a results file, or of `merge_results`.
    """
    sources = list(_source_names(results))
    lines = [["task, metric", *sources]]
    for row in table_rows(results):
        cells = []
        for source in sources:
            cell = row["cells"].get(source)
            bounds = f" [{cell['interval'][0]:.2f}, {cell['interval'][1]:.2f}]" if cell and cell["interval"] else ""
            cells.append(f"{cell['value']:.3f}{bounds}" if cell else "-")
        lines.append([row["label"], *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _draw_layer_figures(results: Mapping, folder: Path) -> list[dict]:
    drawn = []
    kinds = _source_names(results)
    for number, source in enumerate(name for name, kind in kinds.items() if kind in ("model", "random-init")):
        table, chosen = {}, {}
        for record in results["records"]:
            if record["source"] == source and record["task"] not in table:
                metric = METRIC_TITLES.get(record["validation_metric"], record["validation_metric"])
                name = f"{_title(record['task'])} ({metric})"
                table[name], chosen[name] = record["validation_by_layer"], record["layer"]
        path = figures.draw_layers(table, chosen, f"{source}: validation score", folder / f"layers-{number}.png")
        caption = f"{source}: validation score of the best probe of each layer; the chosen layer is framed. "
        caption += "Colours are scaled within a row."
        drawn.append({"heading": "" if drawn else "Layers", "caption": caption, "path": path})
    return drawn


def _draw_confusion_figures(sources: Sequence[tuple[Path, Mapping]], folder: Path) -> list[dict]:
    drawn = []
    for number, (base, content) in enumerate(sources):
        for record in content["records"]:
            task = TASKS.get(record["task"])
            first = task is not None and record["metric"] == task.metrics[0]
            if not first or record["source_kind"] != "model" or task.problem_type != "single_label_classification":
                continue
            if not (base / record["predictions"]).is_file():
                continue
            stored = Predictions.load(base / record["predictions"])
            estimates = stored.outputs.mean(axis=0).argmax(axis=1)
            title = f"{record['source']}: {task.title}"
            path = folder / f"confusion-{number}-{file_stem(record['source'])}-{task.title}.png"
            figures.draw_confusion(stored.references, estimates, stored.labels, title, path)
            caption = f"{title}, test tracks, mean output over seeds; shares of each reference class."
            drawn.append({"heading": "" if drawn else "Confusion", "caption": caption, "path": path})
    return drawn


def read_metrics(path: str | Path) -> list[dict]:
    """Read a metrics.jsonl; a last line that a killed run left unfinished is left out.

    Raises:
        ValueError: if another line is not JSON.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number + 1 < len(lines):
                raise ValueError(f"Line {number + 1} of '{path}' is not JSON ({error}).") from error
    return [record for record in records if "step" in record]


def _draw_all(
    results: Mapping, sources: Sequence[tuple[Path, Mapping]], runs: Mapping[str, list[dict]], output: Path
) -> list[dict]:
    folder = output / "figures"
    rows = [row for row in table_rows(results) if row["counts_in_mean"]]
    caption = "Test scores with 95 % intervals; models in blue, baselines in grey, chance dashed."
    drawn = []
    if rows:
        path = figures.draw_scores(rows, folder / "scores.png")
        drawn.append({"heading": "Scores beside the baselines", "caption": caption, "path": path})
    drawn += _draw_layer_figures(results, folder)
    drawn += _draw_confusion_figures(sources, folder)
    if any(runs.values()):
        path = figures.draw_curves(runs, folder / "training.png")
        caption = (
            f"Pretraining of {', '.join(runs)}. Standard deviations near zero, a rank near one or a position share "
            "near one mean collapse."
        )
        drawn.append({"heading": "Pretraining", "caption": caption, "path": path})
    for figure in drawn:
        figure["data"] = base64.b64encode(figure["path"].read_bytes()).decode()
        figure["file"] = figure.pop("path").relative_to(output).as_posix()
    return drawn


def _log_of(path: Path) -> Path:
    return path / "metrics.jsonl" if path.is_dir() else path


def _is_run(path: Path) -> bool:
    """Whether a path is a pretraining run rather than results: it has a log and no results."""
    if path.is_dir():
        return _log_of(path).is_file() and not (path / "results.json").is_file()
    return path.suffix == ".jsonl"


def _named(folders: Sequence[Path]) -> list[str]:
    """Short names of folders, or whole paths where the short ones are not distinct."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _choices(results: Mapping) -> list[dict]:
    chosen = {}
    for record in results["records"]:
        if record["layer"] is not None:
            chosen.setdefault((record["source"], record["task"]), record | {"task": _title(record["task"])})
    return list(chosen.values())


def write_report(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    title: str = "Music2Vec probing report",
) -> Path:
    """Write the HTML page, which holds its figures, and the figures as PNG files beside it.

    Args:
        inputs: results.json files or their folders, and metrics.jsonl files or the folders of pretraining runs, for
            their curves; any number of both.
        output (`str` or `Path`): folder for report.html and `figures/`.
        title (`str`): title of the page.

    Returns:
        `Path`: of report.html.

    Raises:
        FileNotFoundError, ValueError: if a results file is missing or not readable.
    """
    inputs = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    logs = [path for path in inputs if _is_run(path)]
    runs = _named([path.parent if path.is_file() else path for path in logs])
    runs = {name: read_metrics(_log_of(path)) for name, path in zip(runs, logs, strict=True)}
    paths = [path for path in inputs if path not in logs]
    contents = [read_results(path) for path in paths]
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    merged = merge_results(contents, _named(folders))
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    records = merged["records"]
    page = environment.get_template("report.html").render(
        title=title,
        notices=notices(merged),
        verdicts=verdicts(merged),
        sources=[{"name": name, "kind": kind} for name, kind in _source_names(merged).items()],
        rows=table_rows(merged),
        notes=protocol_notes(merged),
        figures=_draw_all(merged, list(zip(folders, contents, strict=True)), runs, output),
        choices=_choices(merged),
        versions=records[0]["library_versions"] if records else {},
        hashes={record["source"]: record["model_hash"] for record in records if record["model_hash"]},
    )
    path = output / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
