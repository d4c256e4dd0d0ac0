"""FreeDA's superpixels, and the mean of patch features over each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Superpixels:
    """Settings of Felzenszwalb's method."""

    scale: float
    """Larger ones with larger values."""
    sigma: float
    """Of the Gaussian before."""
    min_size: int
    """In pixels; smaller ones join a neighbour."""

    def of(self, window: Tensor) -> Tensor:
        """A window (3, h, w) RGB in [0, 255] to labels (h, w) int64 from 0, on the CPU."""
        pixels = (window.float().cpu() / 255).permute(1, 2, 0).contiguous().numpy()
        felzenszwalb = import_felzenszwalb()
        labels = felzenszwalb(pixels, self.scale, self.sigma, self.min_size)
        return torch.from_numpy(labels).long()


def region_weights(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each region every patch sees: (R, gh * gw).

    That is what bilinear interpolation of each region's mask, with aligned corners and without
    antialias, gives at the grid. A region between the sample points gets nothing.

    Args:
        labels: (H, W) int64, 0 to R - 1.
        grid: of patches.
    """
    (rows, of_rows), (columns, of_columns) = map(_axis_weights, labels.shape, grid)
    seen = labels[rows[..., None, None], columns]  # (2, gh, 2, gw)
    weights = of_rows[..., None, None] * of_columns
    patches = torch.arange(grid[0] * grid[1]).view(1, grid[0], 1, grid[1]).expand_as(seen)
    found = weights.new_zeros(int(labels.max()) + 1, grid[0] * grid[1])
    return found.index_put_((seen, patches), weights, accumulate=True)


def _axis_weights(length: int, points: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a side are interpolated at each point, and how much of each: (2, points)."""
    basis = torch.eye(length)[None]
    weights = F.interpolate(basis, points, mode="linear", align_corners=True)[0]
    largest = weights.topk(min(2, length), dim=0)
    return largest.indices, largest.values


def pool_regions(weights: Tensor, patches: Tensor) -> Tensor:
    """Weighted means (R, D) of patches (P, D); 0 for a region that no patch sees."""
    total = weights.sum(dim=1, keepdim=True)
    return weights @ patches / (total + torch.finfo(torch.float32).eps)


def import_felzenszwalb() -> Callable[..., Any]:
    """scikit-image's function; nothing else needs the library."""
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise ImportError(
            "superpixels need scikit-image: pip install scikit-image. Or score patches in their "
            "place: --superpixels off"
        ) from error
    found: Callable[..., Any] = felzenszwalb
    return found
