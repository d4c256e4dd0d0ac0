"""The plots of a report, drawn once and written as SVG into the page and as PNG beside it."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from talk2dino.files import atomic_path
from talk2dino.report.runs import EvaluatedRun, by_benchmark, methods

COLOURS = ("#3366aa", "#e08214", "#35978f", "#b2182b", "#7b5aa6", "#8c6d31", "#666666", "#d94f9b")
"""One per method, in the order of the report; reused from the ninth on."""

ONE_COLUMN, TWO_COLUMNS = 12, 40
"""Most classes that are plotted in so many columns."""

_INK = "#222222"
_GRID = "#dddddd"
_MOST_LABELLED = 60
"""More classes than this are not named along a confusion matrix."""
_PNG_DPI = 160
# A `$` in a name is no formula; equal figures give equal bytes.
_drawing = matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "talk2dino"})


def method_colour(index: int) -> str:
    """Hex colour of the method with this place in the report."""
    return COLOURS[index % len(COLOURS)]


@_drawing
def draw_overview(runs: Sequence[EvaluatedRun]) -> Figure:
    """mIoU of every method on every benchmark, with intervals, and the published values."""
    groups, names = by_benchmark(runs), methods(runs)
    width = 0.8 / len(names)
    figure = _figure(max(6.0, 1.5 + len(groups) * (0.5 + 0.3 * len(names))), 3.4)
    axes = figure.add_subplot()
    for index, name in enumerate(names):
        own = [(n, r) for n, group in enumerate(groups.values()) for r in group if r.label == name]
        x = np.array([n for n, _ in own]) + (index - (len(names) - 1) / 2) * width
        keys = ("mIoU", "published")
        numbers = [[*(r.result[key] for key in keys), *r.result["mIoU_interval"]] for _, r in own]
        value, paper, low, high = np.array(numbers, float).T  # nan for none
        axes.bar(x, value, width * 0.92, color=method_colour(index), label=name)
        errors = np.maximum([value - low, high - value], 0)
        axes.errorbar(x, value, errors, fmt="none", ecolor=_INK, elinewidth=0.8, capsize=2)
        ends = (x - width / 2, x + width / 2)
        axes.hlines(paper, *ends, color=_INK, linewidth=1.6)
    axes.set_xticks(range(len(groups)), [group[0].result["title"] for group in groups.values()])
    axes.set_ylabel("mIoU [%]")
    axes.set_xlim(-0.6, len(groups) - 0.4)
    if any(run.result["published"] is not None for run in runs):
        axes.plot([], [], color=_INK, linewidth=1.6, label="paper")
    letters = max(map(len, names))
    fitting = int(figure.get_figwidth() / (0.5 + 0.07 * letters))  # inches of a mark and a letter
    ncols = min(4, max(1, fitting))
    figure.legend(loc="outside upper center", ncols=ncols, frameon=False, fontsize=8)
    _style(axes, "y")
    return figure


@_drawing
def draw_class_bars(runs: Sequence[EvaluatedRun], places: Sequence[int]) -> Figure:
    """IoU per class, the best first; a run without any pixel of a class has a dash for its bar.

    Args:
        runs: of one benchmark; the first one decides the order.
        places: of the methods in the report, for their colours.
    """
    classes = shown_classes(runs)
    columns = 1 if len(classes) <= ONE_COLUMN else 2 if len(classes) <= TWO_COLUMNS else 3
    rows = max(math.ceil(len(classes) / columns), 1)
    row_height = 0.11 + 0.1 * len(runs)
    figure = _figure(9.6 if columns > 1 else 6.4, 0.75 + rows * row_height)
    grid = figure.subplots(1, columns, squeeze=False, sharex=True)[0]
    thickness = 0.82 / len(runs)
    for column, axes in enumerate(grid):
        part = classes[column * rows : (column + 1) * rows]
        for index, (run, place) in enumerate(zip(runs, places, strict=True)):
            ious = [run.result["per_class"].get(name) for name in part]
            y = np.arange(len(part)) + (index - (len(runs) - 1) / 2) * thickness
            colour = method_colour(place)
            label = None if column else run.label
            axes.barh(y, [iou or 0 for iou in ious], thickness * 0.95, color=colour, label=label)
            for position, iou in zip(y, ious, strict=True):
                text = "–" if iou is None else f"{iou:.1f}"
                axes.text((iou or 0) + 1, position, text, va="center", fontsize=5.5, color=_INK)
        axes.set_yticks(range(len(part)), part, fontsize=7)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xlim(0, 108)
        axes.set_xlabel("IoU [%]", fontsize=8)
        _style(axes, "x")
    if len(runs) > 1:
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=7)
    return figure


def shown_classes(runs: Sequence[EvaluatedRun]) -> list[str]:
    """The classes with a number in any run, by the IoU of the first one."""
    first = runs[0].result["per_class"]
    names = dict.fromkeys(name for run in runs for name in run.classes)
    occurring = [n for n in names if any(r.result["per_class"].get(n) is not None for r in runs)]
    return sorted(occurring, key=lambda n: (first.get(n) is None, -(first.get(n) or 0)))


@_drawing
def draw_confusion(run: EvaluatedRun) -> Figure:
    """Which class (column) the pixels of each class (row) were given, in percent of the row."""
    confusion = run.counts["confusion"].astype(np.float64)
    pixels = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(
        100 * confusion, pixels, out=np.full_like(confusion, np.nan), where=pixels > 0
    )
    names = run.classes
    side = float(np.clip(1.6 + 0.16 * len(names), 3.8, 7.4))
    figure = _figure(side + 0.7, side)
    axes = figure.add_subplot()
    axes.set_facecolor("#eeeeee")  # rows of classes without any pixel
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    if len(names) <= _MOST_LABELLED:
        size = float(np.clip(220 / len(names), 4.0, 8.0))
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    ids = "" if len(names) <= _MOST_LABELLED else " (class id)"
    axes.set_xlabel(f"predicted{ids}", fontsize=8)
    axes.set_ylabel(f"true{ids}", fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.ax.tick_params(labelsize=7)
    bar.set_label("% of the true class", fontsize=8)
    return figure


@_drawing
def figure_svg(figure: Figure) -> bytes:
    """The figure as SVG, text as outlines; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@_drawing
def save_png(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_PNG_DPI)


def _figure(width: float, height: float) -> Figure:
    """A white figure in inches, without matplotlib's global state."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, grid: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y" if grid == "y" else "x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7 if grid == "x" else 8, length=2)
