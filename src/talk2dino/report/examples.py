"""Example images of a report: image, ground truth and the prediction of every run, coloured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from talk2dino.benchmarks.data.labels import LabelRules, read_any_labels
from talk2dino.benchmarks.metrics import ignored_label
from talk2dino.pictures.drawing import class_colours, colour_pixels
from talk2dino.pictures.images import read_rgb
from talk2dino.report.runs import EvaluatedRun

PANEL_WIDTH = 340
"""Of a picture in the page, in pixels, unless it is smaller itself."""
_OPACITY = 0.72
_STRIPES = np.array([(250, 250, 250), (170, 170, 170)], dtype=np.uint8)
"""Pixels that do not count are striped: greys are class colours of some data sets."""
_MOST_NAMED = 12
"""Classes in the legend of an example: the largest in the label and the predictions."""


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


def make_example(name: str, runs: Sequence[EvaluatedRun], data_root: Path | None) -> Example:
    """Read and colour one image.

    Args:
        name: path below the data root.
        runs: of one benchmark.
        data_root: where the data is now; None for where it was evaluated.
    """
    trouble: list[str] = []
    first = next(run for run in runs if run.counts is not None)  # the picked image is in one
    root = data_root or Path(first.result["data_root"])
    image = _try(lambda: np.asarray(read_rgb(root / name)), trouble)
    truth = _try(lambda: _read_truth(first, root, name), trouble)
    predictions = [_try(lambda run=run: _read_prediction(run, name), trouble) for run in runs]
    maps = [labels for labels in (truth, *predictions) if labels is not None]
    scores = [run.image_scores.get(name) for run in runs]
    if image is None:
        return Example(name, None, None, [None] * len(runs), scores, [], trouble)
    palette = _palette(first)
    shown = [
        None if labels is None else _over(image, labels, palette)
        for labels in (truth, *predictions)
    ]
    return Example(
        name,
        _shrink(Image.fromarray(image)),
        shown[0],
        shown[1:],
        scores,
        _legend(maps, first.classes, palette),
        trouble,
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
    path = Path(run.result["predictions"]) / f"{Path(name).stem}.png"
    labels = read_any_labels(path)
    if labels.max() > ignored_label(len(run.classes)):
        raise ValueError(f"{path} holds {labels.max()}, which is no class of {run.benchmark}.")
    return labels


def _palette(run: EvaluatedRun) -> np.ndarray:
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
    maps: Sequence[np.ndarray], classes: Sequence[str], palette: np.ndarray
) -> list[Legend]:
    """The classes that cover most of the label maps together."""
    count = len(palette)
    pixels = sum((np.bincount(m.ravel(), minlength=count) for m in maps), np.zeros(count, np.int64))
    order = [int(v) for v in np.argsort(-pixels, kind="stable") if pixels[v] and v < len(classes)]
    legend = []
    for value in order[:_MOST_NAMED]:
        red, green, blue = palette[value].tolist()
        legend.append(Legend(classes[value], (red, green, blue)))
    if pixels[-1]:
        legend.append(Legend("not labelled", None))
    return legend
