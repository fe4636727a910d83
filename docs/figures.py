"""Draw the figure of docs/method.md: python docs/figures.py"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from music2vec_hf.common.render import save_figure

BLUE, ORANGE, GREY, LINE = "#dbe9ff", "#ffe8d1", "#eef1f4", "#57606a"
BOXES = {  # name: (x, y, width, height, colour, text)
    "audio": (0.2, 2.0, 1.5, 1.0, GREY, "crop of a song\n5 s at 16 kHz"),
    "front": (2.2, 2.0, 1.6, 1.0, GREY, "front end:\nconvolutions\n50 frames a second"),
    "mask": (4.3, 3.3, 1.5, 1.0, BLUE, "masks:\nspans of 10 frames\nare hidden"),
    "student": (6.3, 3.3, 1.7, 1.0, BLUE, "student:\ntransformer,\ntrained"),
    "head": (8.5, 3.3, 1.5, 1.0, BLUE, "predictions\nat masked frames"),
    "teacher": (6.3, 0.7, 1.7, 1.0, ORANGE, "teacher:\nthe same network,\nno gradient"),
    "targets": (8.5, 0.7, 1.5, 1.0, ORANGE, "targets: mean of\nthe top 8 layers,\nnormalised"),
    "loss": (8.75, 2.15, 1.0, 0.7, "#ffffff", "loss"),
}
ARROWS = [  # from, its side, to, its side
    ("audio", "right", "front", "left"),
    ("mask", "right", "student", "left"),
    ("student", "right", "head", "left"),
    ("teacher", "right", "targets", "left"),
    ("head", "bottom", "loss", "top"),
    ("targets", "top", "loss", "bottom"),
]


def point(name: str, side: str) -> tuple[float, float]:
    """The middle of a side of a box."""
    x, y, width, height, *_ = BOXES[name]
    return {
        "left": (x, y + height / 2),
        "right": (x + width, y + height / 2),
        "top": (x + width / 2, y + height),
        "bottom": (x + width / 2, y),
    }[side]


def draw() -> Figure:
    """Student above, teacher below, the loss between their ends."""
    figure = Figure(figsize=(10.2, 4.6))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 10.2), ylim=(0.2, 4.8))
    axis.axis("off")
    for x, y, width, height, colour, text in BOXES.values():
        style = {"boxstyle": "round,pad=0.04", "facecolor": colour, "edgecolor": LINE}
        axis.add_patch(FancyBboxPatch((x, y), width, height, **style))
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)

    def arrow(start, end, **style):
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=LINE, **style))

    for first, side, second, other in ARROWS:
        arrow(point(first, side), point(second, other))
    arrow(point("front", "right"), point("mask", "left"))
    arrow(point("front", "right"), point("teacher", "left"))
    axis.text(4.95, 1.35, "the whole crop", ha="center", fontsize=9, rotation=-17, color=LINE)
    arrow(point("student", "bottom"), point("teacher", "top"), linestyle="--")
    axis.text(7.25, 2.5, "moving average\nof the weights", va="center", fontsize=9, color=LINE)
    return figure


if __name__ == "__main__":
    print(save_figure(draw(), Path(__file__).parent / "images" / "method.png", dpi=100))
