"""Refinements: each in its place, chosen by name."""

import pytest
import torch

from talk2dino.refine.pamr import pamr
from talk2dino.refine.refinement import PAMR, Refinement, changes


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


@pytest.mark.parametrize(
    ("place", "found"), [("features", []), ("patches", ["doubling"]), ("pixels", ["pamr"])]
)
def test_what_changes_a_place_is_known_without_running_it(place, found):
    assert [kind.name for kind in changes((Doubling(), PAMR()), place)] == found
