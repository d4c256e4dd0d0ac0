"""From label maps to numbers: pixels of pairs of classes, IoU with its interval, and borders.

Boundary IoU is that of Cheng et al. (CVPR 2021), per class of label maps and summed over a set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from talk2dino.benchmarks.data.labels import ignored_label
from talk2dino.devices import Fetched
from talk2dino.sizes import Protocol

PAIR = np.dtype([("true", "<u4"), ("predicted", "<u4"), ("pixels", "<u4")])
"""True label, predicted label, and how many pixels have them."""
MOST_CONFUSED = 5_793
"""Classes of which a table of all pairs is kept: 256 MiB."""
_FEW = 1 << 16  # pairs of classes that are counted in one bin each, also of a small picture
_FEW_ON_GPU = 1 << 20  # there, finding those that occur means to wait
_SHARE = 0.02  # how far a boundary reaches into its mask, of the diagonal of the image
_OUTSIDE = 65535  # stands for pixels outside the image and those that do not count
_WEIGHTS = 1 << 22  # how often each image is in each draw, so many numbers at once: 32 MiB


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """The pixels of one image by their true and predicted class; tables hold what occurs."""

    pairs: np.ndarray
    """(n,) PAIR."""
    uniform: int | None = None
    """Windows in which all patches are alike; None of a method that does not tell."""
    boundary: np.ndarray | None = None
    """(n,) PAIR of pixels at boundaries, the number of classes standing for those at none ..."""
    seams: np.ndarray | None = None
    """... and (2,) neighbours across windows' borders with equal and with unequal labels; both only
    where borders are scored, see `at_borders`."""


def begin_count(
    predicted: Sequence[Tensor],
    targets: Sequence[Tensor],
    num_classes: Sequence[int],
    uniform: int | None = None,
) -> Callable[[], list[ImageCounts]]:
    """Compare the label maps of an image with their ground truths, where these are not ignored.

    Counted where the label maps are; the counts of all of them are fetched in one piece. A GPU is
    not waited for. Memory follows the pixels, not the square of the classes.

    Args:
        predicted: (H, W) label maps, one per benchmark.
        targets: (H, W) ground truths, likewise; see `labels.ignored_label`.
        num_classes: of each benchmark.
        uniform: windows of the image in which all patches are alike, if that is known.

    Returns:
        what waits for the counts and returns them, one per benchmark. It raises ValueError for
        labels that are no classes.

    Raises:
        ValueError: they differ in size.
    """
    counted: list[Tensor] = []
    for maps, target, classes in zip(predicted, targets, num_classes, strict=True):
        numbers = _pair_numbers(maps, target.to(maps.device, non_blocking=True), classes)
        if classes**2 <= max(len(numbers), _FEW_ON_GPU if numbers.device.type == "cuda" else _FEW):
            counted += [numbers[:0], _bins(numbers, classes**2 + 2)]
        else:
            counted += numbers.unique(return_counts=True)
    fetched = Fetched(counted)

    def finish() -> list[ImageCounts]:
        found = [part.numpy() for part in fetched.read()]
        return [
            ImageCounts(_pairs(numbers, counts, classes), uniform)
            for numbers, counts, classes in zip(found[::2], found[1::2], num_classes, strict=True)
        ]

    return finish


def _pair_numbers(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """A number per pixel, (N,) int64; nothing leaves the device.

    true * C + predicted; C * C where the pixel is ignored, C * C + 1 where a label is no class.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(predicted.shape)} and ground truth {tuple(target.shape)} differ "
            "in size. Resize the prediction to the original image first."
        )
    # One bin per pair and two more, instead of picking out the pixels that count: twice as fast.
    truth, guess = target.long(), predicted.long()
    pairs = truth * num_classes + guess
    wrong = (truth < 0) | (truth >= num_classes) | (guess < 0) | (guess >= num_classes)
    pairs.masked_fill_(wrong, num_classes**2 + 1)
    pairs.masked_fill_(truth == ignored_label(num_classes), num_classes**2)
    return pairs.flatten()


def _bins(numbers: Tensor, count: int) -> Tensor:
    """How often each number below `count` occurs, (count,) int64."""
    if numbers.device.type != "cuda":
        return numbers.bincount(minlength=count)
    # For `bincount` the largest number has to be known first, and the GPU to be waited for.
    return numbers.new_zeros(count).scatter_add_(0, numbers, torch.ones_like(numbers))


def _pairs(numbers: np.ndarray, counts: np.ndarray, num_classes: int) -> np.ndarray:
    """(n,) PAIR of `_pair_numbers` that occur so often; without any, of all numbers."""
    numbers = numbers if len(numbers) else np.arange(len(counts))
    if counts[numbers == num_classes**2 + 1].any():
        raise ValueError(f"ground truth or prediction holds labels outside 0 to {num_classes - 1}")
    occurring = (counts > 0) & (numbers < num_classes**2)
    pairs = np.empty(int(occurring.sum()), PAIR)
    pairs["true"], pairs["predicted"] = np.divmod(numbers[occurring], num_classes)
    pairs["pixels"] = counts[occurring]
    return pairs


def stacked_areas(images: Sequence[np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """`intersect`, `union`, `pred_area`, `label_area` (N, C) and `confusion` (C, C), int64.

    The last one only of at most MOST_CONFUSED classes.

    Args:
        images: per image its table of PAIR.
        num_classes: C.
    """
    names = ("intersect", "pred_area", "label_area")
    found = {name: np.zeros((len(images), num_classes), np.int64) for name in names}
    confused = num_classes <= MOST_CONFUSED
    confusion = np.zeros((num_classes, num_classes) if confused else (0, 0), np.int64)
    for row, pairs in enumerate(images):
        true, predicted, pixels = (pairs[name] for name in ("true", "predicted", "pixels"))
        same = true == predicted
        found["intersect"][row, true[same]] = pixels[same]  # no pair occurs twice in an image
        np.add.at(found["pred_area"][row], predicted, pixels)
        np.add.at(found["label_area"][row], true, pixels)
        if confused:
            confusion[true, predicted] += pixels
    found["union"] = found["pred_area"] + found["label_area"] - found["intersect"]
    return found | {"confusion": confusion} if confused else found


def area_scores(areas: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Metrics of all images, as float64 fractions in [0, 1]; their means leave nan out.

    Args:
        areas: their `stacked_areas`.

    Returns:
        (C,) IoU, nan for a class that is nowhere; (C,) share of a class's pixels that were found,
        nan where it has none; and () share of all counted pixels that are right.
    """
    names = ("intersect", "label_area", "pred_area")
    hits, true, predicted = (torch.from_numpy(areas[name].sum(axis=0)).double() for name in names)
    return hits / (true + predicted - hits), hits / true, hits.sum() / true.sum()


def percent(value: float | Tensor) -> float | None:
    """A fraction as results hold it; None for nan."""
    return None if math.isnan(value) else round(100 * float(value), 4)


def resampled_mious(areas: Sequence[tuple[np.ndarray, np.ndarray]], draws: int) -> np.ndarray:
    """mIoU of several runs on images that are drawn again, with replacement.

    Args:
        areas: per run, intersections and unions (N, C) in pixels, of the same N images.
        draws: so many lists of N images, each the same for all runs.

    Returns:
        (draws, runs) fractions, nan where no class has a pixel. How often an image is in a draw is
        an integer and so are the areas, so that sums are exact; equal inputs give equal numbers.
    """
    generator = np.random.default_rng(0)
    images, classes = areas[0][0].shape
    numbers = [tuple(matrix.astype(np.float64) for matrix in pair) for pair in areas]
    mious = np.full((draws, len(areas)), np.nan)
    step = max(_WEIGHTS // max(images, classes, 1), 1)
    for start in range(0, draws, step):
        found = mious[start : start + step]
        weights = generator.multinomial(images, np.full(images, 1 / images), size=len(found))
        often = weights.astype(np.float64)
        for (intersect, union), means in zip(numbers, found.T, strict=True):
            unions = often @ union
            iou = np.divide(often @ intersect, unions, out=np.zeros_like(unions), where=unions > 0)
            occurring = (unions > 0).sum(axis=1)
            np.divide(iou.sum(axis=1), occurring, out=means, where=occurring > 0)
    return mious


def interval_of(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentiles between which a share of the values lies; nan if there is none."""
    values = values[np.isfinite(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def at_borders(
    regions: ImageCounts, predicted: Tensor, target: Tensor, num_classes: int, protocol: Protocol
) -> ImageCounts:
    """The counts of an image together with those at its borders.

    Args:
        regions: of `begin_count`.
        predicted, target: (H, W) label map and ground truth, as counted there.
        num_classes: C.
        protocol: of the windows.
    """
    guess, truth = (maps.cpu().numpy().astype(np.uint16) for maps in (predicted, target))
    uncounted = truth == ignored_label(num_classes)
    guess[uncounted] = truth[uncounted] = _OUTSIDE
    maps = []
    for labels in (guess, truth):
        shown = np.where(boundary_pixels(labels), labels, num_classes).astype(np.int64)
        shown[uncounted] = ignored_label(num_classes + 1)
        maps.append(torch.from_numpy(shown))
    (boundary,) = begin_count(maps[:1], maps[1:], [num_classes + 1])()
    seams = np.array(seam_pairs(guess, truth, protocol))
    return replace(regions, boundary=boundary.pairs, seams=seams)


def boundary_pixels(labels: np.ndarray) -> np.ndarray:
    """Where each class's mask is lost to its erosion, for all classes at once.

    Args:
        labels: (H, W) uint16; 65535 belongs to no class.

    Returns:
        (H, W) bool: whether within d = max(1, round(0.02 * diagonal)) steps of a 3x3 square lies a
        pixel of another label, or the outside of the image.
    """
    distance = max(1, round(_SHARE * float(np.hypot(*labels.shape))))
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    highest = cv2.dilate(labels, square, borderType=cv2.BORDER_CONSTANT, borderValue=_OUTSIDE)
    return highest != cv2.erode(labels, square)


def seam_pairs(predicted: np.ndarray, target: np.ndarray, protocol: Protocol) -> tuple[int, int]:
    """Neighbouring pixels on two sides of a window's border whose ground truth is the same.

    Args:
        predicted, target: (H, W) uint16; pixels whose target is 65535 do not count.
        protocol: where the windows are. Borders between pixels of the resized image are taken at
            the nearest ones of the image itself.

    Returns:
        how many pairs were given the same label, and how many were not.
    """
    scored = protocol.scored_size(*target.shape)
    counts = np.zeros(2, np.int64)
    for axis, window in enumerate(protocol.window_size(*scored)):
        length, size = scored[axis], target.shape[axis]
        starts = np.array(protocol.starts(length))
        ends = np.unique([*starts, *(starts + window)])
        places = np.unique(np.round(ends[(ends > 0) & (ends < length)] * size / length).astype(int))
        places = places[(places > 0) & (places < size)]
        truth, other = (np.take(target, places - step, axis) for step in (0, 1))
        same = (truth == other) & (truth != _OUTSIDE)
        guess, other = (np.take(predicted, places - step, axis)[same] for step in (0, 1))
        differing = int((guess != other).sum())
        counts += (len(guess) - differing, differing)
    return int(counts[0]), int(counts[1])


def border_scores(
    images: Sequence[ImageCounts], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a result says of borders, in percent; None where there is none.

    Args:
        images: all of a set, of `at_borders`.
        names: of the C classes.

    Returns:
        its fields; and `boundary_intersect` and `boundary_union` (N, C), pixels per image.
    """
    boundaries = [image.boundary for image in images if image.boundary is not None]
    areas = stacked_areas(boundaries, len(names) + 1)
    areas = {name: matrix[:, : len(names)] for name, matrix in areas.items()}
    iou, _, _ = area_scores(areas)
    pairs = [image.seams for image in images if image.seams is not None]
    _, differing = seams = np.sum(pairs, axis=0).tolist()
    fields = {
        "boundary_mIoU": percent(iou.nanmean()),
        "per_class_boundary_iou": dict(zip(names, map(percent, iou), strict=True)),
        "seam_error": percent(differing / sum(seams)) if sum(seams) else None,
        "seam_pairs": sum(seams),
    }
    return fields, {f"boundary_{name}": areas[name] for name in ("intersect", "union")}
