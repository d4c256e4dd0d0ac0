"""What the page shows of a result: pictures, HTML, and the files to download."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw

from talk2dino.app.request import Picture, Result
from talk2dino.pictures.segmentation import HEAT_COLOURS, Segmentation, save_picture

PARTS: Any = (
    Environment(loader=PackageLoader("talk2dino.app", "."), autoescape=True)
    .get_template("parts.html")
    .module
)
"""The macros of `parts.html`."""
PIXEL_ROWS = 8
"""Scores that are shown for a pixel."""

HEAT_SIDE = 480
"""Longer side of a heat map in pixels."""
SCREEN_SIDE = 680
"""Least longer side of a picture on the screen: the width of its frame."""
_POSITION = re.compile(r"\s*(\d{1,6})\s*[,;\s]\s*(\d{1,6})\s*", re.ASCII)


def chosen_pixel(found: Segmentation, position: str) -> tuple[int, int] | None:
    """Column and row of a text like `120, 80`, moved inside the picture; None for other texts."""
    typed = _POSITION.fullmatch(position)
    if typed is None:
        return None
    return min(int(typed[1]), found.image.width - 1), min(int(typed[2]), found.image.height - 1)


def overlay(
    found: Segmentation, opacity: float, mark_xy: tuple[int, int] | None = None
) -> Image.Image:
    """The picture in the colours of its labels, with a ring around one pixel if wanted.

    Small pictures are enlarged `enlargement` times: enlarged by the browser, Gradio would count
    the position of a click wrongly.
    """
    image = found.overlay(opacity, legend=False)
    times = enlargement(found.image)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
    if mark_xy is not None:
        x, y = mark_xy
        _draw_ring(image, (round((x + 0.5) * times), round((y + 0.5) * times)))
    return image


def enlargement(image: Image.Image) -> int:
    """How many screen pixels wide and high a pixel is drawn."""
    return -(-SCREEN_SIDE // max(image.size))


def heat_of(result: Result) -> tuple[list[tuple[Image.Image, str]], str]:
    """The heat maps of a result, all on one scale so that they can be compared.

    Returns:
        A picture with its caption per category, in the order of the names, and the HTML of the
        colour bar.
    """
    found = result.at(None)
    names = found.names[0 if found.background is None else 1 :]
    scores = found.scores[-len(names) :]
    span = float(scores.min()), float(scores.max())
    maps = [(found.heat_map(name, span=span), name) for name in names]
    for image, _ in maps:
        image.thumbnail((HEAT_SIDE, HEAT_SIDE))
    colours = matplotlib.colormaps[HEAT_COLOURS](np.linspace(0, 1, 9), bytes=True)[:, :3]
    return maps, PARTS.scale(*span, list(map(_css, colours)), result.rules.scores)


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


def legend(found: Segmentation) -> str:
    """Colour, name and share of the picture of every label, the largest first."""
    rows = []
    for (name, area), colour in zip(found.areas().items(), found.colours, strict=True):
        shown = "<0.1 %" if 0 < area < 0.05 else f"{area:.1f} %"
        rows.append(("" if area else "t2d-absent", name, _css(colour), area, shown))
    return str(PARTS.legend("Area of each category", sorted(rows, key=lambda row: -row[3])))


def pixel_scores(found: Segmentation, x: int, y: int) -> str:
    """The scores at a pixel, the best first; with a background, its threshold is among them."""
    colours = dict(zip(found.names, found.colours, strict=True))
    scores = list(found.scores_at(x, y).items())
    shown = scores[:PIXEL_ROWS]
    low, high = shown[-1][1], shown[0][1]
    rows: list[tuple[str, str, str, float, str]] = []
    for name, score in shown:
        length = 8 + 92 * (score - low) / max(high - low, 1e-6)  # they lie close together
        kind = "" if rows else "t2d-winner"
        rows.append((kind, name, _css(colours[name]), length, f"{score:.3f}"))
    more = len(scores) - len(shown)
    return str(PARTS.legend(f"Scores at column {x}, row {y}", rows, more))


def _css(colour: np.ndarray) -> str:
    return f"rgb({','.join(map(str, colour.tolist()))})"
