"""Metrics, computed by hand."""

import math

import pytest
import torch

from talk2dino.benchmarks.counts import count_image, stacked_areas
from talk2dino.benchmarks.metrics import area_scores


def confusion_counts(predicted, target, classes):
    """(C, C) pixels, true classes in rows."""
    images = count_image(0, [predicted], [target], [classes])
    return torch.from_numpy(stacked_areas(images, classes)["confusion"])


def segmentation_scores(counts):
    return area_scores(counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0))


def test_counts_have_true_classes_in_rows_and_skip_ignored_pixels():
    target = torch.tensor([[0, 0, 1], [255, 1, 2]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1], [2, 1, 0]])
    counts = confusion_counts(predicted, target, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_scores_by_hand_with_an_absent_class():
    counts = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts[0, 3] = 2  # class 3 is predicted, but never true
    scores = segmentation_scores(counts)
    assert scores.iou[:2].tolist() == pytest.approx([6 / 11, 3 / 6])
    assert math.isnan(scores.iou[2]) and scores.iou[3] == 0
    assert scores.mean_iou == pytest.approx((6 / 11 + 3 / 6 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((6 / 10 + 3 / 4) / 2)
    assert scores.all_accuracy == pytest.approx(9 / 14)


def test_a_set_without_a_counted_pixel_has_no_score():
    counts = confusion_counts(torch.zeros(2, 2).long(), torch.full((2, 2), 255), 3)
    scores = segmentation_scores(counts)
    assert math.isnan(scores.mean_iou) and math.isnan(scores.all_accuracy)


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
