"""One picture of the segment command: read, score, draw, write."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from talk2dino.cli.segment_files import Task
from talk2dino.pictures.drawing import (
    MAX_INDEXED,
    LegendStyle,
    class_colours,
    draw_overlay,
    indexed_mask,
)
from talk2dino.pictures.images import check_image, read_rgb
from talk2dino.pictures.segmentation import Segmentation, save_picture, save_scores
from talk2dino.predict import segment_picture
from talk2dino.segmenter import ClassQuery, Segmenter
from talk2dino.sizes import Protocol, scoring_size

if TYPE_CHECKING:
    from talk2dino.methods.base import Method

_GIB = 2**30
_SLOW_PIXELS = 5_000_000  # from here on, refinement takes tens of seconds on a laptop


@dataclass(frozen=True)
class JobOptions:
    """What is the same for every picture of a run."""

    names: list[str]
    """Legend entries in the order of the labels, the background first if there is one."""
    background: float | None = None
    """Threshold of the background, or None."""
    opacity: float = 0.5
    """Of the class colours."""
    max_side: int | None = None
    """Larger pictures are scored at this long side."""
    pamr: bool = True
    """Whether scores are refined; only for the estimate of memory."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What made the files; stored inside them."""


_ONLY_BACKGROUND = 0.99  # share of the pixels


class SegmentJob:
    """Segments one picture after the other with the same classes.

    Args:
        segmenter: any method.
        query: the names and the background's threshold.
        protocol: size and windows.
        options: see `JobOptions`.
    """

    def __init__(
        self, segmenter: Segmenter, query: ClassQuery, protocol: Protocol, options: JobOptions
    ) -> None:
        self.segmenter = segmenter
        self.query = query
        self.protocol = protocol
        self.options = options
        self.colours = class_colours(len(options.names), options.background is not None)

    def segment(self, task: Task) -> str:
        """Write the files of one picture; returns a line that says what was found.

        Raises:
            ValueError, OSError: the picture cannot be read, or a file cannot be written.
            RuntimeError: not enough memory on the device.
        """
        started = time.perf_counter()
        check_picture(task.source, self.options, self.query.rows.device)
        image = read_rgb(task.source)
        found = self._found(image, task.source)
        labels, scores = found.labels.numpy(), found.scores
        if task.mask is not None:
            save_picture(indexed_mask(labels, self.colours), task.mask, self._record(task))
        if task.scores is not None:
            save_scores(scores, self.options.names, task.scores, self._record(task))
        style = LegendStyle(self.options.opacity)
        overlay = draw_overlay(image, labels, self.options.names, self.colours, style)
        save_picture(overlay, task.overlay, self._record(task))
        seconds = time.perf_counter() - started
        shares = self._shares(labels) + self._why_only_background(scores, labels)
        return f"{task.source} -> {task.overlay} ({seconds:.1f} s): {shares}"

    def _why_only_background(self, scores: Tensor, labels: np.ndarray) -> str:
        """What to do when hardly a pixel belongs to a class."""
        threshold = self.options.background
        if threshold is None or np.mean(labels == 0) < _ONLY_BACKGROUND:
            return ""
        best = scores[1:].max().item()
        return f"; the highest score is {best:.3f}, --bg_thresh {threshold:g}: lower it"

    def _found(self, image: Image.Image, path: Path) -> Segmentation:
        height, width = scoring_size(image.height, image.width, self.options.max_side)
        if self.options.pamr and height * width > _SLOW_PIXELS:
            megapixels = height * width / 1e6
            print(f"note: {path} has {megapixels:.0f} megapixels; --max_side 2048 is faster")
        most = self.options.max_side
        return segment_picture(self.segmenter, image, self.query, self.protocol, most)

    def _record(self, task: Task) -> str:
        """JSON of what made a file."""
        record = {
            "image": str(task.source),
            "classes": self.options.names,
            "background": self.options.background,
            **self.options.settings,
        }
        return json.dumps(record, ensure_ascii=False)

    def _shares(self, labels: np.ndarray) -> str:
        counts = np.bincount(labels.ravel(), minlength=len(self.options.names))
        order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
        shown = []
        for index in order[:5]:
            share = counts[index] / labels.size
            shown.append(
                f"{self.options.names[index]} {f'{share:.0%}' if share >= 0.01 else '<1%'}"
            )
        return ", ".join(shown) + (", ..." if len(order) > 5 else "")


def refines(method: Method) -> bool:
    """Whether whole pictures are refined, which takes time and memory."""
    return bool(method.settings().get("pamr")) and method.demo.protocol.window is None


def check_count(count: int, save_mask: bool, flag: str = "--save_mask") -> None:
    """Raise ValueError for more labels than a mask can hold."""
    if save_mask and count > MAX_INDEXED:
        raise ValueError(
            f"{flag}: an indexed PNG holds at most {MAX_INDEXED} classes, there are {count}. "
            "Use fewer classes, or --save_scores with --output."
        )


def check_pictures(sources: Sequence[Path], options: JobOptions, device: torch.device) -> None:
    """Raise ValueError if `check_picture` refuses all of them; a single one does not stop a run."""
    problems = []
    for source in sources:
        try:
            check_picture(source, options, device)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if len(problems) == len(sources):
        raise ValueError("\n".join(problems))


def check_picture(path: Path, options: JobOptions, device: torch.device) -> None:
    """Raise for a picture whose header is damaged, or that needs more memory than there is.

    Raises:
        FileNotFoundError, ValueError: see `images.check_image`; or too large to score.
    """
    height, width = check_image(path)
    if device.type != "cpu":
        return  # the device says itself when it is full
    scored = scoring_size(height, width, options.max_side)
    needed = scoring_bytes(*scored, len(options.names), options.pamr)
    available = physical_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{path}: {width} x {height} pixels and {len(options.names)} classes need about "
            f"{needed / _GIB:.0f} GiB of memory, this machine has {available / _GIB:.0f}. "
            "Pass --max_side 2048" + (" or --no_pamr." if options.pamr else ".")
        )


def scoring_bytes(height: int, width: int, classes: int, pamr: bool) -> int:
    """Memory that scoring one window takes at its peak, roughly.

    Measured on 12 megapixels with 3 classes and PAMR: 4.2 GB, as estimated here.
    """
    planes = 3 * classes + (78 if pamr else 10)  # float32 planes of the window's size
    return 4 * height * width * planes


def physical_memory() -> int | None:
    """Bytes of memory of this machine, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
