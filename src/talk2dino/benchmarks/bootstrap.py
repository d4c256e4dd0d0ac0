"""How much a mIoU, or the difference of two, depends on which images happen to be in a set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_RESAMPLES = 1000
_WEIGHTS = 1 << 22
"""How often each image is in each draw, so many numbers at once: 32 MiB; fewer are slower."""


def resampled_mious(areas: Sequence[tuple[np.ndarray, np.ndarray]], draws: int) -> np.ndarray:
    """mIoU of several runs on images that are drawn again, with replacement.

    Args:
        areas: per run, intersections and unions (N, C) in pixels, of the same N images.
        draws: so many lists of N images, each the same for all runs.

    Returns:
        (draws, runs) fractions, nan where no class has a pixel. How often an image is in a draw is
        an integer and so are the areas, so that sums are exact; equal inputs give equal numbers.
    """
    generator = np.random.default_rng(0)
    images, classes = areas[0][0].shape
    numbers = [tuple(matrix.astype(np.float64) for matrix in pair) for pair in areas]
    mious = np.full((draws, len(areas)), np.nan)
    step = max(_WEIGHTS // max(images, classes, 1), 1)
    for start in range(0, draws, step):
        found = mious[start : start + step]
        weights = generator.multinomial(images, np.full(images, 1 / images), size=len(found))
        often = weights.astype(np.float64)
        for (intersect, union), means in zip(numbers, found.T, strict=True):
            unions = often @ union
            iou = np.divide(often @ intersect, unions, out=np.zeros_like(unions), where=unions > 0)
            occurring = (unions > 0).sum(axis=1)
            np.divide(iou.sum(axis=1), occurring, out=means, where=occurring > 0)
    return mious


def interval_of(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentiles between which a share of the values lies; nan if there is none."""
    values = values[np.isfinite(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(intersect: np.ndarray, union: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap over images of the mIoU.

    Args:
        intersect, union: (N, C) pixels per image and class.

    Returns:
        (low, high) as fractions, nan if no class has a pixel.
    """
    return interval_of(resampled_mious([(intersect, union)], _RESAMPLES)[:, 0])
