"""Modules that get their weights from a checkpoint are made without first values."""

import pytest
import torch
from torch import nn

from talk2dino.backbones.checkpoints import WithoutInitialisation, check_fit
from talk2dino.backbones.text import load_text


class Layer(nn.Module):
    """Every way in which a parameter gets a value, and a buffer."""

    def __init__(self, first):
        super().__init__()
        self.drawn = nn.Parameter(first.clone())
        nn.init.normal_(self.drawn)
        nn.init.constant_(tensor=self.drawn, val=3.0)
        with torch.no_grad():
            self.drawn.mul_(5).clamp_(-1, 1)
        self.copied = nn.Parameter(torch.zeros(2)).requires_grad_(False)
        with torch.no_grad():
            self.copied.copy_(first)
        self.register_buffer("counted", torch.empty(2).fill_(4.0))


def test_parameters_are_left_alone_and_buffers_are_computed():
    first = torch.tensor([7.0, 8.0])
    with WithoutInitialisation():
        layer = Layer(first)
    assert torch.equal(layer.drawn, first) and torch.equal(layer.copied, first)
    assert layer.counted.tolist() == [4.0, 4.0]
    assert layer.drawn.requires_grad and not layer.copied.requires_grad
    assert Layer(first).drawn.tolist() == [1.0, 1.0], "and only in there"


def test_no_random_number_is_drawn_for_a_text_tower():
    before = torch.get_rng_state()
    load_text("toy", "seeded:0")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "damaged"),
    [
        ([1.0, float("nan")], True),
        ([float("inf"), float("-inf")], True),
        ([3e38, 3e38], False),  # finite, unlike their sum
        ([], False),
    ],
)
def test_values_that_are_not_finite_are_found(values, damaged):
    state = {"a": torch.tensor(values)}
    shapes = {"a": (len(values),)}
    if not damaged:
        return check_fit(state, shapes, "x")
    with pytest.raises(ValueError, match="x: values that are infinite or not a number, in: a"):
        check_fit(state, shapes, "x")
