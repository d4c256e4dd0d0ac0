"""Modules that get their weights from a checkpoint are made without first values."""

import pytest
import torch
from torch import nn

from talk2dino.backbones.checkpoints import WithoutInitialisation, check_fit
from talk2dino.backbones.clip_image import load_clip
from talk2dino.backbones.vision import load_vision


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


def test_nothing_is_drawn_for_towers(monkeypatch):
    def drawn(values, *arguments, **settings):
        assert values.is_meta, "first values that a checkpoint replaces"
        return values

    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, drawn)
    load_clip("toy", "seeded:0")
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_dinov3"):
        assert load_vision(name, "seeded:0").model.cls_token.isfinite().all()


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
