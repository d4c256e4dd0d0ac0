"""Label propagation: the walk it stands for, its bounds, and images without seams."""

import pytest
import torch

from talk2dino.refine.propagation import propagate
from talk2dino.refine.refinement import Propagation
from tests.literal import propagation as literal


def problem(windows=2, patches=40, width=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(windows, patches, width, generator=generator)
    return 5 * features, torch.rand(windows, patches, classes, generator=generator)


@pytest.mark.parametrize(("neighbours", "alpha"), [(12, 0.98), (3, 0.5), (39, 0.9), (1, 0.0)])
def test_scores_are_the_power_series_however_little_memory_there_is(neighbours, alpha):
    features, scores = problem()
    expected = literal.propagate(features, scores, neighbours, alpha, steps=700)  # 0.98^700 = 7e-7
    for most_bytes in (1 << 28, 8 * 40**2, 100):
        found = propagate(features, scores, neighbours, alpha, most_bytes)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_patch_like_no_other_keeps_its_scores():
    features, scores = torch.eye(5)[None], torch.rand(1, 5, 2)
    torch.testing.assert_close(propagate(features, scores, 2), scores)


@pytest.mark.parametrize("most_bytes", [1 << 28, 100])
def test_rows_of_the_operator_sum_to_one_and_are_not_negative(most_bytes):
    features, _ = problem(windows=1)
    rows = propagate(features, torch.eye(40)[None], most_bytes=most_bytes)[0]
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(40), rtol=0, atol=1e-4)
    assert rows.min() > -1e-6


def test_a_window_does_not_depend_on_the_others_in_its_batch():
    features, scores = problem(windows=3)
    together = propagate(features, scores)
    for window in range(3):
        alone = propagate(features[window : window + 1], scores[window : window + 1])
        assert torch.equal(together[window : window + 1], alone)


def test_scores_keep_their_type_and_the_inputs_stay_as_they_are():
    features, scores = problem()
    before = features.clone(), scores.clone()
    assert propagate(features.half(), scores.double()).dtype == torch.float64
    propagate(features, scores)
    assert torch.equal(features, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbours": 40}, "40 patches has 39 others.*1 to 39, got 40"),
        ({"neighbours": 0}, "got 0"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\), got 1.0"),
        ({"alpha": -0.1}, "got -0.1"),
        ({"scores": torch.rand(2, 39, 3)}, r"same patches, found \(2, 40, 8\) and \(2, 39, 3\)"),
    ],
)
def test_what_is_no_graph_is_refused(change, message):
    features, scores = problem()
    with pytest.raises(ValueError, match=message):
        propagate(**{"features": features, "scores": scores} | change)


def test_one_window_is_the_whole_image_and_tiny_ones_have_fewer_neighbours():
    features, scores = problem(windows=1, patches=5)
    scores = scores.transpose(1, 2)
    found = Propagation().patches(scores, features)
    expected = propagate(features, scores.transpose(1, 2), 4).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(Propagation("image").patches(scores, features), expected)
    single = torch.rand(2, 3, 1)
    assert torch.equal(Propagation().patches(single, torch.rand(2, 1, 8)), single)
