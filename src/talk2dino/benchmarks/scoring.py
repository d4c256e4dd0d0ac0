"""Label maps of many images: windows in batches, one backbone pass for several benchmarks.

From the patch scores of a picture's windows to its labels, all scores of all pixels are never held.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.inference import WindowMean, final_scores, resize_scores, stitching
from talk2dino.segmenter import (
    ClassQuery,
    FeatureSharing,
    Finalising,
    PatchScoring,
    Segmenter,
    UniformWindows,
    join_features,
    take_features,
)
from talk2dino.sizes import Protocol

MOST_BYTES = 1 << 28
"""Memory for the upsampled scores of a picture, unless one says otherwise: 256 MiB."""
_CACHED_BYTES = 1 << 23
"""On a CPU, scores are made and compared in parts of this size: 8 MiB was the fastest measured."""
_MANY = 256  # classes from which on most are left out block by block on a CPU
_BLOCK = 32  # pixels
_COPIES = 4  # of a window's scores while PAMR runs: given, padded, averaged and returned


@dataclass(frozen=True, eq=False)
class Task:
    """A segmenter with the classes it looks for."""

    segmenter: Segmenter
    query: ClassQuery
    """Embedded classes and threshold."""


@dataclass(eq=False)
class Picture:
    """One resized image and the tasks it is for."""

    image: Tensor
    """(3, h, w) uint8 RGB, at the size that is scored."""
    size_hw: tuple[int, int]
    """Of the original, at which labels are wanted."""
    tasks: Sequence[Task]
    """At least one."""
    payload: Any = None
    uniform: int | None = None
    """Windows in which the segmenters found nothing, once there are labels; None if they do not
    tell. See `UniformWindows`."""


@dataclass(frozen=True)
class Batching:
    """How windows are put together, and how much is held at once."""

    size: int = 8
    """Windows per pass of the backbone."""
    across_images: bool = False
    """Fill batches with windows of the next images: faster on a GPU. Without it, a result depends
    on nothing but its image, to the last bit."""
    score_bytes: int = MOST_BYTES
    """Memory for upsampled scores, of as many classes and pixels at a time as fit. A segmenter
    that is no `PatchScoring` gives all classes at once: with it, only resizing is held to this."""


class _Progress:
    """What is known of one picture so far.

    Args:
        picture: with at least one task.
        protocol: of the windows.
        device: where the models are.
    """

    def __init__(self, picture: Picture, protocol: Protocol, device: torch.device) -> None:
        self.picture, self.protocol = picture, protocol
        height, width = picture.image.shape[-2:]
        # Without waiting: the readers have pinned the pixels if the device is a GPU.
        self.pixels = picture.image.to(device, non_blocking=True).to(torch.float32)
        self.corners = protocol.corners(height, width)
        high, wide = protocol.window_size(height, width)
        self.windows = [self.pixels[:, y : y + high, x : x + wide] for y, x in self.corners]
        self.shared = high, wide, *picture.tasks
        """What must be the same of windows in one batch."""
        self.scored = 0
        self.found: list[list[Any] | WindowMean] = [
            []
            if isinstance(task.segmenter, PatchScoring)
            else WindowMean((height, width), protocol)
            for task in picture.tasks
        ]
        """Per task, every window's patch scores, or its features if all windows are scored
        together, or the mean of all windows' pixel scores."""

    def labels(self, most_bytes: int) -> list[Tensor]:
        """A label map per task, when all windows are scored."""
        maps = []
        for task, found in zip(self.picture.tasks, self.found, strict=True):
            segmenter, size_hw = task.segmenter, self.picture.size_hw
            labelling = Labelling(task, self.pixels, size_hw, self.protocol, most_bytes)
            if isinstance(found, WindowMean):
                maps.append(labelling.of_scores(found.scores()))
            elif isinstance(segmenter, PatchScoring) and segmenter.joins_windows:
                patches = segmenter.patch_scores(join_features(found), task.query)
                maps.append(labelling.of_patches(patches))
            else:
                maps.append(labelling.of_patches(torch.stack(found)))
        return maps


@torch.inference_mode()
def label_pictures(
    pictures: Iterable[Picture], protocol: Protocol, batching: Batching, device: torch.device
) -> Iterator[tuple[Picture, list[Tensor]]]:
    """Segment pictures with sliding windows, in order.

    The labels are those of the best of `inference.picture_scores`.

    Yields:
        each picture with one label map (H, W) int64 per task, at the original size; with a
        background threshold, label 0 is the background.
    """
    waiting: list[_Progress] = []

    def windows(several: Iterable[_Progress]) -> Iterator[tuple[_Progress, int]]:
        for progress in several:
            waiting.append(progress)
            yield from ((progress, number) for number in range(len(progress.windows)))

    begun = (_Progress(picture, protocol, device) for picture in pictures)
    groups: Iterable[Iterable[_Progress]] = ([progress] for progress in begun)
    if batching.across_images:
        groups = (group for _, group in groupby(begun, lambda progress: progress.shared))
    for group in groups:
        left = windows(group)
        while batch := list(islice(left, batching.size)):
            _score(batch)
            while waiting and waiting[0].scored == len(waiting[0].windows):
                yield waiting[0].picture, waiting.pop(0).labels(batching.score_bytes)


def _score(batch: Sequence[tuple[_Progress, int]]) -> None:
    """Score windows of one size and add them to their pictures; features are computed once."""
    windows = torch.stack([item.windows[number] for item, number in batch])
    owner: Segmenter | None = None
    features: Any = None
    uniform: list[bool] | None = None  # of all tasks: they are of one model
    for place, task in enumerate(batch[0][0].picture.tasks):
        segmenter, query = task.segmenter, task.query
        if isinstance(segmenter, FeatureSharing) and (
            owner is None or not segmenter.shares_features(owner)
        ):
            owner, features = segmenter, segmenter.patch_features(windows)
        if isinstance(segmenter, UniformWindows):
            uniform = segmenter.uniform_windows(features)
        scores: Sequence[Any] | Tensor
        if isinstance(segmenter, PatchScoring) and segmenter.joins_windows:
            scores = [take_features(features, index) for index in range(len(windows))]
        elif isinstance(segmenter, PatchScoring):
            scores = segmenter.patch_scores(features, query)
        elif isinstance(segmenter, FeatureSharing):
            scores = segmenter.score_features(features, windows, query)
        else:
            scores = segmenter.window_scores(windows, query)
        for (item, number), window in zip(batch, scores, strict=True):
            found = item.found[place]
            if isinstance(found, WindowMean):
                found.add(item.corners[number], window)
            else:
                found.append(window)
    for place, (item, _) in enumerate(batch):
        item.scored += 1
        if uniform is not None:
            item.picture.uniform = (item.picture.uniform or 0) + uniform[place]


@dataclass(frozen=True, eq=False)
class Labelling:
    """The labels of a picture from what its windows gave: (H, W) int64, the first one wins a tie.

    The same as the steps one by one, up to rounding (tests/benchmarks/test_scoring.py).
    """

    task: Task
    """Made the scores; its segmenter says whether they follow the edges of the image."""
    pixels: Tensor
    """(3, h, w) RGB in [0, 255], at the size that is scored."""
    size_hw: tuple[int, int]
    """Of the labels."""
    protocol: Protocol
    most_bytes: int = MOST_BYTES
    """For upsampled scores; less than one row or one class at a time is impossible."""

    def of_patches(self, patches: Tensor) -> Tensor:
        """From scores (N, K, gh, gw) of the patches of the N windows.

        Windows are upsampled and averaged, their mean is resized and compared.
        """
        segmenter, classes = self.task.segmenter, patches.shape[1]
        assert isinstance(segmenter, PatchScoring)
        if isinstance(segmenter, Finalising) and (
            segmenter.follows_edges or not segmenter.pixelwise
        ):
            return self._finalised(torch.cat(list(self._by_class(segmenter, patches))))
        if segmenter.follows_edges:
            return self._with_background(*_best_of(self._by_class(segmenter, patches)), classes)
        down = len(self.protocol.starts(self.pixels.shape[-2]))
        grid = patches.unflatten(0, (down, -1)).permute(2, 0, 3, 1, 4)  # (K, down, gh, across, gw)
        lengths = zip(self.size_hw, self.pixels.shape[-2:], patches.shape[-2:], strict=True)
        # A weak reference is the same key for the same segmenter, and does not keep it in memory.
        place = (weakref.ref(segmenter), self.protocol, patches.device, patches.dtype)
        rows, columns = (_matrix_of_axis(*place, *of_axis) for of_axis in lengths)
        grid = grid.flatten(3).flatten(1, 2)  # (K, down * gh, across * gw)
        on_cpu, final = grid.device.type == "cpu", isinstance(segmenter, Finalising)
        if classes > _MANY and on_cpu and not final:
            return self._by_blocks(grid, rows, columns)
        return self._by_rows(grid @ columns.T, rows)

    def of_scores(self, scores: Tensor) -> Tensor:
        """From mean scores (K, h, w), resized and compared some classes or rows at a time."""
        segmenter, (height, width) = self.task.segmenter, self.size_hw
        if not isinstance(segmenter, Finalising):
            step = max(self.most_bytes // (4 * height * width), 1)
            return _best_of(resize_scores(part, self.size_hw) for part in scores.split(step))[1]
        if not segmenter.pixelwise:
            return self._finalised(resize_scores(scores, self.size_hw))
        sides = zip(scores.shape[-2:], self.size_hw, strict=True)
        rows, columns = (_resizing_matrix(torch.eye(old), new).T.to(scores) for old, new in sides)
        return self._by_rows(scores @ columns.T, rows)

    def _finalised(self, scores: Tensor) -> Tensor:
        """Labels of averaged scores (K, H, W) of the whole picture."""
        task = self.task
        return final_scores(task.segmenter, scores, self.pixels, task.query).max(dim=0).indices

    def _by_rows(self, wide: Tensor, rows: Tensor) -> Tensor:
        """Labels of scores (K, a, W) that rows (H, a) spread: all classes, some rows at a time."""
        classes, height, width = wide.shape[0], len(rows), wide.shape[2]
        segmenter, most_bytes, seen = self.task.segmenter, self.most_bytes, self.pixels
        if wide.device.type == "cpu":
            most_bytes = min(most_bytes, _CACHED_BYTES)
        if isinstance(segmenter, Finalising):
            seen = resize_scores(seen.float(), (height, width))
        labels = torch.empty(height, width, dtype=torch.int64, device=wide.device)
        step = max(most_bytes // (4 * classes * width), 1)
        for top in range(0, height, step):
            scores = torch.matmul(rows[top : top + step], wide)
            if isinstance(segmenter, Finalising):
                final = segmenter.finalise(scores, seen[:, top : top + step], self.task.query)
                labels[top : top + step] = final.max(dim=0).indices
            else:
                labels[top : top + step] = self._with_background(*scores.max(dim=0), classes)
            del scores  # or two strips are held at once
        return labels

    def _by_blocks(self, grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Labels of scores (K, a, b) that rows (H, a) and columns (W, b) spread, K being large.

        A pixel's score is a mean of those of the cells around it. So a class that is below another
        one in all cells around a block of pixels is nowhere the best there, and most are not spread
        at all.
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
                block.copy_(self._with_background(best, known, len(grid)).view_as(block))
        return labels

    def _by_class(self, segmenter: PatchScoring, patches: Tensor) -> Iterator[Tensor]:
        """Scores (c, H, W) of some classes at a time, one window after the other."""
        height, width = self.pixels.shape[-2:]
        high, wide = self.protocol.window_size(height, width)
        pixels = height * width + max(self.size_hw[0] * self.size_hw[1], _COPIES * high * wide)
        for part in patches.split(max(self.most_bytes // (4 * pixels), 1), dim=1):
            mean = WindowMean((height, width), self.protocol)
            for (top, left), window in zip(self.protocol.corners(height, width), part, strict=True):
                crop = self.pixels[None, :, top : top + high, left : left + wide]
                mean.add((top, left), segmenter.pixel_scores(window[None], crop)[0])
            yield resize_scores(mean.scores(), self.size_hw)

    def _with_background(self, best: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Labels of the best of so many scored classes, with the background's threshold if any."""
        query = self.task.query
        if query.background is None:
            return labels
        first = len(query.names) - classes  # 0 where the background has words of its own
        return torch.where(best > query.background, labels + first, 0)


def spreading_matrix(original: int, scored: int, protocol: Protocol, upsampled: Tensor) -> Tensor:
    """What one axis of all windows' patches contributes to each pixel of the original.

    Upsampling, the mean over windows and resizing are linear and separable:
    together they are one matrix per axis, made by doing them to unit vectors.

    Args:
        original, scored: lengths in pixels.
        protocol: of the windows.
        upsampled: (cells, window) what each patch of a window gives to each of its pixels.

    Returns:
        (original, windows * cells); every row sums to one.
    """
    starts, window = protocol.starts(scored), upsampled.shape[1]
    weights = stitching(protocol, window)
    mean, hits = torch.zeros(len(starts), len(upsampled), scored), torch.zeros(scored)
    for of_window, start in zip(mean, starts, strict=True):
        of_window[:, start : start + window] = upsampled * weights
        hits[start : start + window] += weights
    return _resizing_matrix((mean / hits).flatten(0, 1), original).T


def _resizing_matrix(signals: Tensor, length: int) -> Tensor:
    """Signals (N, n) at another length, (N, length): bilinear, corners not aligned."""
    if signals.shape[1] == length:
        return signals
    return F.interpolate(signals[None], size=length, mode="linear", align_corners=False)[0]


def _near(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells that a few pixels get anything from, and what these give to each."""
    places = np.flatnonzero(matrix.any(axis=0))
    return places, matrix[:, places]


@lru_cache(maxsize=64)
def _matrix_of_axis(
    reference: weakref.ref[PatchScoring],
    protocol: Protocol,
    device: torch.device,
    dtype: torch.dtype,
    original: int,
    scored: int,
    cells: int,
) -> Tensor:
    """`spreading_matrix` of an axis, which pictures of one size share."""
    segmenter = reference()
    assert segmenter is not None
    # Unit vectors, spread by the segmenter itself in a window of one column.
    units, (window, _) = torch.eye(cells), protocol.window_size(scored, scored)
    column = torch.zeros(1, 3, window, 1)
    upsampled = segmenter.pixel_scores(units.view(1, cells, cells, 1), column)[0, :, :, 0]
    return spreading_matrix(original, scored, protocol, upsampled).to(device, dtype)


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
