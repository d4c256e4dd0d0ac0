"""One request from its words and its picture to a result, in steps between which it can stop."""

from __future__ import annotations

import dataclasses
import math
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from talk2dino.app.inputs import Limits, Picture, Upload, read_names, read_picture
from talk2dino.app.models import GUESSED_THRESHOLD, Models
from talk2dino.config import build, check_name
from talk2dino.inference import score_labels
from talk2dino.methods.base import PictureRules
from talk2dino.pictures.group_maps import draw_groups
from talk2dino.pictures.segmentation import Segmentation
from talk2dino.predict import segment_picture
from talk2dino.refine.refinement import chosen_refinements
from talk2dino.segmenter import POOLINGS
from talk2dino.sizes import STITCHES, Protocol, Sizes

MAX_WINDOWS = 400
"""Of one picture."""


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
    refine: Sequence[str] | None = None
    """Names of refinements; None for the model's own."""
    pooling: str = POOLINGS[0]
    """How several words of a category are put together."""
    short_side: int | None = None
    """At which the picture is scored, in pixels; None for the model's own, as for ..."""
    window: int | None = None
    """... the side of a window, the next of which is half of it away ..."""
    stitch: str | None = None
    """... and how windows are averaged."""

    def sizes(self, limits: Limits) -> Sizes:
        """Those of the windows and the picture.

        Raises:
            ValueError: no number of pixels, or more than the limits allow.
        """
        given = {name: getattr(self, name) for name in ("short_side", "window", "stitch")}
        sizes = build(Sizes, given, "The request")
        for name in ("short_side", "window"):
            value = getattr(sizes, name)
            if value is not None and not 1 <= value <= limits.max_side:
                text = f"The {name.replace('_', ' ')} must lie between 1 and {limits.max_side}"
                raise ValueError(f"{text} pixels, got {value}.")
        if sizes.stitch is not None:
            check_name("stitch", sizes.stitch, STITCHES)
        if sizes.window is None:
            return sizes
        return dataclasses.replace(sizes, stride=max(sizes.window // 2, 1))


@dataclass(frozen=True)
class Result:
    """One segmented picture; everything that is shown or downloaded is made from it."""

    picture: Picture
    """What was sent."""
    segmentation: Segmentation
    """What was found, at the threshold of the request."""
    rules: PictureRules
    """Of the model."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        found = self.segmentation
        return found.scores.nbytes + found.labels.nbytes + 3 * found.labels.numel()

    def at(self, threshold: float) -> Segmentation:
        """The same scores with another threshold of the background, if there is one.

        Some methods have to score the picture again for that; then the threshold stays.
        """
        found = self.segmentation
        if found.background in (None, threshold) or not self.rules.redraws:
            return found
        scores = torch.cat([torch.full_like(found.scores[:1], threshold), found.scores[1:]])
        return dataclasses.replace(
            found, scores=scores, labels=score_labels(scores), background=threshold
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a request ends with."""

    result: Result
    """What was found."""
    text: str
    """A sentence for the visitor."""
    groups: Sequence[Image.Image] = ()
    """One picture of the model's groups for each of its stages, if it has any."""


def segment(request: Request, models: Models, limits: Limits) -> Iterator[str | Outcome]:
    """Yield sentences about what is being done, and at last the outcome.

    Raises:
        ValueError: wrong input, said in words for the visitor.
        OSError, RuntimeError, MemoryError: the model cannot be loaded, or runs out of memory.
    """
    started = time.perf_counter()
    models.entry(request.model)
    if request.threshold is not None:
        check_share("threshold", request.threshold)
    names, lists = read_names(request.categories, request.background, limits)
    check_name("pooling", request.pooling, POOLINGS)
    refine = None if request.refine is None else chosen_refinements(request.refine)
    sizes = request.sizes(limits)
    picture = read_picture(request.upload, limits)
    if not models.is_loaded(request.model):
        yield f"Loading {request.model}; this happens once."
    with models.use(request.model):
        pass
    count = f"{len(names)} categories" if len(names) > 1 else names[0]
    yield f"Looking for {count} …"
    with models.use(request.model) as loaded:
        background = request.background
        method, segmenter = loaded.variant(refine, background, sizes, models.device)
        rules = method.demo
        _check_windows(rules.protocol, picture.image)
        wanted = loaded.facts.threshold if request.threshold is None else request.threshold
        words = None if lists is None else lists.class_words(method.words(), request.pooling)
        query = method.query(segmenter, names, wanted if background else None, words=words)
        settings = {
            "model": request.model,
            "refine": list(rules.refines or ()),
            **sizes.given(),
            "image": picture.stem,
        }
        found = segment_picture(segmenter, picture.image, query, rules.protocol, settings=settings)
        pixels = np.asarray(picture.image)
        groups = draw_groups(segmenter, pixels, models.device) if rules.groups else []
    seconds = time.perf_counter() - started
    result = Result(picture, found, rules)
    yield Outcome(result, _summary(found, picture.full_hw, seconds), groups)


def check_share(name: str, value: float) -> None:
    """Raise ValueError for a number outside 0 to 1; the page's sliders cannot give one."""
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"The {name} must lie between 0 and 1, got {value}.")


def _check_windows(protocol: Protocol, image: Image.Image) -> None:
    """Raise ValueError for so many windows that other visitors would wait for long."""
    height, width = protocol.scored_size(image.height, image.width)
    count = len(protocol.starts(height)) * len(protocol.starts(width))
    if count > MAX_WINDOWS:
        raise ValueError(
            f"The picture would have {count} windows; at most {MAX_WINDOWS} are taken. Choose "
            "larger ones, or a smaller short side."
        )


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


class Results:
    """The latest results of all visitors, under keys that cannot be guessed.

    Args:
        folder: every result gets a folder in it, which is removed with the result.
        max_bytes: memory for scores; the oldest results make room, the newest is always kept.
        max_count: results at the same time.
    """

    def __init__(self, folder: Path, max_bytes: int = 2**30, max_count: int = 64) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._kept: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: Result) -> str:
        """Keep a result; returns its key."""
        key = secrets.token_urlsafe(24)
        self.folder(key).mkdir(parents=True)
        with self._lock:
            self._kept[key] = result
            while len(self._kept) > 1 and self._is_full():
                self._forget(next(iter(self._kept)))
        return key

    def get(self, key: str | None) -> Result | None:
        """The result of a key, or None if it has made room for others."""
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def discard(self, key: str | None) -> None:
        """Forget a result that its visitor has replaced."""
        with self._lock:
            if key is not None and key in self._kept:
                self._forget(key)

    def folder(self, key: str) -> Path:
        """Where the files of a result are."""
        return self._folder / key

    def _is_full(self) -> bool:
        used = sum(result.num_bytes for result in self._kept.values())
        return used > self._max_bytes or len(self._kept) > self._max_count

    def _forget(self, key: str) -> None:
        del self._kept[key]
        shutil.rmtree(self.folder(key), ignore_errors=True)
