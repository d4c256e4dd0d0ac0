"""The example images of a report as one picture, for papers and slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from talk2dino.pictures.drawing import draw_legend, legend_font
from talk2dino.report.examples import PANEL_WIDTH, Example

_GAP = 8
_FONT_SIZE = 15
_INK = (30, 30, 30)


def draw_sheet(examples: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> Image.Image:
    """Rows of image, ground truth and predictions, each with its legend.

    Args:
        examples: "best", "median", "worst" -> images.
        labels: of the runs, one column each.

    Returns:
        An RGB picture.
    """
    left = round(legend_font(_FONT_SIZE).getlength("median")) + 3 * _GAP
    columns = ["image", "ground truth", *labels]
    width = left + len(columns) * (PANEL_WIDTH + _GAP)
    rows = [
        _draw_row(example, kind, left, width) for kind, some in examples.items() for example in some
    ]
    header = _FONT_SIZE + 2 * _GAP
    sheet = Image.new("RGB", (width, header + sum(row.height for row in rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, title in enumerate(columns):
        middle = left + index * (PANEL_WIDTH + _GAP) + PANEL_WIDTH // 2
        pen.text((middle, header // 2), title, _INK, legend_font(_FONT_SIZE), anchor="mm")
    top = header
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _draw_row(example: Example, kind: str, left: int, width: int) -> Image.Image:
    pictures = [example.image, example.truth, *example.predictions]
    height = max((picture.height for picture in pictures if picture is not None), default=40)
    named = [entry for entry in example.legend if entry.colour is not None]
    colours = np.array([entry.colour for entry in named], dtype=np.uint8).reshape(-1, 3)
    legend = draw_legend([entry.name for entry in named], colours, width - left, _FONT_SIZE - 2)
    row = Image.new("RGB", (width, height + legend.height + _GAP), "white")
    pen = ImageDraw.Draw(row)
    font = legend_font(_FONT_SIZE)
    pen.text((left - 2 * _GAP, height // 2), kind, _INK, font, anchor="rm")
    for index, picture in enumerate(pictures):
        corner = (left + index * (PANEL_WIDTH + _GAP), 0)
        if picture is None:
            middle = (corner[0] + PANEL_WIDTH // 2, height // 2)
            pen.text(middle, "not kept", (150, 150, 150), font, anchor="mm")
        else:
            row.paste(picture, (corner[0] + (PANEL_WIDTH - picture.width) // 2, corner[1]))
    row.paste(legend, (left, height))
    return row
