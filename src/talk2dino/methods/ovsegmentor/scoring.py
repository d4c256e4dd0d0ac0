"""From groups to class scores of pixels: OVSegmentor's rule for one window, without its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.methods.ovsegmentor.projection import unit_rows

MOST_CLASSES = 5
"""Classes a window may show: those its whole image embedding is most like."""


@dataclass(frozen=True, eq=False)
class WindowFeatures:
    """What class scores are computed from, for a batch of windows."""

    soft: Tensor
    """(B, G, P) how much each patch belongs to each group."""
    grid_hw: tuple[int, int]
    """Rows and columns of patches."""
    embedding: Tensor
    """(B, D) of the windows, not of unit length."""
    groups: Tensor
    """(B, G, D) of their groups, not of unit length."""


def upsample_groups(soft: Tensor, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """Soft assignments (B, G, P) at every pixel, (B, G, h, w): bilinear, align_corners false."""
    maps = soft.unflatten(-1, grid_hw)
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=False)


def group_class_scores(
    features: WindowFeatures,
    classes: Tensor,
    scale: Tensor,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """How much each group shows each class.

    A softmax over all classes times a softmax over the window's five best ones; 0 for the others.

    Args:
        features: of B windows.
        classes: (C, D) unit rows.
        scale: factor on the cosines.
        pool: from cosines with the rows (..., C) to those with classes, where they are words.

    Returns:
        (B, G, C) in [0, 1].
    """
    classes = classes.float()

    def logits_of(vectors: Tensor) -> Tensor:
        if pool is not None:
            return scale * pool(unit_rows(vectors) @ classes.T)
        return scale * unit_rows(vectors) @ classes.T

    logits = logits_of(features.groups)  # (B, G, C)
    # The published order: a softmax first, whose ties (underflow) are broken before the top.
    window = logits_of(features.embedding).softmax(dim=-1)
    best = window.topk(min(MOST_CLASSES, window.shape[-1]), dim=-1).indices
    shown = torch.zeros_like(window, dtype=torch.bool).scatter(1, best, True)  # (B, C)
    gated = logits.masked_fill(~shown[:, None], -torch.inf)
    return gated.softmax(dim=-1) * logits.softmax(dim=-1)


def paint_scores(labels: Tensor, scores: Tensor, background: float | None) -> Tensor:
    """Give every pixel the scores of its group.

    The background is 1 where the group's best class is below the threshold, but the threshold is
    lowered to the best of all the window's scores. That best score may belong to a group without
    any pixel, so it has to be known here: it cannot be read from the painted scores.

    Args:
        labels: (B, h, w) the group of each pixel.
        scores: (B, G, C) of the groups.
        background: threshold on the scores, in [0, 1], or None for no background channel.

    Returns:
        (B, C, h, w), or (B, C+1, h, w) with a first channel that is 1 for background, else 0.
        The other channels are not changed by it.
    """
    if background is not None:
        best = scores.amax(dim=-1)  # (B, G)
        threshold = best.amax(dim=-1, keepdim=True).clamp(max=background)
        is_background = (best < threshold).to(scores.dtype)
        scores = torch.cat([is_background[..., None], scores], dim=-1)
    channels = scores.transpose(1, 2)  # (B, C, G)
    index = labels.flatten(1)[:, None].expand(-1, channels.shape[1], -1)
    return channels.gather(2, index).unflatten(-1, labels.shape[1:])
