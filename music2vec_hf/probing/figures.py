"""Figures of the report: scores beside the baselines, layers, confusion, pretraining curves. No display is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MODEL_COLOUR, BASELINE_COLOUR = "#1f6feb", "#9aa4b2"
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
    figure = Figure(figsize=(4.2 * columns, 0.9 + 2.3 * lines), layout="constrained")
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
            axis.axvline(cell["value"], linestyle="--", color="#c92a2a", linewidth=1.2)
        axis.set_yticks(range(len(sources)), sources)
        axis.invert_yaxis()
        axis.set_title(row["label"], fontsize=10)
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
    references: np.ndarray, estimates: np.ndarray, labels: Sequence[str], title: str, path: Path
) -> Path:
    """Confusion matrix as shares of each reference class; rows are references, columns estimates (class indices)."""
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (references, estimates), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.24 * len(labels)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set_xlabel("estimate")
    axis.set_ylabel("reference")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return _save(figure, path)


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
