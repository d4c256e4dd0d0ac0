"""Label maps of many images: windows in batches, one backbone pass for several benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from talk2dino.benchmarks.spreading import MOST_BYTES, Layout, resized_labels, spread_labels
from talk2dino.inference import WindowMean
from talk2dino.segmenter import (
    ClassQuery,
    FeatureSharing,
    PatchScoring,
    Segmenter,
    UniformWindows,
    join_features,
    take_features,
)
from talk2dino.sizes import Protocol


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


@dataclass(eq=False)
class _Progress:
    """What is known of one picture so far."""

    picture: Picture
    pixels: Tensor
    layout: Layout
    corners: list[tuple[int, int]]
    found: list[list[Any] | WindowMean] = field(default_factory=list)
    """Per task, every window's patch scores, or its features if all windows are scored together,
    or the mean of all windows' pixel scores."""
    scored: int = 0

    @property
    def complete(self) -> bool:
        return self.scored == len(self.corners)


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
            yield _finish(waiting.pop(0), batching)
    while queue:
        _score(queue[: batching.size])
        queue = queue[batching.size :]
    while waiting:
        yield _finish(waiting.pop(0), batching)


def _start(picture: Picture, protocol: Protocol, device: torch.device) -> _Progress:
    height, width = picture.image.shape[-2:]
    layout = Layout(picture.size_hw, (height, width), protocol)
    found: list[list[Any] | WindowMean] = [
        [] if isinstance(task.segmenter, PatchScoring) else WindowMean((height, width), protocol)
        for task in picture.tasks
    ]
    # Without waiting: the readers have pinned the pixels if the device is a GPU.
    pixels = picture.image.to(device, non_blocking=True).to(torch.float32)
    return _Progress(picture, pixels, layout, layout.corners, found)


def _fits(one: _Progress, other: _Progress) -> bool:
    """Whether their windows can share a batch."""
    same_size = one.layout.window_hw == other.layout.window_hw
    return same_size and list(one.picture.tasks) == list(other.picture.tasks)


def _score(batch: list[tuple[_Progress, tuple[int, int]]]) -> None:
    """Score windows of one size and add them to their pictures."""
    first = batch[0][0]
    high, wide = first.layout.window_hw
    windows = torch.stack(
        [item.pixels[:, top : top + high, left : left + wide] for item, (top, left) in batch]
    )
    uniform: list[bool] | None = None
    for index, (scores, alike) in enumerate(_task_scores(first.picture.tasks, windows)):
        uniform = alike  # of all tasks: they are of one model
        for (item, corner), window in zip(batch, scores, strict=True):
            found = item.found[index]
            if isinstance(found, WindowMean):
                found.add(corner, window)
            else:
                found.append(window)
    for place, (item, _) in enumerate(batch):
        item.scored += 1
        if uniform is not None:
            item.picture.uniform = (item.picture.uniform or 0) + uniform[place]


def _task_scores(
    tasks: Sequence[Task], windows: Tensor
) -> Iterator[tuple[Sequence[Any] | Tensor, list[bool] | None]]:
    """Per task what `_Progress.found` holds of every window, and which windows are uniform.

    Features are computed once.
    """
    owner: Segmenter | None = None
    features: Any = None
    for task in tasks:
        segmenter, query = task.segmenter, task.query
        if isinstance(segmenter, FeatureSharing) and (
            owner is None or not segmenter.shares_features(owner)
        ):
            owner, features = segmenter, segmenter.patch_features(windows)
        uniform = None
        if isinstance(segmenter, UniformWindows):
            uniform = segmenter.uniform_windows(features)
        if isinstance(segmenter, PatchScoring) and segmenter.joins_windows:
            yield [take_features(features, index) for index in range(len(windows))], uniform
        elif isinstance(segmenter, PatchScoring):
            yield segmenter.patch_scores(features, query), uniform
        elif isinstance(segmenter, FeatureSharing):
            yield segmenter.score_features(features, windows, query), uniform
        else:
            yield segmenter.window_scores(windows, query), uniform


def _finish(progress: _Progress, batching: Batching) -> tuple[Picture, list[Tensor]]:
    """Labels of a picture whose windows are all scored."""
    picture, layout, budget = progress.picture, progress.layout, batching.score_bytes
    maps = []
    for task, found in zip(picture.tasks, progress.found, strict=True):
        segmenter, query, pixels = task.segmenter, task.query, progress.pixels
        if isinstance(found, WindowMean):
            size_hw = picture.size_hw
            maps.append(resized_labels(segmenter, found.scores(), pixels, size_hw, query, budget))
            continue
        assert isinstance(segmenter, PatchScoring)  # or it would have no list
        if segmenter.joins_windows:
            patches = segmenter.patch_scores(join_features(found), query)
        else:
            patches = torch.stack(found)
        maps.append(spread_labels(segmenter, patches, pixels, layout, query, budget))
    return picture, maps
