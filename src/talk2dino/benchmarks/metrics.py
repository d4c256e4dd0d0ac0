"""Segmentation metrics from summed confusion counts: IoU, mIoU, mAcc, aAcc."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = 255
"""Ground-truth label of pixels that do not count."""
WIDE_IGNORED = 65535
"""The same where 255 is a class."""


def ignored_label(num_classes: int) -> int:
    """Which class id stands for pixels that do not count, among so many classes."""
    return IGNORED if num_classes <= IGNORED else WIDE_IGNORED


def pair_numbers(predicted: Tensor, target: Tensor, num_classes: int, ignored: int) -> Tensor:
    """A number per pixel, (N,) int64; nothing leaves the device.

    true * C + predicted; C * C where the pixel is ignored, C * C + 1 where a label is no class.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(predicted.shape)} and ground truth {tuple(target.shape)} differ "
            "in size. Resize the prediction to the original image first."
        )
    # One bin per pair and two more, instead of picking out the pixels that count: twice as fast.
    truth, guess = target.long(), predicted.long()
    pairs = truth * num_classes + guess
    wrong = (truth < 0) | (truth >= num_classes) | (guess < 0) | (guess >= num_classes)
    pairs.masked_fill_(wrong, num_classes**2 + 1)
    pairs.masked_fill_(truth == ignored, num_classes**2)
    return pairs.flatten()


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """Metrics of a whole set of images, as fractions in [0, 1]."""

    iou: Tensor
    """(C,) float64 intersection over union; nan for a class that is nowhere."""
    accuracy: Tensor
    """(C,) float64 share of a class's pixels that were found; nan where it has none."""
    all_accuracy: float
    """aAcc: share of all counted pixels that are right."""

    @property
    def mean_iou(self) -> float:
        """mIoU over the classes that occur in prediction or ground truth."""
        return float(self.iou.nanmean())

    @property
    def mean_accuracy(self) -> float:
        """mAcc over the classes that occur in the ground truth."""
        return float(self.accuracy.nanmean())


def percent(value: float) -> float | None:
    """A fraction as results hold it; None for nan."""
    return None if math.isnan(value) else round(100 * value, 4)


def area_scores(hits: Tensor, true: Tensor, predicted: Tensor) -> SegmentationScores:
    """Metrics from pixels (C,) per class: found, labelled and predicted ones of all images."""
    hits, true, predicted = hits.double(), true.double(), predicted.double()
    return SegmentationScores(
        iou=hits / (true + predicted - hits),  # 0 / 0 is nan: the class is nowhere
        accuracy=hits / true,
        all_accuracy=float(hits.sum() / true.sum()),
    )
