"""Tables and sentences of the report: scores, what the intervals say, notices, published scores, the layer guide."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from music2vec_hf.common.files import PARTS
from music2vec_hf.common.metrics import metric_title
from music2vec_hf.common.render import Markdown, markdown_table
from music2vec_hf.probing.scores import averages
from music2vec_hf.probing.tasks.declarations import read_table
from music2vec_hf.probing.tasks.loading import TASKS
from music2vec_hf.probing.tasks.songs import FILTERED

TASK_MEAN, FLAT_MEAN = "task mean", "flat mean"
# Column of the table of published scores -> its title, and the task and metric in it; filtered tags have their own.
PAPER_COLUMNS = {
    "mtt_auc": ("MTT AUC", "magnatagatune", "roc_auc"),
    "mtt_ap": ("MTT AP", "magnatagatune", "average_precision"),
    "gtzan_accuracy": ("GTZAN acc.", "gtzan", "accuracy"),
    "giantsteps_score": ("GiantSteps score", "giantsteps", "weighted_key_score"),
    "emo_r2_arousal": ("EMO R2 A", "emomusic", "r2_arousal"),
    "emo_r2_valence": ("EMO R2 V", "emomusic", "r2_valence"),
}
FILTERED_COLUMNS = {
    "mtt_filtered_auc": ("MTT filtered AUC", FILTERED, "roc_auc"),
    "mtt_filtered_ap": ("MTT filtered AP", FILTERED, "average_precision"),
}
AVERAGE_COLUMNS = {"task_mean": TASK_MEAN, "flat_mean": FLAT_MEAN, "average": "as reported"}
PUBLISHED_PROTOCOLS = ("jukemir", "marble")
PUBLISHED_SCORES = Path(__file__).parent / "published_scores.tsv"
OURS = {
    True: "Ours, comparable with rows of the same protocol",
    False: "Ours, not comparable where marked, nor in the means",
}
DATA_MARK, QUICK_MARK, LAYERS_MARK = "d", "q", "l"  # the paper's own mark is in the table


def task_title(name: str) -> str:
    """Short human name of a task; that of a real data set names it, because several tasks are about genre or tags."""
    task = TASKS.get(name)
    if task is None or task.title == name:
        return name
    return task.title if task.synthetic else f"{task.title} ({name})"


def source_kinds(results: Mapping) -> dict[str, str]:
    """Source to its kind, in the order of the records."""
    return {record["source"]: record["source_kind"] for record in results["records"]}


def table_rows(results: Mapping) -> list[dict]:
    """Rows of the score table: `label`, `cells` (source to value, interval, spread, kind), `counts_in_mean`.

    Means over tasks come last; sources that were probed on different tasks do not share a row of these.
    """
    rows: dict[tuple, dict] = {}

    def add(key: tuple, label: str, counts: bool, row: Mapping, **cell) -> None:
        cells = rows.setdefault(key, {"label": label, "cells": {}, "counts_in_mean": counts})["cells"]
        cells[row["source"]] = {"spread": None, "kind": row["source_kind"]} | cell

    for record in results["records"]:
        task, metric = record["task"], record["metric"]
        counts = task in TASKS and metric in TASKS[task].value_metrics
        spread = record["spread"] if len(record["seeds"]) > 1 else None
        label = f"{task_title(task)}: {metric_title(metric)}"
        add((task, metric), label, counts, record, value=record["value"], interval=record["interval"], spread=spread)
    several = [average for average in results.get("averages", ()) if len(average["tasks"]) > 1]
    differ = len({tuple(average["tasks"]) for average in several}) > 1
    for title, name in ((TASK_MEAN, "task_mean"), (FLAT_MEAN, "flat_mean")):
        for average in several:
            label = f"{title} of {', '.join(map(task_title, average['tasks']))}" if differ else title
            add((label,), label, False, average, value=average[name], interval=average.get(f"{name}_interval"))
    return list(rows.values())


def format_table(results: Mapping) -> str:
    """The score table as Markdown, readable as plain text: one line per metric, one column per source."""
    sources = list(source_kinds(results))

    def text(cell: Mapping | None) -> str:
        bounds = " [{:.2f}, {:.2f}]".format(*cell["interval"]) if cell and cell["interval"] else ""
        return Markdown(f"{cell['value']:.3f}{bounds}" if cell else "-")

    rows = [[row["label"], *(text(row["cells"].get(source)) for source in sources)] for row in table_rows(results)]
    return markdown_table(["task, metric", *sources], rows)


def format_summary(results: Mapping) -> str:
    """The shortest answer: value of every task, and their mean, of the models, of random weights and of the spectral
    baseline with the best mean."""
    means = {average["source"]: average for average in results["averages"]}
    kinds = source_kinds(results)
    spectral = [name for name, kind in kinds.items() if kind not in ("model", "random-init", "chance")]
    best = max(spectral, key=lambda name: means[name]["task_mean"], default=None)
    values: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for record in results["records"]:
        if record["metric"] in TASKS[record["task"]].value_metrics:
            values[record["source"]][record["task"]].append(record["value"])
    tasks = means[next(iter(kinds))]["tasks"]
    rows = [
        [name, f"{means[name]['task_mean']:.3f}", *(f"{mean(values[name][task]):.3f}" for task in tasks)]
        for name, kind in kinds.items()
        if kind in ("model", "random-init") or name == best
    ]
    return markdown_table(["", TASK_MEAN, *map(task_title, tasks)], rows)


def verdicts(results: Mapping) -> list[str]:
    """One sentence per model and baseline: where the paired 95 % interval lies above, below or around zero."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in results.get("comparisons", ()):
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
    """What a reader must know before reading a score, each sentence once."""
    lines = []
    if any(record.get("synthetic") for record in results["records"]):
        lines.append(
            "The data is synthetic: audio and labels come from a generator, emotion labels are generator parameters "
            "and not human ratings. Scores rank representations on this corpus and say nothing about real music."
        )
    for record in results["records"]:
        task = task_title(record["task"])
        for difference in record.get("differences", ()):
            lines.append(f"{task} is not comparable with published scores: {difference}")
        for split, tags in (record.get("excluded_tags") or {}).items():
            if tags:
                lines.append(f"{task}: tags that cannot be scored on {split} ({len(tags)}): {', '.join(tags)}.")
    return list(dict.fromkeys(lines))


def protocol_facts(results: Mapping) -> dict:
    """What the notes below the score table name: protocols, sizes of the splits, numbers of seeds, pilot layers."""
    records = results["records"]
    sizes = (
        "{} {train}/{validation}/{test}".format(task_title(each["task"]), **each["split_sizes"]) for each in records
    )
    return {
        "protocols": sorted({record["protocol"] for record in records}),
        "sizes": list(dict.fromkeys(sizes)),
        "num_seeds": sorted({len(record["seeds"]) for record in records if record["seeds"]}),
        "pilot": any(record.get("layers") == "pilot" for record in records),
    }


def published_rows() -> Iterator[tuple[str, dict]]:
    """Published scores in percent: the title of a group, and a row: `name`, `protocol`, `scores` and `marks`."""
    columns = ("group", "approach", "protocol", *PAPER_COLUMNS, "average", "marks")
    for line in read_table(PUBLISHED_SCORES, "\t", columns):
        scores = {column: float(line[column]) for column in (*PAPER_COLUMNS, "average") if line[column]}
        marks = dict(mark.split("=") for mark in line["marks"].split(",") if mark)
        yield line["group"], _published_row(line["approach"], line["protocol"], scores, marks)


def _published_row(name: str, protocol: str, scores: dict[str, float], marks: dict[str, str]) -> dict:
    """A row with the two means of its six scores, if it has all of them."""
    if PAPER_COLUMNS.keys() <= scores.keys():
        by_task: dict[str, dict[str, float]] = {}
        for column, (_, task, metric) in PAPER_COLUMNS.items():
            by_task.setdefault(task, {})[metric] = scores[column]
        scores = scores | averages(by_task)
    return {"name": name, "protocol": protocol, "scores": scores, "marks": marks}


def our_rows(results: Mapping) -> list[dict]:
    """Our scores as rows of the same form, one per source and protocol; synthetic tasks have none."""
    places = {(task, metric): name for name, (_, task, metric) in (PAPER_COLUMNS | FILTERED_COLUMNS).items()}
    rows: dict[tuple[str, str], tuple[dict, dict]] = {}
    for record in results["records"]:
        column = places.get((record["task"], record["metric"]))
        if column is None or record["source_kind"] == "chance":
            continue
        scores, marks = rows.setdefault((record["source"], record["protocol"]), ({}, {}))
        scores[column] = 100 * record["value"]
        reasons = {
            DATA_MARK: record["differences"],
            QUICK_MARK: record["protocol"] not in PUBLISHED_PROTOCOLS,
            LAYERS_MARK: record.get("layers", "all") != "all",
        }
        marks[column] = "".join(mark for mark, is_so in reasons.items() if is_so)
    found = []
    for (source, protocol), (scores, marks) in rows.items():
        is_comparable = not {DATA_MARK, QUICK_MARK} & set("".join(marks.values()))
        found.append(_published_row(source, protocol, scores, marks) | {"comparable": is_comparable})
    return found


def comparison(results: Mapping) -> dict | None:
    """The table of our scores beside published ones.

    A score stands beside a published one only with the same data and the same protocol; the others form a group of
    their own and are marked.

    Returns:
        `dict`: `columns` (names to titles), `groups` (title to rows), `marked` (columns with marks) and `marks` (all
        that occur); None if no task of the table is among the results.
    """
    groups: dict[str, list[dict]] = {}
    for row in sorted(our_rows(results), key=lambda row: not row["comparable"]):
        groups.setdefault(OURS[row["comparable"]], []).append(row)
    if not groups:
        return None
    filtered = any(FILTERED_COLUMNS.keys() & row["scores"].keys() for rows in groups.values() for row in rows)
    titles = {name: title for name, (title, *_) in (PAPER_COLUMNS | (FILTERED_COLUMNS if filtered else {})).items()}
    for title, row in published_rows():
        groups.setdefault(title, []).append(row)
    marks = [(column, mark) for rows in groups.values() for row in rows for column, mark in row["marks"].items()]
    return {
        "columns": titles | AVERAGE_COLUMNS,
        "groups": groups,
        "marked": {column for column, _ in marks},
        "marks": set("".join(mark for _, mark in marks)),
    }


def layer_guide(results: Mapping) -> list[dict]:
    """Best layer of every model for every task with its probe, as users of a published model want to know it.

    The layer is the one whose best probe scored highest on validation; `runner_up` is the next best layer, whose
    distance tells how much the choice matters.

    Returns:
        `list[dict]`: plain JSON values: `model`, `model_hash`, `task`, `protocol`, `layer`, `probe_settings`,
        `ensemble`, `validation_metric`, `validation_score`, `runner_up` (`layer` and `validation_score`), and `test`,
        metric to value and 95 % interval.
    """
    kept = ("model_hash", "protocol", "layer", "probe_settings", "validation_metric", "validation_score")
    guide: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        if record["source_kind"] != "model":
            continue
        scores = record["validation_by_layer"]
        second = max((layer for layer in scores if layer != record["layer"]), key=scores.get, default=None)
        entry = {
            "model": record["source"],
            "task": record["task"],
            "runner_up": None if second is None else {"layer": second, "validation_score": scores[second]},
            "ensemble": record.get("ensemble"),
            "test": {},
        }
        entry = guide.setdefault((record["source"], record["task"]), entry | {name: record[name] for name in kept})
        entry["test"][record["metric"]] = {"value": record["value"], "interval": record["interval"]}
    return list(guide.values())


def layer_guide_rows(guide: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the layer guide as text."""
    rows = []
    for entry in guide:
        second, metric = entry["runner_up"], metric_title(entry["validation_metric"])
        rows.append(
            [
                f"{entry['model']}, {task_title(entry['task'])}",
                entry["layer"],
                describe_settings(entry["probe_settings"]),
                f"{metric} {entry['validation_score']:.3f}",
                f"{second['layer']} ({second['validation_score']:.3f})" if second else "-",
                ", ".join(f"{metric_title(name)} {score['value']:.3f}" for name, score in entry["test"].items()),
            ]
        )
    return ["model, task", "layer", "probe", "validation", "next best layer", "test"], rows


def describe_settings(settings: Mapping) -> str:
    """Settings of a probe in words."""
    hidden, dropout = settings["kind"] == "mlp", f"dropout {settings['dropout_input']:g} of features"
    parts = [
        f"hidden layer of {settings.get('hidden_size', 512)}" if hidden else "linear",
        f"learning rate {settings['learning_rate']:g}",
        f"{dropout}, {settings['dropout']:g} of hidden units" if hidden else dropout,
    ]
    if settings.get("weight_decay"):
        parts.append(f"weight decay {settings['weight_decay']:g}")
    if "batch_size" in settings:
        parts.append(f"batch {settings['batch_size']}")
    if "standardise" in settings:
        parts.append("standardised" if settings["standardise"] else "not standardised")
    return ", ".join(parts)


def distinct_sources(results: Sequence[Mapping], names: Sequence[str]) -> list[dict]:
    """Results whose source names are distinct: where two files would claim the same cell, the file's name is added.

    The same source (equal weights and protocol) on other tasks in another file keeps its name, so that tasks
    which were probed one by one share a column.
    """
    claims, identities = defaultdict(set), defaultdict(set)
    for number, content in enumerate(results):
        for record in content["records"]:
            claims[record["source"]].add((record["task"], number))
            identities[record["source"]].add((record["model_hash"], record["protocol"]))
    clashing = {
        source
        for source, cells in claims.items()
        if len(cells) > len({task for task, _ in cells}) or len(identities[source]) > 1
    }

    def renamed(row: Mapping, name: str) -> dict:
        keys = [key for key in ("source", "baseline") if row.get(key) in clashing]
        return {**row, **{key: f"{name}/{row[key]}" for key in keys}}

    return [
        {**content, **{part: [renamed(row, name) for row in content.get(part, ())] for part in PARTS}}
        for name, content in zip(names, results, strict=True)
    ]
