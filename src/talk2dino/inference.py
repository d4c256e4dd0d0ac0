"""From images to scores with any segmenter: sizes, windows, averaging, resizing, finalising."""

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.segmenter import (
    ClassQuery,
    Finalising,
    PatchScoring,
    Segmenter,
    join_features,
    with_background,
)
from talk2dino.sizes import Protocol


@torch.inference_mode()
def sliding_window_scores(
    segmenter: Segmenter,
    image: Tensor,
    query: ClassQuery,
    protocol: Protocol | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Score overlapping windows of an image at its own size and average them per pixel.

    Args:
        segmenter: any method.
        image: (3, H, W) RGB in [0, 255], uint8 or float.
        query: what is looked for.
        protocol: of which only window and stride are used; None for the benchmarks'.
        batch_size: windows scored at once.

    Returns:
        (K, H, W) as `Segmenter.window_scores`; see `final_scores`.
    """
    protocol = protocol or Protocol()
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be (3, H, W) RGB, found {tuple(image.shape)}.")
    image = image.to(query.rows.device, torch.float32)
    height, width = image.shape[-2:]
    high, wide = protocol.window_size(height, width)
    corners = protocol.corners(height, width)
    crops = [image[None, :, y : y + high, x : x + wide] for y, x in corners]
    batches = (torch.cat(crops[i : i + batch_size]) for i in range(0, len(crops), batch_size))
    mean = WindowMean((height, width), protocol)
    if isinstance(segmenter, PatchScoring) and segmenter.joins_windows:
        features = join_features([segmenter.patch_features(batch) for batch in batches])
        patches = segmenter.patch_scores(features, query).split(1)
        for corner, crop, window in zip(corners, crops, patches, strict=True):
            mean.add(corner, segmenter.pixel_scores(window, crop)[0])
        scores = mean.scores()
        return scores if isinstance(segmenter, Finalising) else with_background(scores, query)
    if len(crops) == 1:
        return segmenter.window_scores(crops[0], query)[0]
    windows = (window for batch in batches for window in segmenter.window_scores(batch, query))
    for corner, window in zip(corners, windows, strict=True):
        mean.add(corner, window)
    return mean.scores()


@torch.inference_mode()
def picture_scores(
    segmenter: Segmenter,
    image: Tensor,
    query: ClassQuery,
    protocol: Protocol | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Score a picture as a protocol says: resized, in windows, resized back, finalised.

    Args:
        segmenter: any method.
        image: (3, H, W) RGB in [0, 255], uint8 or float.
        query: what is looked for.
        protocol: sizes and windows; None for the benchmarks'.
        batch_size: windows scored at once.

    Returns:
        (C, H, W), one channel per name of the query; the best of them is the label.
    """
    protocol = protocol or Protocol()
    size_hw = (image.shape[-2], image.shape[-1])
    small = resize_picture(image, protocol.scored_size(*size_hw))
    scores = sliding_window_scores(segmenter, small, query, protocol, batch_size)
    return final_scores(segmenter, resize_scores(scores, size_hw), small, query)


def final_scores(segmenter: object, scores: Tensor, picture: Tensor, query: ClassQuery) -> Tensor:
    """Averaged scores (K, H, W) at the size of the labels to final ones (C, H, W).

    Args:
        segmenter: any method; most have nothing to finalise.
        scores: at the size of the labels.
        picture: (3, h, w) as it was scored.
        query: what was looked for.
    """
    if not isinstance(segmenter, Finalising):
        return scores
    seen = resize_scores(
        picture.to(scores.device, torch.float32), (scores.shape[-2], scores.shape[-1])
    )
    return segmenter.finalise(scores, seen, query)


class WindowMean:
    """The mean per pixel of overlapping windows' scores, weighted as a protocol says.

    Args:
        size_hw: of the image that the windows are from.
        protocol: None for the benchmarks'.
    """

    def __init__(self, size_hw: tuple[int, int], protocol: Protocol | None = None) -> None:
        self._size_hw = size_hw
        self._protocol = protocol or Protocol()
        self._total: Tensor | None = None
        self._hits: Tensor | None = None

    def add(self, corner: tuple[int, int], scores: Tensor) -> None:
        """Add scores (C, h, w) of the window whose top left pixel is `corner`."""
        if self._total is None or self._hits is None:
            self._total = scores.new_zeros(scores.shape[0], *self._size_hw)
            self._hits = scores.new_zeros(self._size_hw)
        (top, left), (high, wide) = corner, scores.shape[-2:]
        hits: float | Tensor = 1
        if self._protocol.stitch != "uniform":
            hits = _window_weights(self._protocol, high, wide, scores.device, scores.dtype)
            scores = scores * hits
        self._total[:, top : top + high, left : left + wide] += scores
        self._hits[top : top + high, left : left + wide] += hits

    def scores(self) -> Tensor:
        """(C, *size_hw); to be asked once, when every window has been added."""
        if self._total is None or self._hits is None:
            raise RuntimeError("no window has been added yet.")
        total, self._total = self._total, None
        return total.div_(self._hits)


@lru_cache(maxsize=16)
def _window_weights(
    protocol: Protocol, high: int, wide: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(high, wide): how much each pixel of a window counts where windows overlap."""
    rows, columns = stitching(protocol, high), stitching(protocol, wide)
    return torch.outer(rows, columns).to(device, dtype)


def stitching(protocol: Protocol, length: int) -> Tensor:
    """How much each pixel of a window's side counts where windows overlap, (length,).

    With `hann` a border's weight is not zero, as no other window may be there.
    """
    if protocol.stitch == "uniform":
        return torch.ones(length)
    places = (torch.arange(length) + 0.5) / length
    return 0.5 - 0.5 * torch.cos(2 * math.pi * places) + 1e-3


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


def resize_picture(picture: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A picture (3, H, W) RGB in [0, 255] at another size: uint8, as benchmarks are resized."""
    if picture.shape[-2:] == tuple(size_hw):
        return picture
    pixels = picture.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    small = resize_pixels(np.ascontiguousarray(pixels), size_hw)
    return torch.from_numpy(small).permute(2, 0, 1).to(picture.device)


def score_labels(scores: Tensor) -> Tensor:
    """The best class per pixel: (C, H, W) scores to (H, W) int64; the first one wins a tie."""
    return scores.max(dim=0).indices  # as argmax, whose loop over classes is slow on a CPU
