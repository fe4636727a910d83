"""What a model made of a song, as HTML for the page of `music2vec app`: time lines, top answers, similar tracks."""

import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from music2vec_hf.app_listener import Answer, Listener
from music2vec_hf.common.render import figure_as_base64, render

_TEMPLATE = Path(__file__).with_name("app.html.jinja")
_FRAME = Path(__file__).with_name("app_frame.html.jinja")
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6bb1", "#b8a800")
_NUM_LABELS, _MIN_CELLS = 6, 8
_CONTEXT_SECONDS = 4.0  # what lies before a moment and after it, when its change is measured
_FILE_ROUTE = "gradio_api/file="


def show_answer(name: str, answer: Answer, listener: Listener) -> str:
    """The answer as HTML: time lines, top answers, similar tracks with players where their files are there."""
    similar = None
    if answer.similar is not None:
        similar = [(Path(path).name, path, score, _address(path)) for path, score in answer.similar]
    return render(
        _TEMPLATE,
        name=name,
        answer=answer,
        ticks=[_clock(answer.seconds * step / 4) for step in range(5)],
        labels=_label_rows(answer),
        strip=_best_labels(answer),
        sound=None if listener.head else _sound(answer),
        similar=similar,
        about=listener.name,
        has_head=listener.head is not None,
    )


def show_introduction(listener: Listener) -> str:
    """What stands above the place where songs are dropped: what the model tells, and the limits."""
    return render(_FRAME, listener=listener, error=None)


def show_error(sentence: str) -> str:
    """A sentence in place of an answer."""
    return render(_FRAME, listener=None, error=sentence)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _address(path: str) -> str | None:
    """Where the page finds a track of the library; None if its file is not there."""
    return f"{_FILE_ROUTE}{quote(os.path.abspath(path))}" if os.path.isfile(path) else None


def _label_rows(answer: Answer) -> list[dict]:
    """The top labels, each with its strength in every window: `left` and `width` in per cent, `opacity` to 1."""
    rows = []
    for (label, score), colour in zip(answer.labels[:_NUM_LABELS], _COLOURS, strict=False):
        values = [window["scores"][label] for window in answer.timeline]
        low, high = (0.0, 1.0) if answer.is_share else (min(values), max(values))
        spans = [
            _span(answer, window["start"], window["end"])
            | {"opacity": (value - low) / (high - low) if high > low else 1.0}
            | {"title": f"{_clock(window['start'])} {label} {_score(answer, value)}"}
            for window, value in zip(answer.timeline, values, strict=True)
        ]
        bar = 100 * score if answer.is_share else None
        rows.append({"label": label, "score": _score(answer, score), "bar": bar, "colour": colour, "spans": spans})
    return rows


def _best_labels(answer: Answer) -> list[dict]:
    """Stretches of the song with one best label; none for tags and values, which do not compete."""
    colours = dict(zip([label for label, _ in answer.labels], _COLOURS, strict=False))
    stretches: list[dict] = []
    for window in answer.timeline if answer.is_exclusive else ():
        label = max(window["scores"], key=window["scores"].get)
        if stretches and stretches[-1]["label"] == label:
            stretches[-1]["end"] = window["end"]
        else:
            stretches.append({"label": label, "start": window["start"], "end": window["end"]})
    return [
        each
        | _span(answer, each["start"], each["end"])
        | {"colour": colours.get(each["label"], "#888"), "title": f"{_clock(each['start'])} {each['label']}"}
        for each in stretches
    ]


def _span(answer: Answer, start: float, end: float) -> dict:
    return {"left": 100 * start / answer.seconds, "width": 100 * (end - start) / answer.seconds}


def _score(answer: Answer, value: float) -> str:
    return f"{value:.0%}" if answer.is_share else f"{value:.2f}"


def _sound(answer: Answer) -> dict | None:
    """What a model without labels tells of a song: `colours` of its pieces (alike where they sound alike), `curve` of
    change as points of an SVG of 1000 x 100, the largest `changes`, and `matrix`, a PNG of every piece beside
    every other. None for a song of a few pieces.
    """
    if len(answer.cells) < _MIN_CELLS:
        return None
    starts = np.array([start for start, _ in answer.cells])
    cells = np.stack([cell for _, cell in answer.cells])
    cells = cells - cells.mean(0)  # what the whole song shares says nothing about its parts
    axes = np.linalg.svd(cells, full_matrices=False)[0][:, :3]
    axes = axes / np.maximum(np.abs(axes).max(0), 1e-12)
    hues, chromas = np.degrees(np.arctan2(axes[:, 1], axes[:, 0])), np.hypot(axes[:, 0], axes[:, 1])
    colours = [
        f"oklch({0.68 + 0.12 * light:.2f} {0.2 * min(1.0, chroma):.3f} {hue % 360:.0f})"
        for hue, chroma, light in zip(hues, chromas, axes[:, 2], strict=True)
    ]
    bounds = [*starts, answer.seconds]
    pieces = [
        _span(answer, start, end) | {"colour": colour}
        for start, end, colour in zip(bounds, bounds[1:], colours, strict=False)
    ]
    change = _change(cells, max(1, round(_CONTEXT_SECONDS * len(cells) / answer.seconds)))
    top = max(change.max(), 1e-12)
    points = [f"{1000 * t / answer.seconds:.1f},{100 - 96 * c / top:.1f}" for t, c in zip(starts, change, strict=True)]
    changes = [_clock(starts[i]) for i in _peaks(starts, change)]
    return {"pieces": pieces, "curve": " ".join(points), "changes": changes, "matrix": _matrix(cells)}


def _change(cells: np.ndarray, context: int) -> np.ndarray:
    """`[cells]`: one minus the cosine between what comes before the start of a cell and what comes after."""
    change = np.zeros(len(cells))
    for i in range(1, len(cells)):
        before, after = cells[max(0, i - context) : i].mean(0), cells[i : i + context].mean(0)
        change[i] = 1 - before @ after / max(np.linalg.norm(before) * np.linalg.norm(after), 1e-12)
    return change


def _peaks(starts: np.ndarray, change: np.ndarray) -> list[int]:
    """The five largest changes that stand out from the others, at least some seconds apart, in order of time."""
    chosen: list[int] = []
    for i in np.argsort(-change):
        if change[i] < change.mean() + change.std() or len(chosen) == 5:
            break
        if all(abs(starts[i] - starts[other]) >= _CONTEXT_SECONDS for other in chosen):
            chosen.append(int(i))
    return sorted(chosen)


def _matrix(cells: np.ndarray) -> str:
    unit = cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)
    figure = Figure(figsize=(2.4, 2.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(unit @ unit.T, cmap="magma", vmin=-1, vmax=1, aspect="auto")
    axes.axis("off")
    return figure_as_base64(figure, dpi=100)
