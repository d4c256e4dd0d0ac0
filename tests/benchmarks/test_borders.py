"""Boundary IoU and seam errors, beside the same things done step by step."""

import cv2
import numpy as np
import pytest
import torch

from talk2dino.benchmarks.borders import add_borders, border_scores, boundary_pixels, seam_pairs
from talk2dino.benchmarks.counts import CountsWriter, count_image, read_counts_folder
from talk2dino.sizes import WHOLE, Protocol

CLASSES = ["sky", "cat", "sofa"]
PROTOCOL = Protocol(short_side=20, window=20, stride=10)


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


def counts_of(predicted, target, index=0, protocol=PROTOCOL):
    maps, truth = torch.from_numpy(predicted), torch.from_numpy(target)
    (regions,) = count_image(index, [maps], [truth], [3])
    return add_borders(regions, maps, truth, 3, protocol)


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
        images.append(counts_of(predicted, target, seed))
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
    (regions,) = count_image(4, [torch.from_numpy(predicted)], [torch.from_numpy(target)], [3])
    kept = counts_of(predicted, target, 4).between(0, 3)
    assert kept.index == 4
    assert kept.pairs.tolist() == regions.pairs.tolist()


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


def test_counts_at_borders_are_kept_on_disk(tmp_path):
    counts = [counts_of(blobs(n, ignored=0), blobs(n + 5), n) for n in range(2)]
    writer = CountsWriter(tmp_path / "a.counts", {"boundary": True})
    for image in counts:
        writer.add(image)
    writer.close()
    found = read_counts_folder(tmp_path, {"boundary": True})
    assert border_scores([found[0], found[1]], CLASSES)[0] == border_scores(counts, CLASSES)[0]
