"""From images to labels with any segmenter: whole images, sliding windows, resizing, argmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class WindowScorer(Protocol):
    """The part of a segmenter that is needed once the classes are embedded."""

    def window_scores(self, windows: Tensor, classes: Tensor, background: float | None) -> Tensor:
        """(B, 3, h, w) RGB float in [0, 255] to (B, C, h, w), or C+1 with background first."""


@dataclass(frozen=True)
class ClassQuery:
    """What is looked for in an image."""

    classes: Tensor
    """(C, D) embeddings from the segmenter that scores the windows."""
    background: float | None = None
    """Threshold of the background channel, or None for no such channel."""


@dataclass(frozen=True)
class SlidingWindows:
    """How a large image is covered; the defaults are the benchmarks' protocol."""

    size: int = 448
    """Side of a window in pixels; a shorter side of the image is used whole."""
    stride: int = 224
    """Distance between neighbouring windows in pixels; the last one is shifted back inside."""
    batch_size: int = 8
    """Windows scored at once."""

    def __post_init__(self) -> None:
        if min(self.size, self.stride, self.batch_size) < 1:
            raise ValueError(f"size, stride and batch_size must be positive, found {self}.")
        if self.stride > self.size:
            raise ValueError(
                f"a stride of {self.stride} leaves gaps between windows of {self.size} pixels."
            )


@torch.inference_mode()
def whole_image_scores(segmenter: WindowScorer, image: Tensor, query: ClassQuery) -> Tensor:
    """Score an image as one window.

    Args:
        image: (3, H, W) RGB in [0, 255], uint8 or float.

    Returns:
        (C, H, W), or (C+1, H, W) with the background first.
    """
    window = _as_windows(image, query)[None]
    return segmenter.window_scores(window, query.classes, query.background)[0]


@torch.inference_mode()
def sliding_window_scores(
    segmenter: WindowScorer,
    image: Tensor,
    query: ClassQuery,
    windows: SlidingWindows | None = None,
) -> Tensor:
    """Score overlapping windows and average them per pixel; shapes as `whole_image_scores`."""
    windows = windows or SlidingWindows()
    image = _as_windows(image, query)
    height, width = image.shape[-2:]
    high, wide = min(windows.size, height), min(windows.size, width)
    corners = window_corners(height, width, windows.size, windows.stride)
    mean = WindowMean((height, width))
    for start in range(0, len(corners), windows.batch_size):
        chunk = corners[start : start + windows.batch_size]
        crops = torch.stack([image[:, y : y + high, x : x + wide] for y, x in chunk])
        scores = segmenter.window_scores(crops, query.classes, query.background)
        for corner, window in zip(chunk, scores, strict=True):
            mean.add(corner, window)
    return mean.scores()


class BenchmarkWindows:
    """Scores whole pictures as benchmarks do: resized, in windows, and resized back.

    Args:
        segmenter: any method.
    """

    def __init__(self, segmenter: WindowScorer) -> None:
        self._segmenter = segmenter

    def window_scores(self, windows: Tensor, classes: Tensor, background: float | None) -> Tensor:
        """As `WindowScorer.window_scores`, for whole pictures in place of windows."""
        query = ClassQuery(classes, background)
        size_hw = (windows.shape[-2], windows.shape[-1])
        scores = [
            sliding_window_scores(self._segmenter, resize_for_benchmark(picture), query)
            for picture in windows
        ]
        return torch.stack([resize_scores(of_one, size_hw) for of_one in scores])


class WindowMean:
    """The mean per pixel of overlapping windows' scores.

    Args:
        size_hw: of the image that the windows are from.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self._size_hw = size_hw
        self._total: Tensor | None = None
        self._hits: Tensor | None = None

    def add(self, corner: tuple[int, int], scores: Tensor) -> None:
        """Add scores (C, h, w) of the window whose top left pixel is `corner`."""
        if self._total is None or self._hits is None:
            self._total = scores.new_zeros(scores.shape[0], *self._size_hw)
            self._hits = scores.new_zeros(self._size_hw)
        (top, left), (high, wide) = corner, scores.shape[-2:]
        self._total[:, top : top + high, left : left + wide] += scores
        self._hits[top : top + high, left : left + wide] += 1

    def scores(self) -> Tensor:
        """(C, *size_hw); to be asked once, when every window has been added."""
        if self._total is None or self._hits is None:
            raise RuntimeError("no window has been added yet.")
        total, self._total = self._total, None
        return total.div_(self._hits)


def window_corners(
    height: int, width: int, size: int = 448, stride: int = 224
) -> list[tuple[int, int]]:
    """Top left pixel (y, x) of every window, row by row."""
    lefts = window_starts(width, size, stride)
    return [(top, left) for top in window_starts(height, size, stride) for left in lefts]


def window_starts(length: int, size: int = 448, stride: int = 224) -> list[int]:
    """First pixel of every window along one side; the last window ends at the border."""
    count = max(length - size + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - size), 0) for index in range(count)]


def benchmark_size(height: int, width: int, short: int = 448, long: int = 2048) -> tuple[int, int]:
    """(height, width) at which benchmarks score an image: short side `short`, long side at most
    `long`, rounded as MMCV does."""
    scale = min(long / max(height, width), short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def scoring_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """(height, width) at which a picture is scored."""
    if max_side is None or max(height, width) <= max_side:
        return height, width
    scale = max_side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize_pixels(image_rgb: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 bilinearly with OpenCV, as MMSegmentation's pipelines do."""
    if image_rgb.shape[:2] == tuple(size_hw):
        return image_rgb
    return cv2.resize(image_rgb, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def resize_scores(scores: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize (C, h, w) scores bilinearly (align_corners false) to (C, *size_hw)."""
    if scores.shape[-2:] == tuple(size_hw):
        return scores
    return F.interpolate(scores[None], size_hw, mode="bilinear", align_corners=False)[0]


def resize_for_benchmark(picture: Tensor) -> Tensor:
    """A picture (3, H, W) RGB in [0, 255] at the size at which benchmarks score it, uint8."""
    pixels = picture.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    small = resize_pixels(np.ascontiguousarray(pixels), benchmark_size(*pixels.shape[:2]))
    return torch.from_numpy(small).permute(2, 0, 1).to(picture.device)


def score_labels(scores: Tensor) -> Tensor:
    """The best class per pixel: (C, H, W) scores to (H, W) int64; the first one wins a tie."""
    return scores.max(dim=0).indices  # as argmax, whose loop over classes is slow on a CPU


def _as_windows(image: Tensor, query: ClassQuery) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be (3, H, W) RGB, found {tuple(image.shape)}.")
    if query.classes.ndim != 2:
        raise ValueError(f"classes must be (C, D), found {tuple(query.classes.shape)}.")
    return image.to(query.classes.device, torch.float32)
