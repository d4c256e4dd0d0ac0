"""Toys that cost little: a process draws their tensors once."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from talk2dino.backbones import seeded


@contextmanager
def drawn_once() -> Iterator[None]:
    """Keep the tensors that seeds give: 45 million numbers for the toys, half a second."""
    draw, drawn, most = seeded.seeded_tensor, {}, 2**27  # numbers that are kept

    def seeded_tensor(seed, name, shape):
        key = (seed, name, tuple(shape))
        if key not in drawn:
            values = draw(*key)
            if sum(map(torch.numel, drawn.values())) + values.numel() > most:
                return values
            drawn[key] = values
        return drawn[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeded, "seeded_tensor", seeded_tensor)
        yield
