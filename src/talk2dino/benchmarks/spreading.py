"""From the patch scores of a picture's windows to its labels, without all scores of all pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.benchmarks.table import Protocol
from talk2dino.inference import WindowMean, resize_scores, window_corners, window_starts
from talk2dino.segmenter import PatchScoring

MOST_BYTES = 1 << 28
"""Memory for the upsampled scores of a picture, unless one says otherwise: 256 MiB."""
_CACHED_BYTES = 1 << 23
"""On a CPU, scores are made and compared in parts of this size: 8 MiB was the fastest measured."""
_COPIES = 4  # of a window's scores while PAMR runs: given, padded, averaged and returned


@dataclass(frozen=True)
class Layout:
    """How windows cover a picture."""

    original_hw: tuple[int, int]
    """Size in pixels at which labels are wanted."""
    scored_hw: tuple[int, int]
    """Size in pixels at which windows are taken."""
    protocol: Protocol
    """Side and stride of the windows."""

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top left pixel of every window, row by row."""
        return window_corners(*self.scored_hw, self.protocol.window, self.protocol.stride)

    @property
    def window_hw(self) -> tuple[int, int]:
        """Size of every window in pixels."""
        height, width = self.scored_hw
        return min(self.protocol.window, height), min(self.protocol.window, width)


def spread_labels(
    segmenter: PatchScoring,
    patches: Tensor,
    pixels: Tensor,
    layout: Layout,
    background: float | None = None,
    most_bytes: int = MOST_BYTES,
) -> Tensor:
    """Labels of a picture: windows are upsampled and averaged, their mean is resized and compared.

    The same as the steps one by one, up to rounding (tests/benchmarks/test_spreading.py).

    Args:
        segmenter: made the scores; says whether they follow the edges of the image.
        patches: (N, C, gh, gw) scores of the patches of the N windows of `layout`.
        pixels: (3, h, w) RGB in [0, 255], at the size that is scored.
        layout: sizes and windows.
        background: threshold of label 0, or None if label 0 is the first class.
        most_bytes: for upsampled scores; less than one row or one class at a time is impossible.

    Returns:
        (H, W) int64; the first label wins a tie.
    """
    if segmenter.follows_edges:
        parts = _scores_by_class(segmenter, patches, pixels, layout, most_bytes)
        best, labels = _best_of(parts)
        return labels if background is None else _with_background(best, labels, background)
    return _labels_by_rows(patches, layout, background, most_bytes)


def resized_labels(scores: Tensor, size_hw: tuple[int, int], most_bytes: int) -> Tensor:
    """`score_labels(resize_scores(scores, size_hw))`, some classes at a time.

    Args:
        scores: (C, h, w).
        size_hw: of the labels.
        most_bytes: for resized scores.
    """
    step = max(most_bytes // (4 * size_hw[0] * size_hw[1]), 1)
    return _best_of(resize_scores(part, size_hw) for part in scores.split(step))[1]


def spreading_matrix(
    original: int, scored: int, window: int, starts: Sequence[int], cells: int
) -> Tensor:
    """What one axis of all windows' patches contributes to each pixel of the original.

    Upsampling (aligned corners), the mean over windows and resizing are linear and separable:
    together they are one matrix per axis, made here by doing them to unit vectors.

    Args:
        original, scored, window: lengths in pixels.
        starts: first pixel of every window along the axis.
        cells: patches of a window along the axis.

    Returns:
        (original, len(starts) * cells); every row sums to one.
    """
    upsampled = F.interpolate(
        torch.eye(cells)[None], size=window, mode="linear", align_corners=True
    )[0]
    mean = torch.zeros(len(starts), cells, scored)
    hits = torch.zeros(scored)
    for index, start in enumerate(starts):
        mean[index, :, start : start + window] = upsampled
        hits[start : start + window] += 1
    mean = (mean / hits).flatten(0, 1)
    if scored != original:
        mean = F.interpolate(mean[None], size=original, mode="linear", align_corners=False)[0]
    return mean.T


def _labels_by_rows(
    patches: Tensor, layout: Layout, background: float | None, most_bytes: int
) -> Tensor:
    """Labels without PAMR: all classes of some rows at a time, as products of matrices."""
    rows, columns = _matrices(patches, layout)
    classes, (height, width) = patches.shape[1], layout.original_hw
    down = len(window_starts(layout.scored_hw[0], layout.protocol.window, layout.protocol.stride))
    grid = patches.unflatten(0, (down, -1)).permute(2, 0, 3, 1, 4)  # (C, down, gh, across, gw)
    wide = grid.flatten(3).flatten(1, 2) @ columns.T  # (C, down * gh, W)
    if patches.device.type == "cpu":
        most_bytes = min(most_bytes, _CACHED_BYTES)
    labels = torch.empty(height, width, dtype=torch.int64, device=patches.device)
    step = max(most_bytes // (4 * classes * width), 1)
    for top in range(0, height, step):
        best, found = torch.matmul(rows[top : top + step], wide).max(dim=0)
        if background is not None:
            found = _with_background(best, found, background)
        labels[top : top + step] = found
    return labels


def _matrices(patches: Tensor, layout: Layout) -> list[Tensor]:
    """The spreading matrices of rows and columns, where the patches are."""
    protocol = layout.protocol
    return [
        spreading_matrix(
            original, scored, window, window_starts(scored, protocol.window, protocol.stride), cells
        ).to(patches)
        for original, scored, window, cells in zip(
            layout.original_hw, layout.scored_hw, layout.window_hw, patches.shape[-2:], strict=True
        )
    ]


def _scores_by_class(
    segmenter: PatchScoring, patches: Tensor, pixels: Tensor, layout: Layout, most_bytes: int
) -> Iterator[Tensor]:
    """Scores (c, H, W) of some classes at a time, one window after the other."""
    (scored, original), (high, wide) = (layout.scored_hw, layout.original_hw), layout.window_hw
    per_class = scored[0] * scored[1] + max(original[0] * original[1], _COPIES * high * wide)
    for part in patches.split(max(most_bytes // (4 * per_class), 1), dim=1):
        mean = WindowMean(scored)
        for (top, left), window in zip(layout.corners, part, strict=True):
            crop = pixels[:, top : top + high, left : left + wide]
            mean.add((top, left), segmenter.pixel_scores(window[None], crop[None])[0])
        yield resize_scores(mean.scores(), original)


def _best_of(parts: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Best score and its class per pixel, of scores that come some classes at a time."""
    first = next(parts)
    best, labels = first.max(dim=0)
    seen = len(first)
    del first
    for part in parts:
        values, found = part.max(dim=0)
        better = values > best  # the first one wins a tie
        labels = torch.where(better, found + seen, labels)
        best = torch.where(better, values, best)
        seen += len(part)
        del part
    return best, labels


def _with_background(best: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Labels with the background in front: it has every pixel that is not above the threshold."""
    return torch.where(best > threshold, labels + 1, 0)
