"""Label propagation of two windows: one system of equations each, against the series it sums."""

from __future__ import annotations

from pathlib import Path

import torch

from speed.case import LITERAL, SHIPPED, Case, Step

_SHAPE = (2, 1024)


def _problem(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(*_SHAPE, 768, generator=generator)
    return features.to(device), torch.rand(*_SHAPE, 171, generator=generator).to(device)


def _shipped(device: str, folder: Path) -> Step:
    from talk2dino.refine.propagation import propagate

    features, scores = _problem(device)
    return lambda: propagate(features, scores)


def _literal(device: str, folder: Path) -> Step:
    from tests.literal.propagation import propagate

    features, scores = _problem(device)
    return lambda: propagate(features, scores)


CASES = {
    "propagation": Case(
        "label propagation, 1,024 patches, 171 classes, two windows",
        {SHIPPED: _shipped, LITERAL: _literal},
        limits={"seconds": 0.06},
        work=2,
        unit="windows",
    )
}
