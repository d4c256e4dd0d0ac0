"""How good segmentations are at borders: of classes (boundary IoU) and of windows (seam errors).

Boundary IoU is that of Cheng et al. (CVPR 2021), per class of label maps and summed over a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from talk2dino.benchmarks.counts import PAIR, ImageCounts, count_image, joined, stacked_areas
from talk2dino.benchmarks.metrics import area_scores, ignored_label, percent
from talk2dino.sizes import Protocol

SHARE = 0.02
"""How far a boundary reaches into its mask, of the diagonal of the image."""
_OUTSIDE = 65535
"""Stands for pixels outside the image and those that do not count; no class has this id."""


def boundary_pixels(labels: np.ndarray) -> np.ndarray:
    """Where each class's mask is lost to its erosion, for all classes at once.

    Args:
        labels: (H, W) uint16; 65535 belongs to no class.

    Returns:
        (H, W) bool: whether within d = max(1, round(0.02 * diagonal)) steps of a 3x3 square lies a
        pixel of another label, or the outside of the image.
    """
    distance = max(1, round(SHARE * float(np.hypot(*labels.shape))))
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


def add_borders(
    regions: ImageCounts, predicted: Tensor, target: Tensor, num_classes: int, protocol: Protocol
) -> ImageCounts:
    """The counts of an image together with those at its borders; see `border_scores`.

    Args:
        regions: of `count_image`.
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
    boundary = count_image(regions.index, maps[:1], maps[1:], [num_classes + 1])[0]
    same, differing = seam_pairs(guess, truth, protocol)
    seams = ImageCounts(regions.index, np.array([(0, 0, same), (0, 1, differing)], PAIR))
    return joined([regions, boundary, seams], _firsts(num_classes))


def border_scores(
    images: Sequence[ImageCounts], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a result says of borders, in percent; None where there is none.

    Args:
        images: all of a set, of `add_borders`.
        names: of the C classes.

    Returns:
        its fields; and `boundary_intersect` and `boundary_union` (N, C), pixels per image.
    """
    _, boundary, seams = _firsts(len(names))
    areas = stacked_areas([image.between(boundary, seams) for image in images], len(names) + 1)
    areas = {name: matrix[:, : len(names)] for name, matrix in areas.items()}
    order = ("intersect", "label_area", "pred_area")
    scores = area_scores(*(torch.from_numpy(areas[name].sum(axis=0)) for name in order))
    pairs = np.concatenate([image.between(seams, seams + 2).pairs for image in images])
    differing = pairs["pixels"][pairs["true"] != pairs["predicted"]].sum(dtype=np.int64)
    number = pairs["pixels"].sum(dtype=np.int64)
    fields = {
        "boundary_mIoU": percent(scores.mean_iou),
        "per_class_boundary_iou": dict(zip(names, map(percent, scores.iou.tolist()), strict=True)),
        "seam_error": percent(differing / number) if number else None,
        "seam_pairs": int(number),
    }
    return fields, {f"boundary_{name}": areas[name] for name in ("intersect", "union")}


def _firsts(num_classes: int) -> tuple[int, int, int]:
    """The first labels of regions, of boundaries and of seams in the counts of an image.

    On boundaries there is one class more, for pixels that are on none; seams have two labels.
    """
    return 0, num_classes, 2 * num_classes + 1
