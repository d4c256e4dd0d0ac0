"""Images with their ground truth and the prediction of every run, coloured, side by side.

For the page's examples, and for the comparison figure of papers, of which every picture is a file
of its own, too.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from talk2dino.benchmarks.data.labels import LabelRules, ignored_label, read_labels
from talk2dino.benchmarks.results import palette_picture, save_png
from talk2dino.pictures.drawing import (
    class_colours,
    colour_pixels,
    draw_legend,
    legend_font,
)
from talk2dino.pictures.images import read_rgb
from talk2dino.report.runs import EvaluatedRun, by_benchmark, find_runs, methods

PANEL_WIDTH = 340
"""Of a picture, in pixels, unless it is smaller itself."""
_LEAST_WIDTH = 160
"""Of a column, so that titles have room."""
_OPACITY = 0.72
_MOST_NAMED = 12
"""Classes in the legend of an example: the largest in the label and the predictions."""
_GAP = 8
_FONT_SIZE = 15
_INK = (30, 30, 30)
_PALE = (150, 150, 150)


@dataclass(frozen=True, eq=False)
class Example:
    """One image with everything that is shown of it."""

    name: str
    """Path below the data root."""
    panels: list[Image.Image | None]
    """Small: the image, and over it the ground truth and the prediction of every run."""
    legend: dict[str, tuple[int, int, int]]
    """Class -> RGB, the largest first."""
    trouble: list[str]
    """Why something is not shown."""


Maps = tuple[np.ndarray | None, list[np.ndarray | None], list[str]]
"""(H, W, 3) uint8 RGB; the class ids (H, W) of the ground truth (see `labels.ignored_label`) and of
every run; and why something cannot be read. None is what cannot, or was not kept."""


def read_maps(name: str, runs: Sequence[EvaluatedRun], data_root: Path | None) -> Maps:
    """Read one image.

    Args:
        name: path below the data root.
        runs: of one benchmark.
        data_root: where the data is now; None for where it was evaluated.
    """
    trouble: list[str] = []

    def attempt(read: Callable[..., np.ndarray | None], *of: Any) -> np.ndarray | None:
        try:
            return read(*of)
        except (OSError, ValueError) as error:
            trouble.append(str(error))
            return None

    first = next(run for run in runs if run.counts)  # the picked image is in one
    root = data_root or Path(first.result["data_root"])
    image = attempt(lambda: np.asarray(read_rgb(root / name)))
    predictions = [attempt(_read_prediction, run, name) for run in runs]
    return image, [attempt(_read_truth, first, root, name), *predictions], trouble


def make_example(
    name: str, runs: Sequence[EvaluatedRun], maps: Maps, most_named: int = _MOST_NAMED
) -> Example:
    """Colour what `read_maps` gave, and name at most so many of its classes."""
    image, labelled, trouble = maps
    if image is None:
        return Example(name, [None] * (1 + len(labelled)), {}, trouble)
    palette, classes = palette_of(runs[0]), runs[0].classes
    panels: list[Image.Image | None] = [_panel(image)]
    pixels = np.zeros(len(palette), np.int64)
    for labels in labelled:
        panels.append(None)
        if labels is not None:
            pixels += np.bincount(labels.ravel(), minlength=len(palette))
            if labels.shape == image.shape[:2]:
                painted = colour_pixels(image, labels, palette, _OPACITY)
                uncounted = labels == len(palette) - 1
                painted[uncounted] = image[uncounted]
                panels[-1] = _panel(painted)
    order = np.argsort(-pixels[: len(classes)], kind="stable").tolist()
    shown = [value for value in order if pixels[value]][:most_named]
    legend = {classes[value]: tuple(palette[value].tolist()) for value in shown}
    return Example(name, panels, legend, trouble)


def has_predictions(run: EvaluatedRun) -> bool:
    """Whether the run's predictions were saved and are still there."""
    folder = run.result["predictions"]
    return folder is not None and Path(folder).is_dir()


def _read_truth(run: EvaluatedRun, root: Path, name: str) -> np.ndarray:
    index = run.counts["images"].tolist().index(name)
    rules = _rules(run)
    values = read_labels(root / str(run.counts["labels"][index]), rules.colours)
    return rules.class_ids(values, len(run.classes))[0]


def _rules(run: EvaluatedRun) -> LabelRules:
    """What its label files mean; earlier versions wrote two flags."""
    if isinstance(rules := run.result["label_rules"], LabelRules):
        return rules
    if run.result["unlabelled_background"]:
        return LabelRules(default_ignored=False, shift=1, values=(((255,), 0),))
    return LabelRules(ignore=(0,), shift=-1) if run.result["reduce_zero_label"] else LabelRules()


def _read_prediction(run: EvaluatedRun, name: str) -> np.ndarray | None:
    if not has_predictions(run):
        return None
    parts = Path(name).with_suffix(".png").parts
    places = [Path(run.result["predictions"], *parts[start:]) for start in range(len(parts))]
    path = next((place for place in places if place.is_file()), places[-1])
    labels = read_labels(path)
    if labels.max() > ignored_label(len(run.classes)):
        raise ValueError(f"{path} holds {labels.max()}, which is no class of {run.benchmark}.")
    return labels


def palette_of(run: EvaluatedRun) -> np.ndarray:
    """(256 or 65536, 3) uint8: the data set's colours, or ours; labels without class are white."""
    colours = np.full((ignored_label(len(run.classes)) + 1, 3), 255, dtype=np.uint8)
    known = run.result["palette"]
    if known is None:
        known = class_colours(len(run.classes), background=bool(run.result["has_background"]))
    colours[: len(known)] = np.asarray(known, dtype=np.uint8)
    return colours


def _panel(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    scale = min(PANEL_WIDTH / picture.width, 1)
    size = (round(picture.width * scale) or 1, round(picture.height * scale) or 1)
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_rows(rows: Sequence[tuple[str, Example]], labels: Sequence[str]) -> Image.Image:
    """Image, ground truth and predictions of examples, row by row, each above its legend.

    Args:
        rows: what stands left of each, and the example.
        labels: of the runs, one column each.

    Returns:
        An RGB picture.
    """
    font = legend_font(_FONT_SIZE)
    left = round(max(font.getlength(title) for title, _ in rows))
    left += 3 * _GAP if left else _GAP
    widths = [panel.width for _, row in rows for panel in row.panels if panel is not None]
    step = max([_LEAST_WIDTH, *widths]) + _GAP
    columns = max(round((step - _GAP) / font.getlength("n")), 1)
    titles = [textwrap.wrap(text, columns) for text in ("image", "ground truth", *labels)]
    width = left + len(titles) * step
    middles = [left + place * step + (step - _GAP) // 2 for place in range(len(titles))]
    header = Image.new("RGB", (width, max(map(len, titles)) * (_FONT_SIZE + 4) + 2 * _GAP), "white")
    pen = ImageDraw.Draw(header)
    for x, lines in zip(middles, titles, strict=True):
        text = "\n".join(lines)
        pen.text((x, header.height // 2), text, _INK, font, anchor="mm", align="center")
    strips = [header]
    for title, row in rows:
        height = max((panel.height for panel in row.panels if panel is not None), default=40)
        colours = np.array(list(row.legend.values()), dtype=np.uint8).reshape(-1, 3)
        legend = draw_legend(list(row.legend), colours, width - left, _FONT_SIZE - 2)
        strips.append(Image.new("RGB", (width, height + legend.height + _GAP), "white"))
        pen = ImageDraw.Draw(strips[-1])
        pen.text((left - 2 * _GAP, height // 2), title, _INK, font, anchor="rm")
        for x, panel in zip(middles, row.panels, strict=True):
            if panel is None:
                pen.text((x, height // 2), "not kept", _PALE, font, anchor="mm")
            else:
                strips[-1].paste(panel, (x - panel.width // 2, 0))
        strips[-1].paste(legend, (left, height))
    return Image.fromarray(np.concatenate(list(map(np.asarray, strips))))


def write_figure(
    places: Sequence[str | Path],
    output: Path,
    images: Sequence[str],
    wanted: Sequence[str] = (),
    data_root: Path | None = None,
) -> list[Path]:
    """Draw a figure, and write its pictures one by one: label maps in the data set's palette.

    Args:
        places: result files, or folders that hold them.
        output: the PNG; its single pictures go into the folder `<stem>_files` beside it.
        images: file names without their ending, or <benchmark>/<name> where several have the image.
        wanted: labels of the report, names of models, or result files without their ending; none
            for all.
        data_root: where images and labels are now; None for where they were evaluated.

    Returns:
        the files that were written, the figure first.

    Raises:
        FileNotFoundError, ValueError: no such results, image, method or prediction; two of them
            with the name.
    """
    groups = by_benchmark(runs := find_runs(places)[0])
    rows = [_find_row(groups, image, wanted or methods(runs)) for image in images]
    folder = output.with_name(f"{output.stem}_files")
    single: dict[Path, Image.Image] = {}
    examples = []
    for name, prefix, own in rows:
        maps = read_maps(name, own, data_root)
        pictures = _single_pictures(name, own, maps)
        single |= {folder / f"{prefix}_{what}.png": one for what, one in pictures.items()}
        examples.append(make_example(name, own, maps, len(own[0].classes)))
    # One legend below the rows of a benchmark that stand together.
    for (row, example), (below, other) in pairwise(zip(rows, examples, strict=True)):
        if row[2] == below[2]:
            other.legend.update(example.legend)
            example.legend.clear()
    figure = draw_rows([("", example) for example in examples], [r.label for r in rows[0][2]])
    files = {output: figure, **single}
    for path, picture in files.items():
        save_png(picture, path)
    return list(files)


def _find_row(
    groups: Mapping[str, list[EvaluatedRun]], image: str, wanted: Sequence[str]
) -> tuple[str, str, list[EvaluatedRun]]:
    """The image's path, what its files begin with, and a run per method.

    Of the only benchmark that has both the image and all methods.
    """
    found: dict[str, tuple[str, str, list[EvaluatedRun]]] = {}
    lacking = ""
    for key, runs in groups.items():
        # By label or file, or else all of a model.
        several = {
            name: [run for run in runs if name in (run.label, run.path.stem)]
            or [run for run in runs if run.result["model"] == name]
            for name in wanted
        }
        counts = next((run.counts for run in runs if run.counts), {})
        paths = [PurePosixPath(path) for path in counts.get("images", ())]
        for path in paths:
            if image not in (str(path), path.stem, f"{key}/{path.stem}", f"{key}/{path}"):
                continue
            if missing := [name for name, some in several.items() if not some]:
                known = ", ".join(run.label for run in runs)
                lacking += f" {key} has it, but not of {', '.join(missing)}. Known: {known}."
                continue
            alone = [other.stem for other in paths].count(path.stem) == 1
            parts = [path.stem] if alone else path.with_suffix("").parts
            chosen = [run for some in several.values() for run in some]
            found[f"{key}/{path}"] = str(path), "_".join([key, *parts]), chosen
    if not found:
        raise ValueError(
            f"no image {image!r} among the results on {', '.join(groups)}.{lacking} Images are "
            "named by their files without the ending; the .npz of a result lists them."
        )
    if len(found) > 1:
        raise ValueError(f"there are several images {image!r}: say {' or '.join(found)}.")
    ((place, row),) = found.items()
    if len(row[2]) > len(wanted):
        stems = ", ".join(run.path.stem for run in row[2])
        raise ValueError(
            f"a method has several results on {place}: give --methods {len(wanted)} of {stems}."
        )
    return row


def _single_pictures(
    image: str, runs: Sequence[EvaluatedRun], maps: Maps
) -> dict[str, Image.Image]:
    """The picture itself, and its label maps of as many pixels, by what they are.

    Raises:
        ValueError: one is not there, or of another size.
    """
    pixels, (truth, *predictions), trouble = maps
    if pixels is None or truth is None or trouble:
        raise ValueError(" ".join(trouble))
    palette = palette_of(runs[0])[: len(runs[0].classes)]
    found = {"image": Image.fromarray(pixels), "truth": palette_picture(truth, palette)}
    for run, labels in zip(runs, predictions, strict=True):
        if labels is None:
            raise ValueError(
                f"{run.label} has no prediction of {image} ({run.path.name}): evaluate with "
                "--save_predictions DIR."
            )
        if labels.shape != pixels.shape[:2]:
            raise ValueError(
                f"the prediction of {run.label} is {labels.shape}, and {image} "
                f"{pixels.shape[:2]}: the data has changed since. Evaluate again."
            )
        found[run.path.stem] = palette_picture(labels, palette)
    return found
