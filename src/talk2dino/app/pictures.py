"""What the page shows of a result: pictures, HTML, and the files to download.

`Markup` escapes every value put into HTML.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from talk2dino.app.inputs import Picture
from talk2dino.app.work import Result
from talk2dino.pictures.segmentation import HEAT_COLOURS, Segmentation, save_picture

PIXEL_ROWS = 8
"""Scores that are shown for a pixel."""

NOTHING_YET = (
    '<p class="t2d-status">Choose a picture, name what may be in it, and press Segment.</p>'
)
NO_AREAS = '<p class="t2d-hint">Nothing segmented yet.</p>'
GROUPS_HINT = (
    '<p class="t2d-hint">What the model takes to belong together, before it looks for words.</p>'
)
PIXEL_HINT = '<p class="t2d-hint">No pixel chosen.</p>'
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
    return maps, heat_scale(*span, result.rules.scores)


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


def header(device: str) -> str:
    """Title, one sentence, and where the models run."""
    return Markup(
        '<header class="t2d-header"><div><h1>Talk2DINO</h1>'
        "<p>Name anything in words; get it segmented in your picture.</p></div>"
        '<span class="t2d-chip">runs on {}</span></header>'
    ).format(device)


def notice(text: str) -> str:
    """A line about the chosen model that nobody may miss; empty without one."""
    return Markup('<div class="t2d-notice">{}</div>').format(text) if text else ""


def status(text: str, kind: str = "info") -> str:
    """What is going on; `kind` is info, busy, done or error."""
    role = "alert" if kind == "error" else "status"
    return Markup('<p class="t2d-status t2d-{}" role="{}">{}</p>').format(kind, role, text)


def legend(found: Segmentation) -> str:
    """Colour, name and share of the picture of every label, the largest first."""
    colours = dict(zip(found.names, found.colours, strict=True))
    areas = sorted(found.areas().items(), key=lambda area: -area[1])
    rows = [
        _row(name, colours[name], area, _percent(area), "" if area else "t2d-absent")
        for name, area in areas
    ]
    return _list("Area of each category", rows)


def pixel_scores(found: Segmentation, x: int, y: int) -> str:
    """The scores at a pixel, the best first; with a background, its threshold is among them."""
    colours = dict(zip(found.names, found.colours, strict=True))
    scores = found.scores_at(x, y)
    shown = list(scores.items())[:PIXEL_ROWS]
    low, high = shown[-1][1], shown[0][1]
    rows = []
    for place, (name, score) in enumerate(shown):
        length = 8 + 92 * (score - low) / max(high - low, 1e-6)  # they lie close together
        kind = "t2d-winner" if place == 0 else ""
        rows.append(_row(name, colours[name], length, f"{score:.3f}", kind))
    more = len(scores) - len(shown)
    rest = Markup('<p class="t2d-hint">and {} lower ones</p>').format(more) if more else ""
    return _list(f"Scores at column {x}, row {y}", rows) + rest


def heat_scale(low: float, high: float, scores: str) -> str:
    """The colour bar that all heat maps share; `scores` says what is shown."""
    colours = matplotlib.colormaps[HEAT_COLOURS](np.linspace(0, 1, 9), bytes=True)[:, :3]
    return Markup(
        '<div class="t2d-scale"><em>{:.3f}</em>'
        '<span style="background:linear-gradient(to right,{})"></span><em>{:.3f}</em>'
        "<small>{}, one scale for all</small></div>"
    ).format(low, ",".join(map(_css, colours)), high, scores)


def _list(label: str, rows: list[Markup]) -> Markup:
    return Markup('<ul class="t2d-legend" aria-label="{}">{}</ul>').format(
        label, Markup("").join(rows)
    )


def _row(name: str, colour: np.ndarray, length: float, value: str, kind: str) -> Markup:
    """A line of a legend: colour, name, a bar of `length` percent, and a value."""
    return Markup(
        '<li class="{}"><i style="background:{}"></i><span>{}</span>'
        '<b><u style="width:{:.1f}%;background:{}"></u></b><em>{}</em></li>'
    ).format(kind, _css(colour), name, length, _css(colour), value)


def _percent(area: float) -> str:
    return "<0.1 %" if 0 < area < 0.05 else f"{area:.1f} %"


def _css(colour: np.ndarray) -> str:
    red, green, blue = (int(channel) for channel in colour)
    return f"rgb({red},{green},{blue})"
