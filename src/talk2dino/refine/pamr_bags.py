"""PAMR's averaging on CPUs: a pixel's neighbours are a bag of rows, summed with weights.

PyTorch's embedding bag looks rows of a table up and sums them with weights, in vector registers
and on all cores. With the classes innermost, the scores are such a table and a pixel's new scores
are one bag, so the neighbours' scores are never copied. Sums are taken in the order of `pamr`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Step = tuple[int, int]
"""Rows and columns from a pixel to one of its neighbours."""

# Measured on two cores of Zen 4: rows of 32 scores are two vectors. A call for 16,384 pixels takes
# a millisecond, so that threads seldom wait for each other; its indices (3 MB for 48 neighbours)
# serve every band of rows and stay in the third-level cache.
_CLASSES = 32
_PIXELS = 2**14


@torch.no_grad()
def average_in_bags(
    masks: Tensor, weights: Tensor, steps: Sequence[Step], iterations: int, refined: Tensor
) -> None:
    """Replace every pixel's scores by the weighted sum over its neighbours, again and again.

    Args:
        masks: (C, H, W) float32 on the CPU.
        weights: (H, W, K) float32, contiguous: what each neighbour counts.
        steps: K places of neighbours. Beyond the border the outermost pixel is repeated.
        iterations: how often, at least once.
        refined: (C, H, W), receives the result.
    """
    height, width, _ = weights.shape
    margin = max(abs(distance) for step in steps for distance in step)
    rows = max(1, min(height, _PIXELS // width))
    bags = _bags(rows, width, margin, steps)
    for chunk, result in zip(masks.split(_CLASSES), refined.split(_CLASSES), strict=True):
        shape = (height + 2 * margin, width + 2 * margin, len(chunk))
        scores, averaged = chunk.new_empty(shape), chunk.new_empty(shape)
        _inside(scores, margin).copy_(chunk.movedim(0, -1))
        for _ in range(iterations):
            _repeat_border(scores, margin)
            for top in range(0, height, rows):
                part = weights[top : top + rows]
                table = scores[top : top + len(part) + 2 * margin].flatten(0, 1)
                means = _sum_bags(table, bags, part)
                _inside(averaged, margin)[top : top + rows] = means
            scores, averaged = averaged, scores
        result.copy_(_inside(scores, margin).movedim(-1, 0))


def _bags(rows: int, width: int, margin: int, steps: Sequence[Step]) -> Tensor:
    """(rows, W, K): where the neighbours of a band's pixels lie in its table."""
    padded_width = width + 2 * margin
    pixels = margin + torch.arange(rows)[:, None] * padded_width + torch.arange(width)
    offsets = torch.tensor([(margin + dy) * padded_width + dx for dy, dx in steps])
    return (pixels[..., None] + offsets).int()


def _sum_bags(table: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Rows of `table` (N, C) at `bags`, summed with `weights` (R, W, K): (R, W, C)."""
    rows, width, size = weights.shape
    starts = torch.arange(0, weights.numel(), size, dtype=torch.int32)
    sums, *_ = torch.embedding_bag(
        table,
        bags[:rows].flatten(),
        starts,
        mode=0,  # the sum
        per_sample_weights=weights.flatten(),
    )
    return sums.unflatten(0, (rows, width))


def _inside(padded: Tensor, margin: int) -> Tensor:
    return padded[margin : len(padded) - margin, margin : padded.shape[1] - margin]


def _repeat_border(padded: Tensor, margin: int) -> None:
    """Fill the margin of (H + 2m, W + 2m, C) with the outermost pixels."""
    inner_rows = padded[margin : len(padded) - margin]
    inner_rows[:, :margin] = inner_rows[:, margin : margin + 1]
    inner_rows[:, -margin:] = inner_rows[:, -margin - 1 : -margin]
    padded[:margin] = padded[margin]
    padded[-margin:] = padded[-margin - 1]
