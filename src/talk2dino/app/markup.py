"""The pieces of the page that are written as HTML; `Markup` escapes every value put in."""

from __future__ import annotations

import matplotlib
import numpy as np
from markupsafe import Markup

from talk2dino.app.pictures import HEAT_COLOURS
from talk2dino.pictures.segmentation import Segmentation

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


def header(device: str) -> str:
    """Title, one sentence, and where the models run."""
    return Markup(
        '<header class="t2d-header"><div><h1>Talk2DINO</h1>'
        "<p>Name anything in words; get it segmented in your picture.</p></div>"
        '<span class="t2d-chip">runs on {}</span></header>'
    ).format(device)


def notice(text: str | None) -> str:
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
