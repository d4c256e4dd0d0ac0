"""A picture that shows a segmentation at a glance: rows of pictures, truth and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from talk2dino.pictures.drawing import draw_legend, legend_font
from talk2dino.toy.examples import Example

ROW_TITLES = ("picture", "ground truth", "prediction", "untrained")

_GAP = 6
_FONT_SIZE = 17


@dataclass(frozen=True, eq=False)
class Panel:
    """One column of the panel."""

    example: Example
    """The picture and its ground truth."""
    predicted: Tensor
    """(H, W) class ids of the trained projection."""
    untrained: Tensor
    """(H, W) class ids of the untrained one."""


def draw_panels(columns: Sequence[Panel], names: Sequence[str], colours: np.ndarray) -> Image.Image:
    """Put the columns side by side, with titles on the left and a legend of the classes below.

    Args:
        columns: at least one; all pictures of one size.
        names: of every class, by id.
        colours: (C, 3) uint8 RGB, one per name.
    """
    height, width = columns[0].predicted.shape
    font = legend_font(_FONT_SIZE)
    left = round(max(font.getlength(title) for title in ROW_TITLES)) + 3 * _GAP
    total = left + len(columns) * (width + _GAP)
    legend = draw_legend(list(names), colours, total - left, _FONT_SIZE)
    below = len(ROW_TITLES) * (height + _GAP) + _GAP
    canvas = Image.new("RGB", (max(total, left + legend.width), below + legend.height), "white")
    pen = ImageDraw.Draw(canvas)
    for row, title in enumerate(ROW_TITLES):
        middle = _GAP + row * (height + _GAP) + height // 2
        pen.text((left - 2 * _GAP, middle), title, fill=(20, 20, 20), font=font, anchor="rm")
    for index, column in enumerate(columns):
        image = column.example.image.permute(1, 2, 0).numpy()
        labels = (column.example.mask, column.predicted, column.untrained)
        painted = [colours[ids.numpy()] for ids in labels]
        for row, pixels in enumerate([image, *painted]):
            corner = (left + index * (width + _GAP), _GAP + row * (height + _GAP))
            canvas.paste(Image.fromarray(pixels), corner)
    canvas.paste(legend, (left, below))
    return canvas
