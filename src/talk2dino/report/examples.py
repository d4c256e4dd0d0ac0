"""Example images: image, ground truth and the prediction of every run, coloured, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from talk2dino.benchmarks.data.labels import LabelRules, read_any_labels
from talk2dino.benchmarks.metrics import ignored_label
from talk2dino.pictures.drawing import (
    class_colours,
    colour_pixels,
    draw_legend,
    legend_font,
    wrap_text,
)
from talk2dino.pictures.images import read_rgb
from talk2dino.report.runs import EvaluatedRun

PANEL_WIDTH = 340
"""Of a picture in the page, in pixels, unless it is smaller itself."""
_OPACITY = 0.72
_STRIPES = np.array([(250, 250, 250), (170, 170, 170)], dtype=np.uint8)
"""Pixels that do not count are striped: greys are class colours of some data sets."""
_MOST_NAMED = 12
"""Classes in the legend of an example: the largest in the label and the predictions."""
_GAP = 8
_FONT_SIZE = 15
_LEAST_WIDTH = 160
"""Of a column, so that titles have room."""
_INK = (30, 30, 30)


@dataclass(frozen=True)
class Legend:
    """A class that an example shows."""

    name: str
    """Of the class."""
    colour: tuple[int, int, int] | None
    """RGB; None for the stripes of pixels that do not count."""


@dataclass(frozen=True, eq=False)
class Example:
    """One image with everything that is shown of it."""

    name: str
    """Path below the data root."""
    image: Image.Image | None
    """The picture, small; None if it cannot be read."""
    truth: Image.Image | None
    """The ground truth over the picture."""
    predictions: list[Image.Image | None]
    """Per run; None if the run kept no prediction."""
    scores: list[float | None]
    """The image's own mIoU per run, in percent."""
    legend: list[Legend]
    """Classes by area."""
    trouble: list[str]
    """Why something is not shown."""

    @property
    def pictures(self) -> list[Image.Image]:
        """All that there are."""
        return [p for p in (self.image, self.truth, *self.predictions) if p is not None]


@dataclass(frozen=True, eq=False)
class Maps:
    """What the files of one image hold."""

    image: np.ndarray | None
    """(H, W, 3) uint8 RGB."""
    truth: np.ndarray | None
    """(H, W) uint8 class ids, 255 ignored."""
    predictions: list[np.ndarray | None]
    """(H, W) class ids per run; None if the run kept no prediction."""
    trouble: list[str]
    """Why something cannot be read."""


def read_maps(name: str, runs: Sequence[EvaluatedRun], data_root: Path | None) -> Maps:
    """Read one image; arguments as of `make_example`."""
    trouble: list[str] = []
    first = next(run for run in runs if run.counts is not None)  # the picked image is in one
    root = data_root or Path(first.result["data_root"])
    return Maps(
        _try(lambda: np.asarray(read_rgb(root / name)), trouble),
        _try(lambda: _read_truth(first, root, name), trouble),
        [_try(lambda run=run: _read_prediction(run, name), trouble) for run in runs],
        trouble,
    )


def make_example(name: str, runs: Sequence[EvaluatedRun], data_root: Path | None) -> Example:
    """Read and colour one image.

    Args:
        name: path below the data root.
        runs: of one benchmark.
        data_root: where the data is now; None for where it was evaluated.
    """
    return paint_example(name, runs, read_maps(name, runs, data_root))


def paint_example(
    name: str, runs: Sequence[EvaluatedRun], maps: Maps, most_named: int = _MOST_NAMED
) -> Example:
    """Colour one image, and name at most so many of its classes."""
    scores = [run.image_scores.get(name) for run in runs]
    if maps.image is None:
        return Example(name, None, None, [None] * len(runs), scores, [], maps.trouble)
    image, palette = maps.image, palette_of(runs[0])
    found = [maps.truth, *maps.predictions]
    truth, *predictions = [
        None if labels is None else _over(image, labels, palette) for labels in found
    ]
    known = [labels for labels in found if labels is not None]
    return Example(
        name,
        _shrink(Image.fromarray(image)),
        truth,
        predictions,
        scores,
        _legend(known, runs[0].classes, palette, most_named),
        maps.trouble,
    )


def has_predictions(run: EvaluatedRun) -> bool:
    """Whether the run's predictions were saved and are still there."""
    folder = run.result["predictions"]
    return folder is not None and Path(folder).is_dir()


def _try(read, trouble: list[str]) -> np.ndarray | None:  # type: ignore[no-untyped-def]
    """What `read()` gives, or None and a line of `trouble`."""
    try:
        return read()
    except (OSError, ValueError) as error:
        trouble.append(str(error))
        return None


def _read_truth(run: EvaluatedRun, root: Path, name: str) -> np.ndarray:
    """Class ids (H, W); see `metrics.ignored_label`."""
    assert run.counts is not None
    index = run.counts["images"].tolist().index(name)
    rules = _rules(run)
    values = read_any_labels(root / str(run.counts["labels"][index]), rules.colours)
    return rules.class_ids(values, len(run.classes))[0]


def _rules(run: EvaluatedRun) -> LabelRules:
    """What its label files mean; earlier versions wrote two flags."""
    if run.result["label_rules"] is not None:
        return LabelRules.from_json(run.result["label_rules"])
    if run.result["unlabelled_background"]:
        return LabelRules(default_ignored=False, shift=1, values=(((255,), 0),))
    return LabelRules(ignore=(0,), shift=-1) if run.result["reduce_zero_label"] else LabelRules()


def _read_prediction(run: EvaluatedRun, name: str) -> np.ndarray | None:
    if not has_predictions(run):
        return None
    parts = Path(name).with_suffix(".png").parts
    places = [Path(run.result["predictions"], *parts[start:]) for start in range(len(parts))]
    path = next((place for place in places if place.is_file()), places[-1])
    labels = read_any_labels(path)
    if labels.max() > ignored_label(len(run.classes)):
        raise ValueError(f"{path} holds {labels.max()}, which is no class of {run.benchmark}.")
    return labels


def palette_of(run: EvaluatedRun) -> np.ndarray:
    """(256 or 65536, 3) uint8: the data set's colours, or ours; labels without class are white."""
    colours = np.full((ignored_label(len(run.classes)) + 1, 3), 255, dtype=np.uint8)
    known = run.result["palette"]
    if known is None:
        background = bool(run.result["has_background"])
        known = class_colours(len(run.classes), background=background)
    colours[: len(known)] = np.asarray(known, dtype=np.uint8)
    return colours


def _over(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> Image.Image | None:
    """The labels over the picture; None if the sizes differ."""
    if image.shape[:2] != labels.shape:
        return None
    painted = colour_pixels(image, labels, palette, _OPACITY)
    rows, columns = np.nonzero(labels == len(palette) - 1)
    stripe = max(labels.shape[1] // 50, 2)
    painted[rows, columns] = _STRIPES[(rows + columns) // stripe % 2]
    return _shrink(Image.fromarray(painted))


def _shrink(picture: Image.Image) -> Image.Image:
    scale = min(PANEL_WIDTH / picture.width, 1)
    size = (round(picture.width * scale) or 1, round(picture.height * scale) or 1)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _legend(
    maps: Sequence[np.ndarray], classes: Sequence[str], palette: np.ndarray, most: int
) -> list[Legend]:
    """The classes that cover most of the label maps together."""
    count = len(palette)
    pixels = sum((np.bincount(m.ravel(), minlength=count) for m in maps), np.zeros(count, np.int64))
    order = [int(v) for v in np.argsort(-pixels, kind="stable") if pixels[v] and v < len(classes)]
    legend = []
    for value in order[:most]:
        red, green, blue = palette[value].tolist()
        legend.append(Legend(classes[value], (red, green, blue)))
    if pixels[-1]:
        legend.append(Legend("not labelled", None))
    return legend


def draw_rows(rows: Sequence[tuple[str, Example]], labels: Sequence[str]) -> Image.Image:
    """Image, ground truth and predictions of examples, row by row, each with its legend.

    Args:
        rows: what stands left of each, and the example.
        labels: of the runs, one column each.

    Returns:
        An RGB picture.
    """
    font = legend_font(_FONT_SIZE)
    left = round(max(font.getlength(title) for title, _ in rows))
    left += 3 * _GAP if left else _GAP
    panel = max([_LEAST_WIDTH, *(picture.width for _, row in rows for picture in row.pictures)])
    titles = [wrap_text(t, font, panel) for t in ("image", "ground truth", *labels)]
    width = left + len(titles) * (panel + _GAP)
    strips = [_draw_row(example, title, left, width) for title, example in rows]
    header = max(map(len, titles)) * (_FONT_SIZE + 4) + 2 * _GAP
    picture = Image.new("RGB", (width, header + sum(s.height for s in strips)), "white")
    pen = ImageDraw.Draw(picture)
    for index, lines in enumerate(titles):
        middle = (left + index * (panel + _GAP) + panel // 2, header // 2)
        pen.text(middle, "\n".join(lines), _INK, font, anchor="mm", align="center")
    top = header
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height
    return picture


def _draw_row(example: Example, title: str, left: int, width: int) -> Image.Image:
    shown = [example.image, example.truth, *example.predictions]
    height = max((picture.height for picture in example.pictures), default=40)
    panel = (width - left) // len(shown) - _GAP
    named = [entry for entry in example.legend if entry.colour is not None]
    colours = np.array([entry.colour for entry in named], dtype=np.uint8).reshape(-1, 3)
    legend = draw_legend([entry.name for entry in named], colours, width - left, _FONT_SIZE - 2)
    row = Image.new("RGB", (width, height + legend.height + _GAP), "white")
    pen = ImageDraw.Draw(row)
    font = legend_font(_FONT_SIZE)
    pen.text((left - 2 * _GAP, height // 2), title, _INK, font, anchor="rm")
    for index, picture in enumerate(shown):
        corner = (left + index * (panel + _GAP), 0)
        if picture is None:
            middle = (corner[0] + panel // 2, height // 2)
            pen.text(middle, "not kept", (150, 150, 150), font, anchor="mm")
        else:
            row.paste(picture, (corner[0] + (panel - picture.width) // 2, corner[1]))
    row.paste(legend, (left, height))
    return row
