"""Ground-truth label files: how they are read, and the tables that renumber published ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from talk2dino.benchmarks.metrics import IGNORED
from talk2dino.pictures.images import UnsupportedPixels, use_picture

T = TypeVar("T")

COCO_STUFF_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Raw ids below 182 that COCO and COCO-Stuff never use."""
COCO_STUFF_IDS = tuple(v for v in range(182) if v not in COCO_STUFF_UNUSED)
"""The 171 raw pixel values of COCO-Stuff: 80 objects up to 89, then 91 kinds of stuff."""
LAST_COCO_OBJECT = 89
"""Largest raw value of an object; above it is stuff."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Official ids of the 19 evaluated Cityscapes classes, road to bicycle, in order."""
CITYSCAPES_LAST_ID = 33
"""Largest official id; the others of 0..33 are not evaluated."""


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A renumbering of 8-bit labels."""

    lookup: np.ndarray
    """(256,) uint8, the new label of every raw value."""
    known: np.ndarray
    """(256,) bool, the raw values that the data set defines."""

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Renumber (H, W) uint8 labels."""
        return self.lookup[raw]

    def unknown_values(self, raw: np.ndarray) -> list[int]:
        """Values in (H, W) uint8 `raw` that the data set does not define."""
        present = np.bincount(raw.ravel(), minlength=256) > 0
        return np.flatnonzero(present & ~self.known).tolist()


def coco_object_table() -> LabelTable:
    """Raw COCO-Stuff to COCO-Object: 0 background (stuff and unlabelled too), objects 1 to 80."""
    objects = [v for v in COCO_STUFF_IDS if v <= LAST_COCO_OBJECT]
    return _table(objects, first=1, other=0, unlabelled=(*COCO_STUFF_IDS, IGNORED))


def coco_stuff_table() -> LabelTable:
    """Raw COCO-Stuff to the 171 consecutive labels from 0; anything else is ignored (255)."""
    return _table(COCO_STUFF_IDS, first=0, other=IGNORED, unlabelled=(IGNORED,))


def cityscapes_table() -> LabelTable:
    """Official Cityscapes ids to train ids 0 to 18; classes that are not evaluated become 255."""
    unlabelled = (*range(CITYSCAPES_LAST_ID + 1), IGNORED)
    return _table(CITYSCAPES_IDS, first=0, other=IGNORED, unlabelled=unlabelled)


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label file as stored: grey values, or the indices of a palette PNG.

    Returns:
        (H, W) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no PNG, or holds colours instead of class numbers.
    """
    return _use_labels(path, lambda image: np.array(image, dtype=np.uint8))


def label_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a label file, from its header.

    Raises: as `read_labels`, except for damage behind the header.
    """
    return _use_labels(path, lambda image: (image.height, image.width), header_only=True)


def forbidden(path: str | Path) -> str:
    """What is said of a file that is there, but that the user may not read."""
    return f"{path} may not be read: permission denied. Change its mode (chmod) or its owner."


class WrongLabelMode(UnsupportedPixels):
    """An intact picture that holds no 8-bit class numbers."""


def _use_labels(path: str | Path, use: Callable[[Image.Image], T], header_only: bool = False) -> T:
    def checked(image: Image.Image) -> T:
        if (problem := _no_labels(image)) is not None:
            raise WrongLabelMode(f"{path} {problem}")
        return use(image)

    try:
        return use_picture(path, checked, header_only)
    except PermissionError as error:
        raise ValueError(forbidden(path)) from error


def _no_labels(image: Image.Image) -> str | None:
    """Why a picture cannot be a label map, if so."""
    if not isinstance(image, PngImageFile):
        return (
            f"is no lossless PNG but {image.format}, which may have changed its class numbers: "
            "use the official file."
        )
    if image.mode in ("RGB", "RGBA", "LA", "PA"):
        return (
            f"holds {image.mode} colours, not class numbers. It was probably re-saved by a "
            "program that flattens palettes, or is a colour visualisation: use the official file."
        )
    # Grey of 2 or 4 bits is stretched to 0 to 255 by every reader.
    if image.mode not in ("1", "L", "P") or image.tile[0][3] in ("L;2", "L;4"):
        return (
            f"has pixels of mode {image.tile[0][3]}; labels must be 8-bit grey or palette indices."
        )
    return None


def _table(ids: Iterable[int], first: int, other: int, unlabelled: Iterable[int]) -> LabelTable:
    lookup = np.full(256, other, dtype=np.uint8)
    known = np.zeros(256, dtype=bool)
    known[list(unlabelled)] = True
    for label, raw in enumerate(ids, start=first):
        lookup[raw] = label
        known[raw] = True
    return LabelTable(lookup, known)
