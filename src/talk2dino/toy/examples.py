"""The pictures with masks of a folder in Pascal VOC layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from talk2dino.pictures.images import read_rgb, rgb_tensor
from talk2dino.textfiles import read_names


@dataclass(frozen=True, eq=False)
class Example:
    """One picture with its ground truth."""

    path: Path
    """The picture's file."""
    image: Tensor
    """(3, H, W) uint8 RGB."""
    mask: Tensor
    """(H, W) int64 class ids; 255 does not count."""


def read_examples(voc: str | Path) -> Iterator[Example]:
    """The pictures to evaluate with their masks, in the order of the list."""
    for name in read_names(Path(voc) / "ImageSets" / "Segmentation" / "val.txt"):
        path = Path(voc) / "JPEGImages" / f"{name}.jpg"
        with Image.open(Path(voc) / "SegmentationClass" / f"{name}.png") as mask:
            labels = torch.from_numpy(np.asarray(mask, dtype=np.int64))
        yield Example(path, rgb_tensor(read_rgb(path)), labels)
