"""The pictures of the segment command: read, score, draw, write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from talk2dino.cli.entry import free_memory
from talk2dino.cli.segment_files import Task
from talk2dino.inference import resize_pixels
from talk2dino.pictures.drawing import blend, write_names
from talk2dino.pictures.export import Export
from talk2dino.pictures.images import check_image, read_rgb
from talk2dino.pictures.segmentation import Segmentation, save_picture, save_scores
from talk2dino.predict import draw_groups, segment_picture
from talk2dino.segmenter import ClassQuery, ClassWords, Grouping, Segmenter
from talk2dino.sizes import scoring_size

if TYPE_CHECKING:
    from talk2dino.methods.base import Method

GROUP_MODES = ("all_groups", "first_group", "final_group")
_GIB = 2**30
_MOST_WEIGHTS = 2**28  # PAMR holds no more at a time
_HUGE_PIXELS = 16_000_000  # refined beyond this only if asked for: it takes a minute on a laptop
_HUGE_SIDE = 4096


@dataclass(eq=False)
class SegmentJob:
    """Segments one picture after the other with the same classes."""

    method: Method
    """Model and options; the modes of groups need one with groups."""
    names: Sequence[str]
    """Of the labels."""
    colours: np.ndarray
    """(C, 3) uint8 RGB of the labels."""
    device: torch.device
    """Where the model runs."""
    background: float | None = None
    """Threshold of the background, or None for none."""
    words: ClassWords | None = None
    """By which the classes are looked for."""
    max_side: int | None = None
    """Larger pictures are scored at this long side; None: see `side_of`."""
    opacity: float = 0.5
    """Of the class colours of an overlay."""
    export: Export | None = None
    """Gets every segmentation."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is recorded in every file."""
    segmenter: Segmenter = field(init=False)
    query: ClassQuery = field(init=False)

    def load(self) -> None:
        """Load the model and look the classes up."""
        self.segmenter = self.method.load(self.device)
        self.settings = {**self.settings, "segmenter": self.method.settings()}
        self.query = self.method.query(
            self.segmenter, self.names, self.background, words=self.words
        )

    def check(self, path: Path) -> None:
        """Raise for a picture whose header is damaged, or that needs more memory than there is.

        Raises:
            FileNotFoundError, ValueError: see `images.check_image`; or too large to score.
        """
        height, width = check_image(path)
        if self.device.type != "cpu":
            return  # the device says itself when it is full
        scored = scoring_size(height, width, self.side_of(height, width))
        count = len(self.names)
        needed = scoring_bytes(height, width, scored, count, self.refined)
        available = free_memory()
        if available is not None and needed > available:
            raise ValueError(
                f"{path}: {width} x {height} pixels and {count} classes need about "
                f"{needed / _GIB:.1f} GiB of memory, {available / _GIB:.1f} GiB are free. "
                "Pass --max_side 2048, name fewer classes, or make the picture smaller."
            )

    @property
    def refined(self) -> bool:
        """Whether the scores of whole pictures are refined."""
        return "pamr" in (self.method.demo.refines or ())

    def side_of(self, height: int, width: int) -> int | None:
        """The longest side at which a picture is scored; None: it keeps its size.

        Without a wish, whole pictures of more than 16 megapixels are refined at 4096 pixels.
        """
        huge = self.refined and height * width > _HUGE_PIXELS
        return _HUGE_SIDE if huge and self.max_side is None else self.max_side

    def segment(self, task: Task) -> str:
        """Write the files of one picture; returns a line that says what was found.

        Raises:
            ValueError, OSError: the picture cannot be read, or a file cannot be written.
            RuntimeError: not enough memory on the device.
        """
        started = time.perf_counter()
        self.check(task.source)
        image, outputs = read_rgb(task.source), task.outputs
        pictures = self._without_classes(image, outputs)
        line, record = "", ""
        if left := [kind for kind in outputs if kind not in ("input", *GROUP_MODES)]:
            found = self._found(image, task.source)
            line, record = f": {_shares(found)}", found.record()
            drawn = [kind for kind in left if kind != "save_scores"]
            pictures |= {outputs[kind]: self._draw(kind, found) for kind in drawn}
            if "save_scores" in outputs:
                save_scores(found.scores, found.names, outputs["save_scores"], record)
            if self.export is not None:
                self.export.add(found, task.source)
        for path, picture in pictures.items():
            save_picture(picture, path, record)
        where = outputs.get("output", f"{len(pictures)} files")
        return f"{task.source} -> {where} ({time.perf_counter() - started:.1f} s){line}"

    def _without_classes(
        self, image: Image.Image, outputs: Mapping[str, Path]
    ) -> dict[Path, Image.Image]:
        """The pictures for which no class is looked for."""
        pictures = {}
        if "input" in outputs:  # as the model saw it, at its own size again
            pixels, size_hw = np.asarray(image), (image.height, image.width)
            small = resize_pixels(pixels, self.method.demo.protocol.scored_size(*size_hw))
            pictures[outputs["input"]] = Image.fromarray(resize_pixels(small, size_hw))
        if any(mode in outputs for mode in GROUP_MODES):
            assert isinstance(self.segmenter, Grouping)
            groups = draw_groups(self.segmenter, image, self.query.rows.device)
            for number, picture in enumerate(groups):
                if "all_groups" in outputs:
                    first = outputs["all_groups"]
                    pictures[first.with_stem(f"{first.stem.removesuffix('0')}{number}")] = picture
            for mode, picture in (("first_group", groups[0]), ("final_group", groups[-1])):
                if mode in outputs:
                    pictures[outputs[mode]] = picture
        return pictures

    def _found(self, image: Image.Image, path: Path) -> Segmentation:
        most = self.side_of(image.height, image.width)
        if most != self.max_side:
            megapixels = image.height * image.width / 1e6
            print(
                f"note: {path} has {megapixels:.0f} megapixels: scored at a long side of {most} "
                f"pixels; --max_side {max(image.size)} keeps its size"
            )
        settings, protocol = {"image": str(path), **self.settings}, self.method.demo.protocol
        found = segment_picture(self.segmenter, image, self.query, protocol, most, settings)
        return replace(found, palette=self.colours)

    def _draw(self, kind: str, found: Segmentation) -> Image.Image:
        labels = found.labels.numpy()
        if kind == "output":
            return found.overlay(self.opacity)
        if kind in ("pred", "save_mask"):
            return found.mask()
        if kind == "mask":
            return Image.fromarray(labels.astype(np.uint8))
        kept = None if found.background is None else 0
        blended = blend(np.asarray(found.image), self.colours[labels], labels == kept)
        picture = Image.fromarray(blended)
        return picture if kind == "input_pred" else write_names(picture, labels, found.names, kept)


def _shares(found: Segmentation) -> str:
    """The five classes with the most pixels."""
    areas = {name: share for name, share in found.areas().items() if share}
    largest = sorted(areas.items(), key=lambda area: -area[1])
    shown = [f"{n} {f'{share:.0f}%' if share >= 1 else '<1%'}" for n, share in largest[:5]]
    return ", ".join(shown) + (", ..." if len(largest) > 5 else "")


def scoring_bytes(
    height: int, width: int, scored: tuple[int, int], classes: int, refined: bool
) -> int:
    """Memory that scoring a picture as one window takes at its peak, roughly.

    Args:
        height, width: of the picture.
        scored: height and width at which it is scored.
    """
    pixels = scored[0] * scored[1]
    planes = (2 * classes + 6) * pixels  # float32: the picture, its scores, and once more refined
    planes += min(48 * pixels, _MOST_WEIGHTS) if refined else 0
    if scored != (height, width):
        planes += (classes + 4) * height * width
    return 4 * planes
