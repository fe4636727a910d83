"""The report: one HTML page with its figures, the same as Markdown, and the layer guide, from `results.json` files.

Row 14 of DESIGN.md section 3. What the page says about who is better is computed from the paired intervals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from music2vec_hf.common.files import (
    METRICS,
    PARTS,
    RESULTS,
    RUN,
    printable,
    read_metrics,
    read_results,
    storable,
    write_json,
    write_text,
)
from music2vec_hf.common.metrics import KEY_LABELS, metric_title, tag_scores
from music2vec_hf.common.render import as_base64, markdown_table, render, save_figure
from music2vec_hf.probing.report_tables import (
    comparison,
    distinct_sources,
    format_table,
    layer_guide,
    layer_guide_rows,
    notices,
    protocol_facts,
    source_kinds,
    table_rows,
    task_title,
    verdicts,
)
from music2vec_hf.probing.scores import Predictions, file_stem
from music2vec_hf.probing.tasks.loading import TASKS

MODEL_COLOUR, BASELINE_COLOUR, CHANCE_COLOUR, LINE_COLOUR = "#1f6feb", "#9aa4b2", "#c92a2a", "#57606a"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
MAX_CLASS_NAMES, MAX_BARS = 32, 20
# Neighbours lie a fifth apart; each minor key stands where its relative major does.
FIFTHS = [7 * step % 12 for step in range(12)]
KEYS_BY_FIFTHS = FIFTHS + [12 + (tonic + 9) % 12 for tonic in FIFTHS]
CURVES = (
    *("loss", "target_std", "prediction_std", "feature_std", "target_rank", "position_share"),
    *("probe_knn", "probe_linear", "learning_rate", "grad_norm", "audio_seconds_per_second"),
)
# Names of sources and labels are no formulas.
STYLE = {
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "text.parse_math": False,
}
Drawn = Iterator[tuple[str, Figure, str]]  # name of the file, figure, caption


def draw_all(
    results: Mapping, sources: Sequence[tuple[Path, Mapping]], runs: Mapping[str, list[dict]], output: Path
) -> list[dict]:
    """Draw every figure that there is something for.

    Args:
        sources (`Sequence[tuple[Path, Mapping]]`): folder and content of each file, with source names as in `results`.
        runs (`Mapping[str, list[dict]]`): name of a pretraining run -> lines of its metrics.jsonl.

    Returns:
        `list[dict]`: `heading` (empty for a figure that belongs to the one before), `caption`, `file` relative to
        `output`, and `data`, the PNG in base64.
    """
    groups = {
        "Scores beside the baselines": _scores(results),
        "Layers": _layers(results),
        "Validation against test": _validation_against_test(results),
        "Confusion": _confusion(sources),
        "Tags": _tags(sources),
        "Emotion": _scatter(sources),
        "Pretraining": _curves(runs),
    }
    drawn = []
    with rc_context(STYLE):
        for heading, group in groups.items():
            for name, figure, caption in group:
                data = as_base64(save_figure(figure, output / "figures" / name).read_bytes())
                drawn.append({"heading": heading, "caption": caption, "file": f"figures/{name}", "data": data})
                heading = ""
    return drawn


def _panels(number: int, width: float, height: float, title_height: float = 0.0):
    """A figure of so many panels, three in a row, and its axes."""
    columns = min(3, number)
    lines = -(-number // columns)
    figure = Figure(figsize=(width * columns, title_height + height * lines))
    return figure, [figure.add_subplot(lines, columns, place + 1) for place in range(number)]


def _scores(results: Mapping) -> Drawn:
    rows = [row for row in table_rows(results) if row["counts_in_mean"]]
    if not rows:
        return
    figure, axes = _panels(len(rows), 4.2, 2.5, title_height=0.9)
    for row, axis in zip(rows, axes, strict=True):
        bars = {source: cell for source, cell in row["cells"].items() if cell["kind"] != "chance"}
        for position, cell in enumerate(bars.values()):
            low, high = cell["interval"]
            errors = [[max(0.0, cell["value"] - low)], [max(0.0, high - cell["value"])]]
            colour = MODEL_COLOUR if cell["kind"] == "model" else BASELINE_COLOUR
            axis.barh(position, cell["value"], color=colour, xerr=errors, error_kw={"elinewidth": 1.2, "capsize": 3})
        for cell in (cell for cell in row["cells"].values() if cell["kind"] == "chance"):
            axis.axvline(cell["value"], linestyle="--", color=CHANCE_COLOUR, linewidth=1.2)
        axis.set_yticks(range(len(bars)), [source.replace("/", "/\n") for source in bars], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(row["label"].replace(": ", "\n"))
        axis.grid(axis="x")
    yield "scores.png", figure, "Test scores with 95 % intervals; models in blue, baselines in grey, chance dashed."


def _first_records(results: Mapping) -> dict[tuple[str, str], dict]:
    """For each source and task one record, for what all its records share."""
    firsts: dict[tuple[str, str], dict] = {}
    for record in results["records"]:
        firsts.setdefault((record["source"], record["task"]), record)
    return firsts


def _layers(results: Mapping) -> Drawn:
    """Heat maps of validation scores, tasks by layers."""
    shown = [name for name, kind in source_kinds(results).items() if kind in ("model", "random-init")]
    for number, source in enumerate(shown):
        records = [record for (name, _), record in _first_records(results).items() if name == source]
        scores = [record["validation_by_layer"] for record in records]
        layers = list(dict.fromkeys(layer for by_layer in scores for layer in by_layer))
        values = np.array([[by_layer.get(layer, np.nan) for layer in layers] for by_layer in scores])
        low, high = np.nanmin(values, axis=1, keepdims=True), np.nanmax(values, axis=1, keepdims=True)
        scaled = (values - low) / np.maximum(high - low, 1e-9)
        figure, (axis,) = _panels(1, 1.9 + 0.78 * len(layers), 1.3 + 0.55 * len(records))
        axis.imshow(scaled, cmap="Blues", aspect="auto", vmin=0, vmax=1.25)
        for (row, column), value in np.ndenumerate(values):
            chosen = records[row]["layer"] == layers[column]
            style = {"fontweight": "bold" if chosen else "normal", "fontsize": 8, "ha": "center", "va": "center"}
            colour = "white" if scaled[row, column] > 0.8 else "black"
            axis.text(column, row, "" if np.isnan(value) else f"{value:.3f}", color=colour, **style)
            if chosen:
                corner = column - 0.48, row - 0.46
                axis.add_patch(Rectangle(corner, 0.96, 0.92, fill=False, edgecolor="#d9480f", linewidth=2))
        names = [f"{task_title(each['task'])}, {metric_title(each['validation_metric'])}" for each in records]
        axis.set_xticks(range(len(layers)), layers)
        axis.set_yticks(range(len(records)), names)
        axis.set(xlabel="layer", title=f"{source}: validation score")
        caption = f"{source}: validation score of the best probe of each layer; the chosen layer is framed. "
        yield f"layers-{number}.png", figure, caption + "Colours are scaled within a row."


def _validation_against_test(results: Mapping) -> Drawn:
    """The chosen probe's validation score against its test score in the same metric; of R2, the mean over outputs."""
    test: dict[tuple[str, str], list[float]] = {}
    for record in results["records"]:
        metric, chosen_by = record["metric"], record["validation_metric"]
        if record["validation_score"] is not None and (metric == chosen_by or metric.startswith(f"{chosen_by}_")):
            test.setdefault((record["source"], record["task"]), []).append(record["value"])
    if not test:
        return
    firsts = _first_records(results)
    points = {key: (firsts[key]["validation_score"], np.mean(values)) for key, values in test.items()}
    sources, tasks = (list(dict.fromkeys(names)) for names in zip(*points, strict=True))
    figure, (axis,) = _panels(1, 7.6, 4.8)
    for (source, task), point in points.items():
        colour, marker = f"C{sources.index(source) % 10}", MARKERS[tasks.index(task) % len(MARKERS)]
        axis.plot(*point, marker, color=colour, markersize=7, alpha=0.8, markeredgecolor="white")
    _diagonal(axis, np.array(list(points.values())))
    for number, source in enumerate(sources):
        axis.plot([], [], "o", color=f"C{number % 10}", label=source)
    for number, task in enumerate(tasks):
        axis.plot([], [], MARKERS[number % len(MARKERS)], color=LINE_COLOUR, label=task_title(task))
    axis.set(xlabel="validation", ylabel="test")
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, fontsize=8)
    caption = "Score of the chosen probe on validation, by which it was chosen, and on test, in the same metric. "
    yield "validation-test.png", figure, caption + "Far below the diagonal: the choice fitted the validation split."


def _diagonal(axis, values: np.ndarray) -> None:
    """Equal axes that hold all values, and the line on which both are equal."""
    low, high = values.min(), values.max()
    margin = 0.05 * max(high - low, 1e-6)
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, "--", color=CHANCE_COLOUR, linewidth=1)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    axis.grid()


def _stored(
    sources: Sequence[tuple[Path, Mapping]], problem_type: str
) -> Iterator[tuple[str, str, dict, Predictions]]:
    """Models' predictions for tasks of one type: end of the file's name, title, records by metric, predictions."""
    for number, (base, content) in enumerate(sources):
        groups: dict[tuple[str, str], dict] = {}
        for record in content["records"]:
            task = TASKS.get(record["task"])
            drawn = task is not None and task.problem_type == problem_type and not task.events
            if record["source_kind"] == "model" and drawn:
                groups.setdefault((record["source"], record["task"]), {})[record["metric"]] = record
        for (source, task), records in groups.items():
            path = base / next(iter(records.values()))["predictions"]
            if path.is_file():
                name = f"{number}-{file_stem(source)}-{task}.png"
                stored = Predictions.load(path)
                stored = replace(stored, labels=tuple(map(printable, stored.labels)))
                yield name, f"{source}: {task_title(task)}", records, stored


def _confusion(sources: Sequence[tuple[Path, Mapping]]) -> Drawn:
    """Shares of each reference class; rows are references, columns estimates."""
    for file, title, _, stored in _stored(sources, "single_label_classification"):
        keys = tuple(stored.labels) == KEY_LABELS
        order = KEYS_BY_FIFTHS if keys else range(len(stored.labels))
        counts = np.zeros((len(order), len(order)))
        references = np.tile(stored.references, len(stored.outputs))
        np.add.at(counts, (references, stored.outputs.argmax(axis=2).flatten()), 1)
        shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(order, order)]
        size = 2.4 + 0.24 * min(max(len(order), 10), MAX_CLASS_NAMES)
        figure, (axis,) = _panels(1, size + 0.8, size)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        shown = range(0, len(order), -(-len(order) // MAX_CLASS_NAMES))
        labels = [stored.labels[order[place]] for place in shown]
        axis.set_xticks(shown, labels, rotation=90, fontsize=7)
        axis.set_yticks(shown, labels, fontsize=7)
        for row, column in np.argwhere(shares >= 0.005) if len(order) <= 12 else ():
            colour = "white" if shares[row, column] > 0.6 else "black"
            style = {"fontsize": 7, "ha": "center", "va": "center"}
            axis.text(column, row, f"{100 * shares[row, column]:.0f}", color=colour, **style)
        caption = f"{title}: test tracks, all seeds; shares of each reference class."
        if keys:
            axis.axhline(11.5, color=LINE_COLOUR, linewidth=0.8)
            axis.axvline(11.5, color=LINE_COLOUR, linewidth=0.8)
            caption += (
                " Keys in the order of the circle of fifths: beside the diagonal lies a fifth, on the diagonals of "
                "the other two blocks the relative key."
            )
        axis.set(xlabel="estimate", ylabel="reference", title=title)
        figure.colorbar(image, ax=axis, shrink=0.8)
        yield f"confusion-{file}", figure, caption


def _tags(sources: Sequence[tuple[Path, Mapping]]) -> Drawn:
    """Bars of each tag's average precision, the best first; a mark at the share of tracks with the tag."""
    for file, title, _, stored in _stored(sources, "multi_label_classification"):
        scores = tag_scores("average_precision", stored.references, stored.outputs)
        precisions, shares = scores.mean(axis=0), stored.references.mean(axis=0)
        order = [tag for tag in np.argsort(-precisions) if not np.isnan(precisions[tag])]
        columns = 2 if len(order) > MAX_BARS else 1
        lines = -(-len(order) // columns)
        figure, axes = _panels(columns, 4.6, 1.1 + 0.22 * lines)
        for column, axis in enumerate(axes):
            tags = order[column * lines : (column + 1) * lines]
            places = np.arange(len(tags))
            axis.barh(places, precisions[tags], color=MODEL_COLOUR, height=0.7)
            axis.plot(shares[tags], places, "|", color=CHANCE_COLOUR, markersize=9, markeredgewidth=1.6)
            for place, tag in zip(places, tags, strict=True):
                end = max(precisions[tag], shares[tag])
                axis.text(end + 0.015, place, f"{precisions[tag]:.2f}", va="center", fontsize=7)
            axis.set_yticks(places, [stored.labels[tag] for tag in tags], fontsize=8)
            axis.set(ylim=(lines - 0.4, -0.6), xlim=(0, 1.1), xlabel="average precision")
            axis.grid(axis="x")
        figure.suptitle(title)
        caption = (
            f"{title}: average precision of each tag on test tracks, mean over seeds. The mark is the share of tracks "
            "with the tag, which guessing reaches; tags that cannot be scored are left out."
        )
        yield f"tags-{file}", figure, caption


def _scatter(sources: Sequence[tuple[Path, Mapping]]) -> Drawn:
    """Predicted against true values in the labels' own units, one panel per output."""
    for file, title, records, stored in _stored(sources, "regression"):
        figure, axes = _panels(len(stored.labels), 4.0, 4.2)
        for place, (axis, label) in enumerate(zip(axes, stored.labels, strict=True)):
            true, predicted = stored.references[:, place], stored.outputs[0][:, place]
            axis.scatter(true, predicted, s=12, alpha=0.5, color=MODEL_COLOUR, edgecolors="none")
            _diagonal(axis, np.concatenate([true, predicted]))
            axis.set(xlabel="true", ylabel="predicted")
            score = records.get(f"r2_{label}")
            axis.set_title(f"{label} (R2 {score['value']:.3f})" if score else label)
        figure.suptitle(title)
        yield f"scatter-{file}", figure, f"{title}: test tracks, probe of the first seed; R2 is the mean over seeds."


def _curves(runs: Mapping[str, list[dict]]) -> Drawn:
    """Curves of pretraining, one panel per monitor, all runs on one axis."""
    present = [name for name in CURVES if any(name in record for records in runs.values() for record in records)]
    if not present:
        return
    figure, axes = _panels(len(present), 4.2, 2.8)
    for name, axis in zip(present, axes, strict=True):
        for run, records in runs.items():
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=run, linewidth=1.2)
        axis.set(xlabel="step", title=name)
        axis.grid()
    if len(runs) > 1:
        axes[0].legend(fontsize=8)
    caption = f"Pretraining of {', '.join(runs)}. Standard deviations near zero, a rank near one or a position share "
    yield "training.png", figure, caption + "near one mean collapse."


# ---- the page ----

TEMPLATES = Path(__file__).parent


def write_report(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    title: str = "Music2Vec probing report",
) -> Path:
    """Write the report: report.html, which holds its figures; report.md; layer_guide.json; and the figures as PNG.

    Args:
        inputs: results.json files or their folders, and metrics.jsonl files or the folders of pretraining runs, for
            their curves; any number of both.
        output (`str` or `Path`): folder for these and `figures/`.

    Raises:
        FileNotFoundError, ValueError: if a results file is missing or not readable.
    """
    inputs = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    logs = [path for path in inputs if is_run(path)]
    names = _short_names([path.parent if path.is_file() else path for path in logs])
    runs = {name: read_metrics(path) for name, path in zip(names, logs, strict=True)}
    paths = [path for path in inputs if path not in logs]
    folders = [path if path.is_dir() else path.parent for path in paths]
    contents = distinct_sources([storable(read_results(path)) for path in paths], _short_names(folders))
    results = {part: [row for content in contents for row in content[part]] for part in PARTS}
    output = Path(output)
    figures = draw_all(results, list(zip(folders, contents, strict=True)), runs, output)
    content = {"title": title, "figures": figures} | _content(results)
    write_text(output / "report.md", render(TEMPLATES / "report.md.jinja", **content))
    write_json(output / "layer_guide.json", {"layers": layer_guide(results)}, indent=1)
    return write_text(output / "report.html", render(TEMPLATES / "report.html.jinja", **content))


def is_run(path: Path) -> bool:
    """Whether a path is a pretraining run, which may have no record yet, rather than results."""
    if path.is_dir():
        return any((path / name).is_file() for name in (METRICS, RUN)) and not (path / RESULTS).is_file()
    return path.suffix == ".jsonl"


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Last names of folders, or whole paths where these are not distinct."""
    names = [printable(folder.resolve().name) for folder in folders]
    return names if len(set(names)) == len(names) else [printable(str(folder)) for folder in folders]


def _content(results: Mapping) -> dict:
    """All that the page and the Markdown show, but the figures."""
    records, guide, published = results["records"], layer_guide(results), comparison(results)

    def published_table(rows: Sequence[Mapping]) -> str:
        def text(row: Mapping, column: str) -> str:
            return f"{_percent(row['scores'].get(column))} {row['marks'].get(column, '')}".strip()

        cells = [[row["name"], row["protocol"], *(text(row, name) for name in published["columns"])] for row in rows]
        return markdown_table(["approach", "protocol", *published["columns"].values()], cells)

    return {
        "notices": notices(results),
        "verdicts": verdicts(results),
        "sources": source_kinds(results),
        "rows": table_rows(results),
        "score_table": format_table(results),
        "facts": protocol_facts(results),
        "published": published,
        "published_table": published_table,
        "percent": _percent,
        "guide": layer_guide_rows(guide) if guide else None,
        "versions": records[0]["library_versions"] if records else {},
        "hashes": {record["source"]: record["model_hash"] for record in records if record["model_hash"]},
    }


def _percent(score: float | None) -> str:
    """One digit: means of scores with one digit often end in 5, which binary fractions would round down."""
    return "-" if score is None else f"{score + 1e-9:.1f}"
