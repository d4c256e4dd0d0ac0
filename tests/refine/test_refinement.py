"""Refinements: each in its place, chosen by name; one step of smoothing, patch by patch."""

import torch
import torch.nn.functional as F

from talk2dino.methods.dense import DenseSegmenter
from talk2dino.refine.pamr import pamr
from talk2dino.refine.refinement import PAMR, Refinement, Smoothing


class Doubling(Refinement):
    name = "doubling"

    def patches(self, scores, features, most_bytes):
        return 2 * scores


def test_every_place_returns_its_input_by_default():
    one, other = torch.rand(1, 2, 3), torch.rand(1)
    plain = Refinement()
    assert plain.features(one) is one
    assert plain.patches(one, other, 0) is one
    assert plain.pixels(one, other) is one


def test_pamr_refines_pixels_only():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 2, 24, 24, generator=generator)
    windows = torch.rand(1, 3, 24, 24, generator=generator) * 255
    found = PAMR(iterations=2, dilations=(1, 2)).pixels(scores, windows)
    torch.testing.assert_close(found, pamr(windows, scores, 2, (1, 2)))
    assert not torch.equal(found, scores)


def test_scores_follow_edges_if_a_refinement_of_pixels_is_on():
    segmenter = DenseSegmenter()
    for refinements, found in (((), False), ((Doubling(),), False), ((Doubling(), PAMR()), True)):
        segmenter.refinements = refinements
        assert segmenter.follows_edges is found


def literal(window):
    unit = F.normalize(window.double(), dim=1)
    similarity = unit @ unit.T
    matrix = 10 * (similarity - similarity.mean())
    smoothed = []
    for place, row in enumerate(matrix):
        weights = torch.stack(
            [v.exp() if v >= 0 or i == place else v.new_zeros(()) for i, v in enumerate(row)]
        )
        smoothed.append((weights[:, None] * window).sum(dim=0) / weights.sum())
    return torch.stack(smoothed).float()


def test_every_patch_is_the_mean_of_those_that_resemble_it():
    features = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    found = Smoothing().features(features)
    torch.testing.assert_close(found, torch.stack([literal(window) for window in features]))
    torch.testing.assert_close(Smoothing().features(3 * features), 3 * found)


def test_a_patch_counts_for_itself_even_where_all_are_alike():
    alike = torch.ones(1, 4, 3)
    torch.testing.assert_close(Smoothing().features(alike), alike)
