"""What a segmentation is to a user: labels, scores and names, and the pictures made of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from talk2dino.config import as_texts, check_between, check_name
from talk2dino.files import atomic_path, check_writable
from talk2dino.pictures.drawing import (
    class_colours,
    colour_pixels,
    draw_legend,
    indexed_mask,
    legend_font_size,
)
from talk2dino.pictures.images import PICTURE_FORMATS

HEAT_COLOURS = "turbo"
"""Of heat maps, by matplotlib's name."""


@dataclass(frozen=True, repr=False, eq=False)
class Segmentation:
    """One segmented picture. All pixels are RGB; tensors are on the CPU.

    Two are equal if they are the same object.
    """

    image: Image.Image
    """The picture, RGB, in the size of the labels."""
    labels: Tensor
    """(H, W) int64: index into `names` of the best class of every pixel."""
    scores: Tensor
    """(C, H, W) float32 sigmoid(cosine), refined if asked for; (C+1, H, W) with a background,
    whose score comes first and is the threshold itself. 0.5 is cosine 0, 0.55 is cosine 0.20."""
    names: tuple[str, ...]
    """Name of every label, `background` first if there is one."""
    background: float | None = None
    """Threshold of the background, or None if there is none."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What made it; stored in the files of `save`."""
    palette: np.ndarray | None = None
    """(C, 3) uint8 RGB of the labels; None for colours that are always the same for the first, the
    second, ... name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(as_texts(self.names)))
        expected = (len(self.names), self.image.height, self.image.width)
        if tuple(self.scores.shape) != expected or tuple(self.labels.shape) != expected[1:]:
            raise ValueError(
                f"{len(self.names)} names and a picture of {self.image.width} x "
                f"{self.image.height} need scores {expected}, found {tuple(self.scores.shape)} "
                f"and labels {tuple(self.labels.shape)}."
            )

    def __repr__(self) -> str:
        areas = ", ".join(f"{name} {share:.0f} %" for name, share in self.areas().items())
        return f"<Segmentation of {self.image.width} x {self.image.height} pixels: {areas}>"

    @property
    def colours(self) -> np.ndarray:
        """(C, 3) uint8 RGB, one per name."""
        own = class_colours(len(self.names), self.background is not None)
        return own if self.palette is None else self.palette

    def overlay(self, opacity: float = 0.5, legend: bool = True) -> Image.Image:
        """The picture in the colours of its classes.

        Args:
            opacity: share of the class colour, 0 to 1.
            legend: put a strip with every name below; the picture is then higher than the image.

        Raises:
            ValueError: an opacity outside 0 to 1.
        """
        pixels, colours = np.asarray(self.image), self.colours
        coloured = Image.fromarray(colour_pixels(pixels, self.labels.numpy(), colours, opacity))
        if not legend:
            return coloured
        width, height = coloured.size
        strip = draw_legend(self.names, colours, width, legend_font_size(width, height))
        canvas = Image.new("RGB", (strip.width, height + strip.height), "white")
        canvas.paste(coloured, (0, 0))
        canvas.paste(strip, (0, height))
        return canvas

    def mask(self) -> Image.Image:
        """A palette picture (mode P): pixel values are the labels, shown in class colours.

        Raises:
            ValueError: more than 256 classes.
        """
        return indexed_mask(self.labels.numpy(), self.colours)

    def heat_map(
        self, name: str, opacity: float = 0.6, span: tuple[float, float] | None = None
    ) -> Image.Image:
        """How well every pixel fits one class, blue to red, over the picture.

        Args:
            name: one of `names`.
            opacity: share of the heat map, 0 to 1; 1 hides the picture.
            span: scores at which the colours begin and end; None for the class's own lowest and
                highest in this picture.

        Raises:
            ValueError: an unknown name, or an opacity outside 0 to 1.
        """
        check_between(0, 1, opacity=opacity)
        scores = self.scores[self.names.index(check_name("class", name, self.names))]
        low, high = span or (float(scores.min()), float(scores.max()))
        share = (scores - low) / (high - low) if high > low else torch.zeros_like(scores)
        heat = matplotlib.colormaps[HEAT_COLOURS](share.numpy(), bytes=True)[..., :3]
        painted = Image.fromarray(np.ascontiguousarray(heat))
        return Image.blend(self.image, painted, opacity)

    def areas(self) -> dict[str, float]:
        """Share of the pixels of every name, in percent; they sum to 100."""
        counts = torch.bincount(self.labels.flatten(), minlength=len(self.names))
        shares = (counts.double() * 100 / self.labels.numel()).tolist()
        return dict(zip(self.names, shares, strict=True))

    def scores_at(self, x: int, y: int) -> dict[str, float]:
        """Score of every name at one pixel, the best first.

        Args:
            x: column, 0 at the left.
            y: row, 0 at the top.

        Raises:
            ValueError: the pixel lies outside the picture, or between pixels.
        """
        height, width = self.labels.shape
        if x != int(x) or y != int(y):
            raise ValueError(f"a pixel has a whole column and row, found ({x}, {y}).")
        x, y = int(x), int(y)
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"pixel ({x}, {y}) lies outside a picture of {width} x {height}.")
        values = self.scores[:, y, x]
        order = values.argsort(descending=True, stable=True).tolist()
        return {self.names[index]: float(values[index]) for index in order}

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write one file; returns its path.

        Args:
            path: `.npz` for the scores; a picture (`.png`, `.jpg`, `.webp`) for the overlay with
                legend; a name that ends in `_mask.png` for the indexed mask.
            overwrite: replace an existing file.

        Raises:
            ValueError: another suffix.
            FileExistsError: the file exists and `overwrite` is false.
            OSError: it cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (*PICTURE_FORMATS, ".npz"):
            wanted = ", ".join(PICTURE_FORMATS)
            raise ValueError(
                f"{path}: pictures are written as {wanted}, scores as .npz, not "
                f"{suffix or 'without suffix'}."
            )
        check_writable(path, overwrite)
        if suffix == ".npz":
            save_scores(self.scores, self.names, path, self.record())
        else:
            is_mask = path.name.lower().endswith("_mask.png")
            save_picture(self.mask() if is_mask else self.overlay(), path, self.record())
        return path

    def record(self) -> str:
        """JSON of what made this segmentation, as stored in its files."""
        values = {"classes": list(self.names), "background": self.background, **self.settings}
        return json.dumps(values, ensure_ascii=False)


def save_picture(picture: Image.Image, path: Path, record: str) -> None:
    """Write a picture in the format of its suffix; PNG files carry `record` as text."""
    options: dict[str, Any] = {}
    if path.suffix.lower() == ".png":
        info = PngInfo()
        info.add_itxt("talk2dino", _printable(record))
        options |= {"pnginfo": info, "compress_level": 2}  # 6 takes four times as long
    else:
        options["quality"] = 95
    with atomic_path(path) as temporary:
        picture.save(temporary, format=PICTURE_FORMATS[path.suffix.lower()], **options)


def save_scores(scores: Tensor, names: Sequence[str], path: Path, record: str) -> None:
    """Write an NPZ of scores (C, H, W) float32, classes (C,) and settings (JSON)."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            scores=scores.float().cpu().numpy(),
            classes=np.array(as_texts(names)),
            settings=np.array(_printable(record)),
        )


def _printable(record: str) -> str:
    """The same JSON, with names of files that are not UTF-8 in its own notation."""
    return record.encode("utf-8", "backslashreplace").decode("utf-8")
