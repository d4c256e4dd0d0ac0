"""A small evaluation: any segmenter on a folder in Pascal VOC layout, one window per picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from talk2dino.images import read_rgb, rgb_tensor
from talk2dino.inference import ClassQuery, score_labels, whole_image_scores
from talk2dino.metrics import SegmentationScores, confusion_counts, segmentation_scores
from talk2dino.segmenter import Segmenter
from talk2dino.toy.world import read_class_names


@dataclass(frozen=True)
class Example:
    """One picture with its ground truth."""

    path: Path
    """The picture's file."""
    image: Tensor
    """(3, H, W) uint8 RGB."""
    mask: Tensor
    """(H, W) int64 class ids; 255 does not count."""


OnPicture = Callable[[Example, Tensor], object]


def evaluate_folder(
    segmenter: Segmenter, voc: str | Path, on_picture: OnPicture | None = None
) -> SegmentationScores:
    """Segment every picture of `ImageSets/Segmentation/val.txt` and compare it with its mask.

    Args:
        segmenter: any method.
        voc: folder in VOC layout with a `class_names.txt`; every class is predicted.
        on_picture: called after each picture, with its predicted class ids (H, W).

    Raises:
        FileNotFoundError: a part of the layout is missing.
        ValueError: a picture or mask cannot be read, or their sizes differ.
    """
    names = read_class_names(voc)
    query = ClassQuery(segmenter.embed_classes(names))
    total = torch.zeros(len(names), len(names), dtype=torch.int64)
    for example in read_examples(voc):
        labels = score_labels(whole_image_scores(segmenter, example.image, query)).cpu()
        total += confusion_counts(labels, example.mask, len(names))
        if on_picture is not None:
            on_picture(example, labels)
    return segmentation_scores(total)


def read_examples(voc: str | Path) -> Iterator[Example]:
    """The listed pictures with their masks, in the order of the list."""
    for name in list_examples(voc):
        path = Path(voc) / "JPEGImages" / f"{name}.jpg"
        with Image.open(Path(voc) / "SegmentationClass" / f"{name}.png") as mask:
            labels = torch.from_numpy(np.asarray(mask, dtype=np.int64))
        yield Example(path, rgb_tensor(read_rgb(path)), labels)


def list_examples(voc: str | Path) -> list[str]:
    """File stems of the pictures to evaluate.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: it is empty.
    """
    path = Path(voc) / "ImageSets" / "Segmentation" / "val.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it lists the pictures to evaluate")
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{path} lists no pictures")
    return names
