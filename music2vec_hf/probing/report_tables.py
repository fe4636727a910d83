"""Tables and sentences of the report: scores, what the intervals say, what a reader must know before, layer guide."""

from collections.abc import Mapping, Sequence

from music2vec_hf.probing.tasks.loading import TASKS

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


def task_title(name: str) -> str:
    """Short human name of a task; that of a real data set names it, because several tasks are about genre or tags."""
    task = TASKS.get(name)
    if task is None or task.synthetic:
        return name if task is None else task.title
    return f"{task.title} ({name})"


def metric_title(name: str) -> str:
    """Human name of a metric."""
    return METRIC_TITLES.get(name, name)


def table_rows(results: Mapping) -> list[dict]:
    """Rows of the score table: `label`, `cells` (source to value, interval, details, kind), `counts_in_mean`."""
    rows: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        task, metric = record["task"], record["metric"]
        label = f"{task_title(task)}: {metric_title(metric)}"
        counts = task in TASKS and metric in TASKS[task].value_metrics
        row = rows.setdefault((task, metric), {"label": label, "cells": {}, "counts_in_mean": counts})
        low, high = record["interval"]
        details = [f"± {record['spread']:.3f}"] if len(record["seeds"]) > 1 else []
        row["cells"][record["source"]] = {
            "value": record["value"],
            "interval": record["interval"],
            "details": [*details, f"[{low:.3f}, {high:.3f}]"],
            "kind": record["source_kind"],
        }
    return list(rows.values()) + _average_rows(results)


def _average_rows(results: Mapping) -> list[dict]:
    """Rows of the means over tasks; sources that were probed on different tasks do not share a row."""
    rows: dict[tuple, dict] = {}
    several = [average for average in results.get("averages", []) if len(average["tasks"]) > 1]
    differ = len({tuple(average["tasks"]) for average in several}) > 1
    for label, key in ((TASK_MEAN, "task_mean"), (FLAT_MEAN, "flat_mean")):
        for average in several:
            tasks = f" of {', '.join(map(task_title, average['tasks']))}" if differ else ""
            row = rows.setdefault((key, tasks), {"label": label + tasks, "cells": {}, "counts_in_mean": False})
            bounds = average["task_mean_interval"] if key == "task_mean" else None
            details = [f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"] if bounds else []
            cell = {"value": average[key], "interval": bounds, "details": details, "kind": average["source_kind"]}
            row["cells"][average["source"]] = cell
    return list(rows.values())


def source_kinds(results: Mapping) -> dict[str, str]:
    """Source to its kind, in the order of the records."""
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
            name = TASK_MEAN if row["task"] == "task_mean" else task_title(row["task"])
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
            line = f"{task_title(record['task'])} is not comparable with published scores: {difference}"
            if line not in lines:
                lines.append(line)
        for split, tags in (record.get("excluded_tags") or {}).items():
            name = task_title(record["task"])
            line = f"{name}: tags that cannot be scored on {split} ({len(tags)}): {', '.join(tags)}."
            if tags and line not in lines:
                lines.append(line)
    return lines


def protocol_notes(results: Mapping) -> list[str]:
    """Protocol, sizes, seeds and what the numbers mean, in sentences."""
    records = results["records"]
    protocols = sorted({record["protocol"] for record in records})
    sizes = dict.fromkeys(
        f"{task_title(record['task'])} "
        + "/".join(str(record["split_sizes"][split]) for split in ("train", "validation", "test"))
        for record in records
    )
    seeds = sorted({len(record["seeds"]) for record in records if record["seeds"]})
    number = " or ".join(map(str, seeds)) or "no"
    notes = [
        f"Protocol {', '.join(protocols)}: layer and probe settings are chosen on the validation split; the chosen "
        f"probe is trained from {number} seeds and scored once on the test split. Value: mean over seeds; ±: standard "
        "deviation over seeds; brackets: 95 % bootstrap interval over test tracks, which holds neither the luck of "
        "the probe's seeds nor that of the pretraining seed.",
        f"Tracks in train/validation/test: {', '.join(sizes)}.",
        "Chance: most frequent training class, share of each tag in training, or mean of the training targets. "
        "Task mean: mean over tasks of each task's value (tags: mean of ROC-AUC and average precision; emotion: mean "
        "of both R2). Flat mean: plain mean of the value metrics.",
    ]
    if any(record.get("layers") == "pilot" for record in records):
        notes.append("Layers `pilot`: for each task only the layer that the protocol quick chooses on validation.")
    return notes


def format_table(results: Mapping) -> str:
    """The score table as Markdown, readable as plain text: one line per metric, one column per source.

    Args:
        results (`Mapping`): content of a results file, or of several side by side.
    """
    sources = list(source_kinds(results))
    rows = []
    for row in table_rows(results):
        cells = []
        for source in sources:
            cell = row["cells"].get(source)
            bounds = f" [{cell['interval'][0]:.2f}, {cell['interval'][1]:.2f}]" if cell and cell["interval"] else ""
            cells.append(f"{cell['value']:.3f}{bounds}" if cell else "-")
        rows.append([row["label"], *cells])
    return markdown_table(["task, metric", *sources], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text, too; all but the first to the right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = []
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        text.append(f"| {' | '.join(cells)} |")
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([text[0], f"|{'|'.join(rule)}|", *text[1:]])


def layer_guide(results: Mapping) -> list[dict]:
    """Best layer of every model for every task with its probe, as users of a published model want to know it.

    The layer is the one whose best probe scored highest on validation; `runner_up` is the next best layer, whose
    distance tells how much the choice matters.

    Args:
        results (`Mapping`): content of a results file, or of several side by side.

    Returns:
        `list[dict]`: plain JSON values: `model`, `model_hash`, `task`, `protocol`, `layer`, `probe_settings`,
        `ensemble`, `validation_metric`, `validation_score`, `runner_up` (`layer` and `validation_score`), and `test`,
        metric to value and 95 % interval.
    """
    guide: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        if record["source_kind"] != "model":
            continue
        others = {layer: score for layer, score in record["validation_by_layer"].items() if layer != record["layer"]}
        entry = {
            "model": record["source"],
            "task": record["task"],
            "runner_up": {"layer": (best := max(others, key=others.get)), "validation_score": others[best]}
            if others
            else None,
            "ensemble": record.get("ensemble"),
            "test": {},
        }
        kept = ("model_hash", "protocol", "layer", "probe_settings", "validation_metric", "validation_score")
        entry = guide.setdefault((record["source"], record["task"]), entry | {name: record[name] for name in kept})
        entry["test"][record["metric"]] = {"value": record["value"], "interval": record["interval"]}
    return list(guide.values())


def layer_guide_rows(guide: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the layer guide as text."""
    header = ["model, task", "layer", "probe", "validation", "next best layer", "test"]
    rows = []
    for entry in guide:
        second, metric = entry["runner_up"], metric_title(entry["validation_metric"])
        scores = [f"{metric_title(name)} {score['value']:.3f}" for name, score in entry["test"].items()]
        rows.append(
            [
                f"{entry['model']}, {task_title(entry['task'])}",
                entry["layer"],
                describe_settings(entry["probe_settings"]),
                f"{metric} {entry['validation_score']:.3f}",
                f"{second['layer']} ({second['validation_score']:.3f})" if second else "-",
                ", ".join(scores),
            ]
        )
    return header, rows


def describe_settings(settings: Mapping) -> str:
    """Settings of a probe in words."""
    kind = f"hidden layer of {settings.get('hidden_size', 512)}" if settings["kind"] == "mlp" else "linear"
    parts = [
        kind,
        f"learning rate {settings['learning_rate']:g}",
        f"dropout {settings['dropout_input']:g} of features, {settings['dropout']:g} of hidden units"
        if settings["kind"] == "mlp"
        else f"dropout {settings['dropout_input']:g} of features",
    ]
    if settings.get("weight_decay"):
        parts.append(f"weight decay {settings['weight_decay']:g}")
    if "batch_size" in settings:
        parts.append(f"batch {settings['batch_size']}")
    if "standardise" in settings:
        parts.append("standardised" if settings["standardise"] else "not standardised")
    return ", ".join(parts)
