"""One request from its words and its picture to a result, in steps between which it can stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from talk2dino.app.inputs import Limits, Upload, read_names, read_picture
from talk2dino.app.models import GUESSED_THRESHOLD, Models
from talk2dino.app.results import Result
from talk2dino.pictures.group_maps import draw_groups
from talk2dino.pictures.segmentation import Segmentation
from talk2dino.predict import segment_picture
from talk2dino.segmenter import adjusted


@dataclass(frozen=True)
class Request:
    """What a visitor asks for, unchecked."""

    upload: Upload | None
    """The picture."""
    categories: str | None
    """Free text; see `read_names`."""
    model: str
    """Name of a model on offer."""
    background: bool = False
    """Whether pixels may belong to no category."""
    threshold: float | None = GUESSED_THRESHOLD
    """Of the background; None for the model's own, where the page did not know it."""
    refine: bool = True
    """Whether scores follow the edges of the picture."""


@dataclass(frozen=True)
class Progress:
    """What is being done now."""

    text: str
    """A sentence for the visitor."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a request ends with."""

    result: Result
    """What was found."""
    text: str
    """A sentence for the visitor."""
    groups: Sequence[Image.Image] = ()
    """One picture of the model's groups for each of its stages, if it has any."""


def segment(request: Request, models: Models, limits: Limits) -> Iterator[Progress | Outcome]:
    """Yield what is being done, and at last the outcome.

    Raises:
        ValueError: wrong input, said in words for the visitor.
        OSError, RuntimeError, MemoryError: the model cannot be loaded, or runs out of memory.
    """
    started = time.perf_counter()
    entry = models.entry(request.model)
    if request.threshold is not None:
        check_share("threshold", request.threshold)
    names = read_names(request.categories, request.background, limits)
    picture = read_picture(request.upload, limits)
    if not models.is_loaded(request.model):
        yield Progress(f"Loading {request.model}; this happens once.")
    with models.use(request.model):
        pass
    count = f"{len(names)} categories" if len(names) > 1 else names[0]
    yield Progress(f"Looking for {count} …")
    refine = request.refine and entry.abilities.refine
    with models.use(request.model) as segmenter:
        segmenter = adjusted(segmenter, refine, request.background)
        own = models.threshold(request.model)
        wanted = own if request.threshold is None else request.threshold
        query = segmenter.query(names, wanted if request.background else None)
        settings = {"model": request.model, "refine": refine, "image": picture.stem}
        protocol = entry.abilities.protocol
        found = segment_picture(segmenter, picture.image, query, protocol, settings=settings)
        pixels = np.asarray(picture.image)
        groups = draw_groups(segmenter, pixels, models.device) if entry.abilities.groups else []
    seconds = time.perf_counter() - started
    result = Result(picture, found, entry.abilities)
    yield Outcome(result, _summary(found, picture.full_hw, seconds), groups)


def check_share(name: str, value: float) -> None:
    """Raise ValueError for a number outside 0 to 1; the page's sliders cannot give one."""
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"The {name} must lie between 0 and 1, got {value}.")


def _summary(found: Segmentation, full_hw: tuple[int, int], seconds: float) -> str:
    count = len(found.names) - (found.background is not None)
    text = f"{count} {'category' if count == 1 else 'categories'} in {seconds:.1f} s"
    height, width = full_hw
    if (height, width) == (found.image.height, found.image.width):
        return f"{text}, {width} × {height} pixels."
    return (
        f"{text}. The picture has {width} × {height} pixels and was segmented at "
        f"{found.image.width} × {found.image.height}; the mask has its full size."
    )
