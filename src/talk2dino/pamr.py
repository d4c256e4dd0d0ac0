"""Pixel-adaptive mask refinement (PAMR, Araslanov and Roth 2020) as Talk2DINO applies it.

Every pixel's scores are replaced, ten times, by a weighted mean over its 48 neighbours: eight
directions at six distances. A neighbour weighs more the more its colour resembles the pixel's,
measured against the contrast around that pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def pamr(
    images: Tensor,
    masks: Tensor,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
) -> Tensor:
    """Refine class scores so that they follow the edges of the image.

    Args:
        images: (B, 3, H, W) RGB in [0, 255], integer or float, not normalised.
        masks: (B, C, H, W) floating point scores. Classes do not interact.
        iterations: how often the scores are averaged; 0 returns them unchanged.
        dilations: distances of the neighbours in pixels. Beyond the border the outermost pixel
            is repeated, so the image may be smaller than a distance.

    Returns:
        (B, C, H, W), of the type of `masks`; the inputs are not modified. Gradients reach the
        masks, not the images.
    """
    _check(images, masks, iterations, dilations)
    if iterations == 0 or masks.shape[1] == 0:
        return masks.clone()
    dtype = torch.float64 if masks.dtype == torch.float64 else torch.float32
    weights = affinities(images.to(dtype).contiguous(), dilations)
    # Interpolation returns its result channels last, which makes every shifted view slow.
    refined = masks.to(dtype).contiguous()
    for _ in range(iterations):
        averaged = torch.zeros_like(refined)
        for index, neighbours in enumerate(_shifted(refined, dilations)):
            averaged.addcmul_(neighbours, weights[:, index : index + 1])
        refined = averaged
    return refined.to(masks.dtype)


@torch.no_grad()
def affinities(images: Tensor, dilations: Sequence[int]) -> Tensor:
    """How much each neighbour of a pixel counts.

    Args:
        images: (B, 3, H, W) float.
        dilations: K distances in pixels.

    Returns:
        (B, 8K, H, W), positive, summing to one over the 8K neighbours.
    """
    # The deviation is taken over differences from the centre: the same number, without the
    # cancellation that squares of values up to 255 suffer in float32.
    total = torch.zeros_like(images)
    squares = torch.zeros_like(images)
    for neighbours in _shifted(images, dilations):
        difference = neighbours - images
        total += difference
        squares.addcmul_(difference, difference)
    count = (len(_DIRECTIONS) + 1) * len(dilations)  # the centre counts once per dilation
    variance = (squares - total.square() / count).clamp_(min=0) / (count - 1)
    scale = 1 / (1e-8 + 0.1 * variance.sqrt())  # (B, 3, H, W)

    batch, _, height, width = images.shape
    logits = images.new_empty(batch, len(_DIRECTIONS) * len(dilations), height, width)
    for index, neighbours in enumerate(_shifted(images, dilations)):
        logits[:, index] = -((neighbours - images).abs() * scale).mean(dim=1)
    # A softmax in place: at 12 megapixels the weights alone take 2.3 GB.
    logits -= logits.amax(dim=1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(dim=1, keepdim=True))


def _shifted(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield (B, C, H, W) views of `values`, one per neighbour, with the border repeated."""
    height, width = values.shape[-2:]
    margin = max(dilations)
    padded = F.pad(values, (margin, margin, margin, margin), mode="replicate")
    for dilation in dilations:
        for dy, dx in _DIRECTIONS:
            top, left = margin + dy * dilation, margin + dx * dilation
            yield padded[..., top : top + height, left : left + width]


def _check(images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), found {tuple(images.shape)}.")
    if masks.ndim != 4:
        raise ValueError(f"masks must be (B, C, H, W), found {tuple(masks.shape)}.")
    if images.shape[0] != masks.shape[0] or images.shape[-2:] != masks.shape[-2:]:
        raise ValueError(
            "images and masks must agree in batch and size, found "
            f"{tuple(images.shape)} and {tuple(masks.shape)}. Resize the masks first."
        )
    if 0 in images.shape:
        raise ValueError(f"images must not be empty, found {tuple(images.shape)}.")
    if not masks.is_floating_point():
        raise ValueError(f"masks must be floating point scores, found {masks.dtype}.")
    if images.device != masks.device:
        raise ValueError(f"images are on {images.device}, masks on {masks.device}.")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, found {iterations}.")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations must be positive distances, found {tuple(dilations)}.")
