"""How the figures of the report look, as PNG. What they show: `report_figures.py`. No display is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MODEL_COLOUR, BASELINE_COLOUR, CHANCE_COLOUR = "#1f6feb", "#9aa4b2", "#c92a2a"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
MAX_CLASS_NAMES = 32
CURVES = (
    "loss",
    "target_std",
    "prediction_std",
    "feature_std",
    "target_rank",
    "position_share",
    "probe_knn",
    "probe_linear",
    "learning_rate",
    "grad_norm",
    "audio_seconds_per_second",
)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def draw_scores(rows: Sequence[Mapping], path: Path) -> Path:
    """Bars of every source with 95 % intervals, one panel per metric; chance is the dashed line.

    Args:
        rows (`Sequence[Mapping]`): one per metric: `label`, and `cells`, source to `value`, `interval` and `kind`.
        path (`Path`): PNG to write.
    """
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(4.2 * columns, 0.9 + 2.5 * lines), layout="constrained")
    for place, row in enumerate(rows):
        axis = figure.add_subplot(lines, columns, place + 1)
        sources = [source for source, cell in row["cells"].items() if cell["kind"] != "chance"]
        for position, source in enumerate(sources):
            cell = row["cells"][source]
            low, high = cell["interval"]
            errors = [[max(0.0, cell["value"] - low)], [max(0.0, high - cell["value"])]]
            colour = MODEL_COLOUR if cell["kind"] == "model" else BASELINE_COLOUR
            axis.barh(position, cell["value"], color=colour, xerr=errors, error_kw={"elinewidth": 1.2, "capsize": 3})
        for cell in (cell for cell in row["cells"].values() if cell["kind"] == "chance"):
            axis.axvline(cell["value"], linestyle="--", color=CHANCE_COLOUR, linewidth=1.2)
        axis.set_yticks(range(len(sources)), [source.replace("/", "/\n") for source in sources], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(row["label"].replace(": ", "\n"), fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    return _save(figure, path)


def draw_layers(table: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str], title: str, path: Path) -> Path:
    """Heat map of validation scores, tasks by layers; colours are scaled within a task, the chosen layer is framed.

    Args:
        table (`Mapping[str, Mapping[str, float]]`): task to layer to validation score.
        chosen (`Mapping[str, str]`): task to chosen layer.
        title (`str`): title of the figure.
        path (`Path`): PNG to write.
    """
    tasks = list(table)
    layers = list(dict.fromkeys(layer for scores in table.values() for layer in scores))
    values = np.array([[table[task].get(layer, np.nan) for layer in layers] for task in tasks])
    low, high = np.nanmin(values, axis=1, keepdims=True), np.nanmax(values, axis=1, keepdims=True)
    scaled = (values - low) / np.maximum(high - low, 1e-9)
    figure = Figure(figsize=(1.9 + 0.78 * len(layers), 1.3 + 0.55 * len(tasks)), layout="constrained")
    axis = figure.add_subplot()
    axis.imshow(scaled, cmap="Blues", aspect="auto", vmin=0, vmax=1.25)
    for row, task in enumerate(tasks):
        for column, layer in enumerate(layers):
            bold = "bold" if chosen.get(task) == layer else "normal"
            colour = "white" if scaled[row, column] > 0.8 else "black"
            text = "" if np.isnan(values[row, column]) else f"{values[row, column]:.3f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, fontweight=bold, color=colour)
            if bold == "bold":
                axis.add_patch(_frame(column, row))
    axis.set_xticks(range(len(layers)), layers)
    axis.set_yticks(range(len(tasks)), tasks)
    axis.set_xlabel("layer")
    axis.set_title(title, fontsize=10)
    return _save(figure, path)


def _frame(column: int, row: int):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="#d9480f", linewidth=2)


def draw_confusion(
    references: np.ndarray,
    estimates: np.ndarray,
    labels: Sequence[str],
    title: str,
    path: Path,
    block: int | None = None,
) -> Path:
    """Confusion matrix as shares of each reference class; rows are references, columns estimates (class indices).

    Args:
        references, estimates (`np.ndarray` of shape `(n,)`): class indices.
        labels (`Sequence[str]`): names of the classes.
        title (`str`), path (`Path`): of the figure.
        block (`int`, *optional*): draw a line after so many classes.
    """
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (references, estimates), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.4 + 0.24 * min(max(len(labels), 10), MAX_CLASS_NAMES)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = -(-len(labels) // MAX_CLASS_NAMES)
    axis.set_xticks(range(0, len(labels), step), labels[::step], rotation=90, fontsize=7)
    axis.set_yticks(range(0, len(labels), step), labels[::step], fontsize=7)
    if len(labels) <= 12:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            colour = "white" if shares[row, column] > 0.6 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    if block is not None:
        axis.axhline(block - 0.5, color="#57606a", linewidth=0.8)
        axis.axvline(block - 0.5, color="#57606a", linewidth=0.8)
    axis.set_xlabel("estimate")
    axis.set_ylabel("reference")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return _save(figure, path)


def draw_tags(
    labels: Sequence[str], precisions: np.ndarray, shares: np.ndarray, title: str, path: Path, columns: int = 2
) -> Path:
    """Bars of each tag's average precision, the best first; a mark at the share of tracks with the tag.

    Args:
        labels (`Sequence[str]`): tags.
        precisions (`np.ndarray` of shape `(num_tags,)`): average precision; NaN leaves a tag out.
        shares (`np.ndarray` of shape `(num_tags,)`): share of test tracks with the tag.
        title (`str`), path (`Path`): of the figure.
        columns (`int`): panels side by side, for more than 20 tags.
    """
    order = [tag for tag in np.argsort(-precisions) if not np.isnan(precisions[tag])]
    columns = columns if len(order) > 20 else 1
    lines = -(-len(order) // columns)
    figure = Figure(figsize=(4.6 * columns, 1.1 + 0.22 * lines), layout="constrained")
    for column in range(columns):
        tags = order[column * lines : (column + 1) * lines]
        axis = figure.add_subplot(1, columns, column + 1)
        places = np.arange(len(tags))
        axis.barh(places, precisions[tags], color=MODEL_COLOUR, height=0.7)
        axis.plot(shares[tags], places, "|", color=CHANCE_COLOUR, markersize=9, markeredgewidth=1.6)
        for place, tag in zip(places, tags, strict=True):
            end = max(precisions[tag], shares[tag])
            axis.text(end + 0.015, place, f"{precisions[tag]:.2f}", va="center", fontsize=7)
        axis.set_yticks(places, [labels[tag] for tag in tags], fontsize=8)
        axis.set_ylim(lines - 0.4, -0.6)
        axis.set_xlim(0, 1.1)
        axis.set_xlabel("average precision")
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def draw_scatter(
    references: np.ndarray, predictions: np.ndarray, titles: Sequence[str], title: str, path: Path
) -> Path:
    """Predicted against true values, one panel per output, with the diagonal.

    Args:
        references, predictions (`np.ndarray` of shape `(n, K)`): in the labels' own units.
        titles (`Sequence[str]`): of the `K` panels.
        title (`str`), path (`Path`): of the figure.
    """
    figure = Figure(figsize=(4.0 * len(titles), 4.2), layout="constrained")
    for place, name in enumerate(titles):
        axis = figure.add_subplot(1, len(titles), place + 1)
        true, predicted = references[:, place], predictions[:, place]
        axis.scatter(true, predicted, s=12, alpha=0.5, color=MODEL_COLOUR, edgecolors="none")
        _diagonal(axis, np.concatenate([true, predicted]))
        axis.set_xlabel("true")
        axis.set_ylabel("predicted")
        axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def draw_validation_against_test(points: Sequence[tuple[str, str, float, float]], path: Path) -> Path:
    """Test score against validation score; colours are sources, shapes are tasks.

    Args:
        points (`Sequence[tuple]`): source, task, validation score, test score.
        path (`Path`): PNG to write.
    """
    sources, tasks = (list(dict.fromkeys(point[column] for point in points)) for column in (0, 1))
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axis = figure.add_subplot()
    for source, task, validation, test in points:
        colour, marker = f"C{sources.index(source) % 10}", MARKERS[tasks.index(task) % len(MARKERS)]
        axis.plot(validation, test, marker, color=colour, markersize=7, alpha=0.8, markeredgecolor="white")
    _diagonal(axis, np.array([point[2:] for point in points]).flatten())
    for number, source in enumerate(sources):
        axis.plot([], [], "o", color=f"C{number % 10}", label=source)
    for number, task in enumerate(tasks):
        axis.plot([], [], MARKERS[number % len(MARKERS)], color="#57606a", label=task)
    axis.set_xlabel("validation")
    axis.set_ylabel("test")
    axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, fontsize=8)
    return _save(figure, path)


def _diagonal(axis, values: np.ndarray) -> None:
    """Equal axes that hold all values, and the line on which both are equal."""
    low, high = values.min(), values.max()
    margin = 0.05 * max(high - low, 1e-6)
    axis.plot([low - margin, high + margin], [low - margin, high + margin], "--", color=CHANCE_COLOUR, linewidth=1)
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(low - margin, high + margin)
    axis.set_aspect("equal")
    axis.grid(alpha=0.3)


def draw_curves(runs: Mapping[str, Sequence[Mapping]], path: Path) -> Path:
    """Pretraining curves, one panel per monitor, all runs on one axis.

    Args:
        runs (`Mapping[str, Sequence[Mapping]]`): name of a run -> lines of its metrics.jsonl: `step` and any monitors.
        path (`Path`): PNG to write.
    """
    present = [name for name in CURVES if any(name in record for records in runs.values() for record in records)]
    columns = min(3, len(present))
    lines = -(-len(present) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines), layout="constrained")
    for place, name in enumerate(present):
        axis = figure.add_subplot(lines, columns, place + 1)
        for run, records in runs.items():
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=run, linewidth=1.2)
        axis.set_xlabel("step")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        if len(runs) > 1 and place == 0:
            axis.legend(fontsize=8)
    return _save(figure, path)
