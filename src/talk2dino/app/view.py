"""What the page shows of a result, ready to be put into its components."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from talk2dino.app.markup import PIXEL_HINT, heat_scale, legend, pixel_scores
from talk2dino.app.pictures import heat_maps, overlay, save_files
from talk2dino.app.results import Result, Results
from talk2dino.app.work import check_share

_POSITION = re.compile(r"\s*(\d{1,6})\s*[,;\s]\s*(\d{1,6})\s*", re.ASCII)

GONE = "This result is no longer kept: others came after it. Press Segment again."


@dataclass(frozen=True)
class Look:
    """How a visitor wants to see a result, unchecked."""

    threshold: float | None = None
    """Of the background, if the result has one; None for that of the request."""
    opacity: float = 0.5
    """Of the colours, 0 to 1."""
    position: str = ""
    """Column and row of the pixel that is asked for; anything else asks for none."""


@dataclass(frozen=True, eq=False)
class View:
    """Everything that follows from a result and a look."""

    overlay: Image.Image
    """The coloured picture."""
    legend: str
    """HTML of names and areas."""
    pixel: str
    """HTML of the scores at the chosen pixel, or a hint."""
    mask_file: Path
    """Indexed PNG to download."""
    overlay_file: Path
    """Overlay with legend to download."""


@dataclass(frozen=True, eq=False)
class Heat:
    """The heat maps of a result, which no slider changes."""

    maps: Sequence[tuple[Image.Image, str]]
    """A picture and its caption for every category."""
    scale: str
    """HTML of the colour bar."""


def look_at(results: Results, key: str | None, look: Look) -> View:
    """Draw a kept result.

    Raises:
        ValueError: it is no longer kept, or the look is out of range.
    """
    result = results.get(key)
    if result is None or key is None:
        raise ValueError(GONE)
    check_share("opacity", look.opacity)
    found = result.segmentation
    if look.threshold is not None:
        check_share("threshold", look.threshold)
        found = result.at(look.threshold)
    pixel = chosen_pixel(result, look.position)
    try:
        mask_file, overlay_file = save_files(
            found, result.picture, look.opacity, results.folder(key)
        )
    except OSError as error:
        if results.get(key) is None:  # removed while this was drawn
            raise ValueError(GONE) from error
        raise
    return View(
        overlay=overlay(found, look.opacity, pixel),
        legend=legend(found),
        pixel=PIXEL_HINT if pixel is None else pixel_scores(found, *pixel),
        mask_file=mask_file,
        overlay_file=overlay_file,
    )


def heat_of(result: Result) -> Heat:
    """The heat maps of a result, the categories in the order they were given."""
    found = result.segmentation
    names = found.names if found.background is None else found.names[1:]
    maps, (low, high) = heat_maps(found)
    scale = heat_scale(low, high, result.abilities.scores)
    return Heat(list(zip(maps, names, strict=True)), scale)


def chosen_pixel(result: Result, position: str) -> tuple[int, int] | None:
    """Column and row of a text like `120, 80`, moved inside the picture; None for other texts."""
    found = _POSITION.fullmatch(position)
    if found is None:
        return None
    image = result.segmentation.image
    return min(int(found[1]), image.width - 1), min(int(found[2]), image.height - 1)
