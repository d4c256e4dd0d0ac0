"""Label maps of many images: windows in batches, one backbone pass for several benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from talk2dino.benchmarks.table import Protocol
from talk2dino.inference import ClassQuery, resize_scores, score_labels, window_starts
from talk2dino.segmenter import FeatureSharing, Segmenter

_MOST_VALUES = 1 << 26
"""Upsampled scores held at once: 256 MiB of float32, however many classes and pixels there are."""


@dataclass(frozen=True, eq=False)
class Task:
    """A segmenter with the classes it looks for."""

    segmenter: Segmenter
    """Any method."""
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
    """Handed back with the labels."""


@dataclass(frozen=True)
class Batching:
    """How windows are put together."""

    size: int = 8
    """Windows per pass of the backbone."""
    across_images: bool = False
    """Fill batches with windows of the next images: faster on a GPU. Without it, a result depends
    on nothing but its image, to the last bit."""


@dataclass(eq=False)
class _Progress:
    """The scores of one picture so far."""

    picture: Picture
    pixels: Tensor
    corners: list[tuple[int, int]]
    window_hw: tuple[int, int]
    hits: Tensor
    totals: list[Tensor | None] = field(default_factory=list)
    scored: int = 0

    @property
    def complete(self) -> bool:
        return self.scored == len(self.corners)


@torch.inference_mode()
def label_pictures(
    pictures: Iterable[Picture], protocol: Protocol, batching: Batching, device: torch.device
) -> Iterator[tuple[Picture, list[Tensor]]]:
    """Segment pictures with sliding windows, in order.

    Yields:
        each picture with one label map (H, W) int64 per task, at the original size; with a
        background threshold, label 0 is the background.
    """
    waiting: list[_Progress] = []
    queue: list[tuple[_Progress, tuple[int, int]]] = []
    for picture in pictures:
        progress = _start(picture, protocol, device)
        if queue and not _fits(queue[-1][0], progress):
            _score(queue)
            queue = []
        waiting.append(progress)
        queue += [(progress, corner) for corner in progress.corners]
        while len(queue) >= batching.size or (queue and not batching.across_images):
            _score(queue[: batching.size])
            queue = queue[batching.size :]
        while waiting and waiting[0].complete:
            yield _finish(waiting.pop(0))
    while queue:
        _score(queue[: batching.size])
        queue = queue[batching.size :]
    for progress in waiting:
        yield _finish(progress)


def _start(picture: Picture, protocol: Protocol, device: torch.device) -> _Progress:
    height, width = picture.image.shape[-2:]
    return _Progress(
        picture,
        picture.image.to(device, torch.float32),
        [
            (top, left)
            for top in window_starts(height, protocol.window, protocol.stride)
            for left in window_starts(width, protocol.window, protocol.stride)
        ],
        (min(protocol.window, height), min(protocol.window, width)),
        torch.zeros(height, width, device=device),
        [None] * len(picture.tasks),
    )


def _fits(one: _Progress, other: _Progress) -> bool:
    """Whether their windows can share a batch."""
    return one.window_hw == other.window_hw and list(one.picture.tasks) == list(other.picture.tasks)


def _score(batch: list[tuple[_Progress, tuple[int, int]]]) -> None:
    """Score windows of one size and add them to their pictures."""
    first = batch[0][0]
    high, wide = first.window_hw
    windows = torch.stack(
        [item.pixels[:, top : top + high, left : left + wide] for item, (top, left) in batch]
    )
    for index, scores in enumerate(_task_scores(first.picture.tasks, windows)):
        for (item, (top, left)), window in zip(batch, scores, strict=True):
            total = item.totals[index]
            if total is None:
                total = scores.new_zeros(scores.shape[1], *item.hits.shape)
                item.totals[index] = total
            total[:, top : top + high, left : left + wide] += window
    for item, (top, left) in batch:
        item.hits[top : top + high, left : left + wide] += 1
        item.scored += 1


def _task_scores(tasks: Sequence[Task], windows: Tensor) -> Iterator[Tensor]:
    """Scores (B, C, h, w) per task; features are computed once for tasks that share them."""
    owner: Segmenter | None = None
    features: Any = None
    for task in tasks:
        segmenter, query = task.segmenter, task.query
        if not isinstance(segmenter, FeatureSharing):
            yield segmenter.window_scores(windows, query.classes, query.background)
            continue
        if owner is None or not segmenter.shares_features(owner):
            owner, features = segmenter, segmenter.patch_features(windows)
        yield segmenter.score_features(features, windows, query.classes, query.background)


def _finish(progress: _Progress) -> tuple[Picture, list[Tensor]]:
    maps = []
    for index, total in enumerate(progress.totals):
        assert total is not None  # every picture has a window
        progress.totals[index] = None
        maps.append(_labels(total.div_(progress.hits), progress.picture.size_hw))
    return progress.picture, maps


def _labels(scores: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """`score_labels(resize_scores(...))`, some classes at a time where all would take too much."""
    height, width = size_hw
    step = max(_MOST_VALUES // (height * width), 1)
    if step >= scores.shape[0]:
        return score_labels(resize_scores(scores, size_hw))
    best, labels = resize_scores(scores[:step], size_hw).max(dim=0)
    for start in range(step, scores.shape[0], step):
        values, found = resize_scores(scores[start : start + step], size_hw).max(dim=0)
        better = values > best  # the first one wins a tie
        labels = torch.where(better, found + start, labels)
        best = torch.where(better, values, best)
    return labels
