"""From the patch scores of a picture's windows to its labels, without all scores of all pixels."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.inference import WindowMean, final_scores, resize_scores, stitching
from talk2dino.segmenter import ClassQuery, Finalising, PatchScoring, Segmenter
from talk2dino.sizes import Protocol

MOST_BYTES = 1 << 28
"""Memory for the upsampled scores of a picture, unless one says otherwise: 256 MiB."""
_CACHED_BYTES = 1 << 23
"""On a CPU, scores are made and compared in parts of this size: 8 MiB was the fastest measured."""
_MANY = 256  # classes from which on most are left out block by block on a CPU
_BLOCK = 32  # pixels
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
        return self.protocol.corners(*self.scored_hw)

    @property
    def window_hw(self) -> tuple[int, int]:
        """Size of every window in pixels."""
        return self.protocol.window_size(*self.scored_hw)


def spread_labels(
    segmenter: PatchScoring,
    patches: Tensor,
    pixels: Tensor,
    layout: Layout,
    query: ClassQuery,
    most_bytes: int = MOST_BYTES,
) -> Tensor:
    """Labels of a picture: windows are upsampled and averaged, their mean is resized and compared.

    The same as the steps one by one, up to rounding (tests/benchmarks/test_spreading.py).

    Args:
        segmenter: made the scores; says whether they follow the edges of the image.
        patches: (N, K, gh, gw) scores of the patches of the N windows of `layout`.
        pixels: (3, h, w) RGB in [0, 255], at the size that is scored.
        layout: sizes and windows.
        query: what was looked for.
        most_bytes: for upsampled scores; less than one row or one class at a time is impossible.

    Returns:
        (H, W) int64; the first label wins a tie.
    """
    final = isinstance(segmenter, Finalising)
    if segmenter.follows_edges or (final and not _pixelwise(segmenter)):
        parts = _scores_by_class(segmenter, patches, pixels, layout, most_bytes)
        if final:
            scores = torch.cat(list(parts))
            return final_scores(segmenter, scores, pixels, query).max(dim=0).indices
        return _with_background(*_best_of(parts), query, patches.shape[1])
    down = len(layout.protocol.starts(layout.scored_hw[0]))
    grid = patches.unflatten(0, (down, -1)).permute(2, 0, 3, 1, 4)  # (K, down, gh, across, gw)
    rows, columns = _matrices(segmenter, patches, layout)
    grid = grid.flatten(3).flatten(1, 2)  # (K, down * gh, across * gw)
    if len(grid) > _MANY and grid.device.type == "cpu" and not final:
        return _labels_by_blocks(grid, rows, columns, query)
    wide = grid @ columns.T  # (K, down * gh, W)
    return _labels_by_rows(segmenter, wide, rows, pixels, query, most_bytes)


def resized_labels(
    segmenter: Segmenter,
    scores: Tensor,
    pixels: Tensor,
    size_hw: tuple[int, int],
    query: ClassQuery,
    most_bytes: int,
) -> Tensor:
    """Labels from mean scores: resized and compared, some classes or some rows at a time.

    Args:
        segmenter: made the scores; finalises them if it is `Finalising`.
        scores: (K, h, w).
        pixels: (3, h, w) RGB in [0, 255].
        size_hw: of the labels.
        query: what was looked for.
        most_bytes: for resized scores.
    """
    if not isinstance(segmenter, Finalising):
        step = max(most_bytes // (4 * size_hw[0] * size_hw[1]), 1)
        return _best_of(resize_scores(part, size_hw) for part in scores.split(step))[1]
    if not segmenter.pixelwise:
        scores = resize_scores(scores, size_hw)
        return final_scores(segmenter, scores, pixels, query).max(dim=0).indices
    sides = zip(scores.shape[-2:], size_hw, strict=True)
    rows, columns = (_resizing_matrix(torch.eye(old), new).T.to(scores) for old, new in sides)
    return _labels_by_rows(segmenter, scores @ columns.T, rows, pixels, query, most_bytes)


def spreading_matrix(
    original: int,
    scored: int,
    window: int,
    starts: Sequence[int],
    upsampled: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """What one axis of all windows' patches contributes to each pixel of the original.

    Upsampling, the mean over windows and resizing are linear and separable:
    together they are one matrix per axis, made by doing them to unit vectors.

    Args:
        original, scored, window: lengths in pixels.
        starts: first pixel of every window along the axis.
        upsampled: (cells, window) what each patch of a window gives to each of its pixels.
        weights: (window,) how much each of these counts where windows overlap; None: alike.

    Returns:
        (original, len(starts) * cells); every row sums to one.
    """
    mean = torch.zeros(len(starts), len(upsampled), scored)
    hits = torch.zeros(scored)
    for index, start in enumerate(starts):
        mean[index, :, start : start + window] = (
            upsampled if weights is None else upsampled * weights
        )
        hits[start : start + window] += 1 if weights is None else weights
    return _resizing_matrix((mean / hits).flatten(0, 1), original).T


def _resizing_matrix(signals: Tensor, length: int) -> Tensor:
    """Signals (N, n) at another length, (N, length): bilinear, corners not aligned."""
    if signals.shape[1] == length:
        return signals
    return F.interpolate(signals[None], size=length, mode="linear", align_corners=False)[0]


def _pixelwise(segmenter: object) -> bool:
    return isinstance(segmenter, Finalising) and segmenter.pixelwise


def _labels_by_rows(
    segmenter: object,
    wide: Tensor,
    rows: Tensor,
    pixels: Tensor,
    query: ClassQuery,
    most_bytes: int,
) -> Tensor:
    """Labels of scores (K, a, W) that rows (H, a) spread: all classes of some rows at a time."""
    classes, height, width = wide.shape[0], len(rows), wide.shape[2]
    if wide.device.type == "cpu":
        most_bytes = min(most_bytes, _CACHED_BYTES)
    finalising = isinstance(segmenter, Finalising)
    seen = resize_scores(pixels.float(), (height, width)) if finalising else pixels
    labels = torch.empty(height, width, dtype=torch.int64, device=wide.device)
    step = max(most_bytes // (4 * classes * width), 1)
    for top in range(0, height, step):
        scores = torch.matmul(rows[top : top + step], wide)
        if isinstance(segmenter, Finalising):
            final = segmenter.finalise(scores, seen[:, top : top + step], query)
            labels[top : top + step] = final.max(dim=0).indices
        else:
            labels[top : top + step] = _with_background(*scores.max(dim=0), query, classes)
        del scores  # or two strips are held at once
    return labels


def _labels_by_blocks(grid: Tensor, rows: Tensor, columns: Tensor, query: ClassQuery) -> Tensor:
    """Labels of scores (K, a, b) that rows (H, a) and columns (W, b) spread, K being large.

    A pixel's score is a mean of those of the cells around it. So a class that is below another one
    in all cells around a block of pixels is nowhere the best there, and most are not spread at all.
    """
    by_cell = np.ascontiguousarray(grid.permute(1, 2, 0).numpy())  # (a, b, K)
    rounding = -1e-5 * float(grid.abs().max())
    labels = torch.empty(len(rows), len(columns), dtype=torch.int64)
    sides = [_near(part.numpy()) for part in columns.split(_BLOCK)]
    for part, strip in zip(rows.split(_BLOCK), labels.split(_BLOCK), strict=True):
        places, down = _near(part.numpy())
        band = by_cell[places]
        for (places, across), block in zip(sides, strip.split(_BLOCK, dim=1), strict=True):
            cells = band[:, places].reshape(-1, len(grid))
            ahead = cells - cells[:, [cells.sum(axis=0).argmax()]]
            able = np.flatnonzero(~(ahead.max(axis=0) < rounding))  # those that are nan, too
            weights = np.einsum("ha,wb->hwab", down, across).reshape(block.numel(), -1)
            scores = weights @ cells[:, able]  # (h * w, k)
            found = scores.argmax(axis=1)  # several times as fast as PyTorch's
            best = torch.from_numpy(scores[np.arange(len(scores)), found])
            known = torch.from_numpy(able[found])
            block.copy_(_with_background(best, known, query, len(grid)).view_as(block))
    return labels


def _near(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells that a few pixels get anything from, and what these give to each."""
    places = np.flatnonzero(matrix.any(axis=0))
    return places, matrix[:, places]


def _matrices(segmenter: PatchScoring, patches: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The spreading matrices of rows and columns, where the patches are."""
    lengths = zip(
        layout.original_hw, layout.scored_hw, layout.window_hw, patches.shape[-2:], strict=True
    )
    # A weak reference is the same key for the same segmenter, and does not keep it in memory.
    place = (weakref.ref(segmenter), layout.protocol, patches.device, patches.dtype)
    rows, columns = (_matrix_of_axis(*place, *of_axis) for of_axis in lengths)
    return rows, columns


@lru_cache(maxsize=64)
def _matrix_of_axis(
    reference: weakref.ref[PatchScoring],
    protocol: Protocol,
    device: torch.device,
    dtype: torch.dtype,
    original: int,
    scored: int,
    window: int,
    cells: int,
) -> Tensor:
    """`spreading_matrix` of an axis, which pictures of one size share."""
    segmenter = reference()
    assert segmenter is not None
    upsampled, starts = _upsampling(segmenter, cells, window), protocol.starts(scored)
    weights = stitching(protocol, window)
    matrix = spreading_matrix(original, scored, window, starts, upsampled, weights)
    return matrix.to(device, dtype)


def _upsampling(segmenter: PatchScoring, cells: int, window: int) -> Tensor:
    """(cells, window): unit vectors, spread by the segmenter itself in a window of one column."""
    units = torch.eye(cells).view(1, cells, cells, 1)
    return segmenter.pixel_scores(units, torch.zeros(1, 3, window, 1))[0, :, :, 0]


def _scores_by_class(
    segmenter: PatchScoring, patches: Tensor, pixels: Tensor, layout: Layout, most_bytes: int
) -> Iterator[Tensor]:
    """Scores (c, H, W) of some classes at a time, one window after the other."""
    (scored, original), (high, wide) = (layout.scored_hw, layout.original_hw), layout.window_hw
    per_class = scored[0] * scored[1] + max(original[0] * original[1], _COPIES * high * wide)
    for part in patches.split(max(most_bytes // (4 * per_class), 1), dim=1):
        mean = WindowMean(scored, layout.protocol)
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


def _with_background(best: Tensor, labels: Tensor, query: ClassQuery, classes: int) -> Tensor:
    """Labels of the best of so many scored classes, with the background's threshold if any."""
    if query.background is None:
        return labels
    first = len(query.names) - classes  # 0 where the background has words of its own
    return torch.where(best > query.background, labels + first, 0)
