"""What a result looks like: overlay, heat maps, and the files to download."""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from talk2dino.app.inputs import Picture
from talk2dino.pictures.segmentation import Segmentation, save_picture

HEAT_COLOURS = "viridis"
HEAT_SIDE = 480
"""Longer side of a heat map in pixels."""
SCREEN_SIDE = 680
"""Least longer side of a picture on the screen: the width of its frame."""
_HEAT_SHARE = 0.75  # of the colour; the rest is the picture in grey


def overlay(
    found: Segmentation, opacity: float, mark_xy: tuple[int, int] | None = None
) -> Image.Image:
    """The picture in the colours of its labels, with a ring around one pixel if wanted.

    Small pictures are enlarged `enlargement` times: enlarged by the browser, Gradio would count
    the position of a click wrongly.
    """
    image = found.overlay(opacity, legend=False)
    times = enlargement(found)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
    if mark_xy is not None:
        x, y = mark_xy
        _draw_ring(image, (round((x + 0.5) * times), round((y + 0.5) * times)))
    return image


def enlargement(found: Segmentation) -> int:
    """How many screen pixels wide and high a pixel is drawn."""
    return -(-SCREEN_SIDE // max(found.image.size))


def heat_maps(found: Segmentation) -> tuple[list[Image.Image], tuple[float, float]]:
    """One picture per category, all on the same scale, so that they can be compared.

    Returns:
        The pictures in the order of the names, without the background's, and the scores of the
        darkest and the brightest colour.
    """
    scores = found.scores if found.background is None else found.scores[1:]
    low, high = float(scores.min()), float(scores.max())
    size = _fitted(found.image.size, HEAT_SIDE)
    grey = np.asarray(found.image.convert("L").resize(size, Image.Resampling.BILINEAR))
    palette = matplotlib.colormaps[HEAT_COLOURS](np.arange(256), bytes=True)[:, :3]
    maps = []
    for plane in scores.numpy():
        small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
        index = (small - low) / max(high - low, 1e-6) * 255
        colours = palette[np.clip(index, 0, 255).astype(np.uint8)]
        mixed = _HEAT_SHARE * colours + (1 - _HEAT_SHARE) * grey[..., None]
        maps.append(Image.fromarray(mixed.astype(np.uint8)))
    return maps, (low, high)


def save_files(
    found: Segmentation, picture: Picture, opacity: float, folder: Path
) -> tuple[Path, Path]:
    """Write what can be downloaded; returns the paths of the mask and of the overlay.

    The mask is an indexed PNG of the upload's own size; the overlay has a legend below it.

    Raises:
        OSError: a file cannot be written, for example because the folder was removed.
    """
    mask_path = folder / f"{picture.stem}_mask.png"
    overlay_path = folder / f"{picture.stem}_overlay.png"
    height, width = picture.full_hw
    mask = found.mask().resize((width, height), Image.Resampling.NEAREST)
    save_picture(mask, mask_path, found.record())
    save_picture(found.overlay(opacity), overlay_path, found.record())
    return mask_path, overlay_path


def _draw_ring(image: Image.Image, centre_xy: tuple[int, int]) -> None:
    """A white ring with dark edges, to be seen on any colour."""
    x, y = centre_xy
    unit = max(max(image.size) / 400, 1)
    draw = ImageDraw.Draw(image)
    for radius, width, colour in ((7, 4, (20, 20, 20)), (6.2, 2.2, (255, 255, 255))):
        r = radius * unit
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=round(width * unit))


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(side / max(size), 1.0)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
