"""One request from its words and its picture to a result, in steps between which it can stop."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from talk2dino.app.inputs import Limits, Picture, read_names, read_picture
from talk2dino.app.models import Models
from talk2dino.config import check_name
from talk2dino.inference import score_labels
from talk2dino.methods.base import PictureRules
from talk2dino.pictures.segmentation import Segmentation
from talk2dino.predict import class_threshold, draw_groups, segment_picture
from talk2dino.refine.refinement import chosen_refinements
from talk2dino.segmenter import POOLINGS, Grouping


@dataclass(eq=False)
class Result:
    """One segmented picture; everything that is shown or downloaded is made from it."""

    picture: Picture
    """What was sent."""
    segmentation: Segmentation | None
    """What was found, at the threshold of the request; None once it has made room for others."""
    model: str
    """Its name."""
    rules: PictureRules
    """Of the model."""
    text: str = ""
    """A sentence about it for the visitor."""
    groups: Sequence[Image.Image] = ()
    """One picture of the model's groups for each of its stages, if it has any."""
    folder: Path = field(init=False)
    """Where its files are; removed when nobody keeps the result any more."""

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def at(self, threshold: float | None) -> Segmentation:
        """The same scores with another threshold of the background, if there is one.

        Some methods have to score the picture again for that; then the threshold stays.

        Raises:
            ValueError: the result has made room, or the threshold is no number from 0 to 1.
        """
        found = self.segmentation
        if found is None:
            raise ValueError(
                "This result is no longer kept: others came after it. Press Segment again."
            )
        if threshold is None or found.background is None or not self.rules.redraws:
            return found
        threshold = class_threshold(threshold, 0.0)
        if threshold in (None, found.background):
            return found
        scores = torch.cat([torch.full_like(found.scores[:1], threshold), found.scores[1:]])
        return dataclasses.replace(
            found, scores=scores, labels=score_labels(scores), background=threshold
        )


class Results:
    """Bounds the memory of all visitors' results; each visitor's session keeps its own.

    Args:
        max_bytes: for scores; the oldest results make room, the newest is always kept.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self._max_bytes = max_bytes
        self._kept: list[weakref.ref[Result]] = []
        self._lock = threading.Lock()

    def add(self, result: Result) -> None:
        """Count a new result."""
        with self._lock:
            kept = [old for ref in self._kept if (old := ref()) and old.segmentation]
            free = self._max_bytes - _num_bytes(result)
            for old in reversed(kept):
                free -= _num_bytes(old)
                if free < 0:
                    old.segmentation = None
            self._kept = [weakref.ref(one) for one in [*kept, result]]


def _num_bytes(result: Result) -> int:
    found = result.segmentation
    return 0 if found is None else found.scores.nbytes + found.labels.nbytes


def segment(
    models: Models,
    limits: Limits,
    upload: Mapping[str, Any] | None,
    categories: str | None,
    model: str,
    background: bool = False,
    threshold: float | None = None,
    refine: Sequence[str] | None = None,
    pooling: str = POOLINGS[0],
) -> Iterator[str | Result]:
    """Yield sentences about what is being done, and at last the result.

    Args:
        models: on offer.
        limits: of a request.
        upload: see `read_picture`. This and what follows is what a visitor asks for, unchecked.
        categories: free text; see `read_names`.
        model: one of those on offer.
        background: whether pixels may belong to no category.
        threshold: of the background; None for the model's own.
        refine: names of refinements; None for the model's own.
        pooling: how several words of a category are put together.

    Raises:
        ValueError: wrong input, said in words for the visitor.
        OSError, RuntimeError, MemoryError: the model cannot be loaded, or runs out of memory.
    """
    started = time.perf_counter()
    entry = models.entry(model)
    own = entry.rules.threshold
    wanted = class_threshold(own if threshold is None else threshold, own)
    vocabulary = read_names(categories, background, limits)
    names = vocabulary.names
    check_name("pooling", pooling, POOLINGS)
    chosen = None if refine is None else chosen_refinements(refine)
    picture = read_picture(upload, limits)
    if entry.segmenter is None:
        yield f"Loading {model}; this happens once."
    with models.use(model):
        pass
    yield f"Looking for {f'{len(names)} categories' if len(names) > 1 else names[0]} …"
    with models.use(model) as entry:
        method, segmenter = entry.variant(chosen, background, models.device)
        rules = method.demo
        words = vocabulary.class_words(method.words(), pooling)
        query = method.query(segmenter, names, wanted if background else None, words=words)
        settings = {"model": model, "refine": list(rules.refines or ()), "image": picture.stem}
        found = segment_picture(segmenter, picture.image, query, rules.protocol, settings=settings)
        grouping = segmenter if isinstance(segmenter, Grouping) else None
        groups = draw_groups(grouping, picture.image, models.device) if grouping else []
    seconds = time.perf_counter() - started
    yield Result(picture, found, model, rules, _summary(len(names), picture, seconds), groups)


def _summary(count: int, picture: Picture, seconds: float) -> str:
    text = f"{count} {'category' if count == 1 else 'categories'} in {seconds:.1f} s"
    height, width = picture.full_hw
    if (width, height) == picture.image.size:
        return f"{text}, {width} × {height} pixels."
    return (
        f"{text}. The picture has {width} × {height} pixels and was segmented at "
        f"{picture.image.width} × {picture.image.height}; the mask has its full size."
    )
