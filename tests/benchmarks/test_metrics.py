"""Metrics computed by hand; boundary IoU and seam errors beside the same things step by step."""

import math

import cv2
import numpy as np
import pytest
import torch

from talk2dino.benchmarks.metrics import (
    area_scores,
    at_borders,
    begin_count,
    border_scores,
    boundary_pixels,
    seam_pairs,
    stacked_areas,
)
from talk2dino.sizes import WHOLE, Protocol

CLASSES = ["sky", "cat", "sofa"]
PROTOCOL = Protocol(short_side=20, window=20, stride=10)


def confusion_counts(predicted, target, classes):
    """(C, C) pixels, true classes in rows."""
    (image,) = begin_count([predicted], [target], [classes])()
    return torch.from_numpy(stacked_areas([image.pairs], classes)["confusion"])


def segmentation_scores(counts):
    sums = {"intersect": counts.diagonal(), "label_area": counts.sum(1), "pred_area": counts.sum(0)}
    return area_scores({name: areas.numpy()[None] for name, areas in sums.items()})


def test_counts_have_true_classes_in_rows_and_skip_ignored_pixels():
    target = torch.tensor([[0, 0, 1], [255, 1, 2]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1], [2, 1, 0]])
    counts = confusion_counts(predicted, target, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_scores_by_hand_with_an_absent_class():
    counts = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts[0, 3] = 2  # class 3 is predicted, but never true
    iou, accuracy, all_accuracy = segmentation_scores(counts)
    assert iou[:2].tolist() == pytest.approx([6 / 11, 3 / 6])
    assert math.isnan(iou[2]) and iou[3] == 0
    assert accuracy.nanmean().item() == pytest.approx((6 / 10 + 3 / 4) / 2)
    assert all_accuracy.item() == pytest.approx(9 / 14)


def test_a_set_without_a_counted_pixel_has_no_score():
    counts = confusion_counts(torch.zeros(2, 2).long(), torch.full((2, 2), 255), 3)
    iou, _, all_accuracy = segmentation_scores(counts)
    assert iou.isnan().all() and math.isnan(all_accuracy)


def test_predictions_under_ignored_pixels_may_be_anything():
    assert confusion_counts(torch.tensor([99]), torch.tensor([255]), 2).sum() == 0


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        ([0, 0, 0], [0, 0], "differ in size"),
        ([0, 3], [0, 0], "labels outside 0 to 2"),
        ([0, 0], [0, 7], "labels outside 0 to 2"),
        ([-1, 0], [0, 0], "labels outside 0 to 2"),
    ],
)
def test_impossible_labels_are_refused(predicted, target, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(torch.tensor(predicted), torch.tensor(target), 3)


def blobs(seed, ignored=0.1):
    """(40, 60) ids 0 to 2 in patches, some of them ignored."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (8, 12)).repeat(5, axis=0).repeat(5, axis=1)
    return np.where(random.random((40, 60)) < ignored, 255, labels)


def plain_boundary(mask):
    """The mask minus d erosions by a 3x3 square, with a border of zeros around the image."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = max(1, round(0.02 * np.hypot(*mask.shape)))
    for _ in range(distance):
        padded = cv2.erode(padded, np.ones((3, 3), np.uint8))
    return mask & ~padded[1:-1, 1:-1].astype(bool)


def counts_of(predicted, target, protocol=PROTOCOL):
    maps, truth = torch.from_numpy(predicted), torch.from_numpy(target)
    (regions,) = begin_count([maps], [truth], [3])()
    return at_borders(regions, maps, truth, 3, protocol)


@pytest.mark.parametrize("size", [(40, 60), (120, 160), (5, 3)])
def test_the_boundary_of_all_classes_is_that_of_each(size):
    labels = np.full(size, 2, np.uint16)
    labels[: size[0] // 2, : size[1] // 2] = 1
    labels[1:3, 1:3] = 65535
    found = boundary_pixels(labels)
    for value in (1, 2):
        mask = labels == value
        assert np.array_equal(found & mask, plain_boundary(mask))


def test_intersections_and_unions_at_boundaries_are_summed_over_images():
    intersect, union = np.zeros((3, 3)), np.zeros((3, 3))
    images = []
    for seed in range(3):
        predicted, target = blobs(seed, ignored=0), blobs(seed + 10)
        images.append(counts_of(predicted, target))
        for label in range(3):
            one = plain_boundary((predicted == label) & (target != 255))
            other = plain_boundary(target == label)
            intersect[seed, label] = (one & other).sum()
            union[seed, label] = (one | other).sum()
    found, counts = border_scores(images, CLASSES)
    assert np.array_equal(counts["boundary_intersect"], intersect)
    assert np.array_equal(counts["boundary_union"], union)
    expected = 100 * intersect.sum(axis=0) / union.sum(axis=0)
    assert list(found["per_class_boundary_iou"].values()) == pytest.approx(expected, abs=1e-4)
    assert found["boundary_mIoU"] == pytest.approx(expected.mean(), abs=1e-4)


def test_the_counts_of_regions_stay_as_they_are():
    predicted, target = blobs(1, ignored=0), blobs(2)
    (regions,) = begin_count([torch.from_numpy(predicted)], [torch.from_numpy(target)], [3])()
    assert counts_of(predicted, target).pairs.tolist() == regions.pairs.tolist()


def test_a_perfect_picture_has_full_boundaries_and_no_seam_errors():
    target = blobs(3)
    found, _ = border_scores([counts_of(np.where(target == 255, 0, target), target)], CLASSES)
    assert (found["boundary_mIoU"], found["seam_error"]) == (100, 0)


def test_seams_are_the_borders_of_windows_at_the_size_of_the_image():
    protocol = Protocol(short_side=20, window=20, stride=10)  # of 20 x 30: 0-20 and 10-30 across
    target = np.zeros((40, 60), np.uint16)
    predicted = target.copy()
    predicted[:, 20:] = 1  # at the second window's start
    assert seam_pairs(predicted, target, protocol) == (40, 40)
    predicted[0, 19] = 1
    assert seam_pairs(predicted, target, protocol) == (41, 39)
    target[:7, 20:] = 2  # there the truth changes too
    target[39, 39] = 65535
    assert seam_pairs(predicted, target, protocol) == (39, 33)
    assert seam_pairs(predicted.T.copy(), target.T.copy(), protocol) == (39, 33)


def test_a_picture_that_is_one_window_has_no_seam():
    target = blobs(5)
    assert seam_pairs(target, target, WHOLE) == (0, 0)
    found, _ = border_scores([counts_of(np.zeros_like(target), target, protocol=WHOLE)], CLASSES)
    assert (found["seam_error"], found["seam_pairs"]) == (None, 0)
