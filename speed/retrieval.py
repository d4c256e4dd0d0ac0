"""Retrieval: the pictures that fit a text best, of a feature file on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from speed.case import SHIPPED, Case, Step

IMAGES, HEADS, PATCH_DIM, TOP = 100_000, 12, 768, 10
_KEY, _DRAWN = "disentangled_self_attn", 2_000


def _write(folder: Path) -> None:
    """As many images as asked for, of which so many are different."""
    from talk2dino.features.store import FeatureFile, write_features

    heads = torch.randn(_DRAWN, HEADS, PATCH_DIM, generator=torch.Generator().manual_seed(0))
    column = {_KEY: heads.repeat(IMAGES // _DRAWN, 1, 1)}
    write_features(FeatureFile([{"id": n} for n in range(IMAGES)], [], column), folder / "s.pth")


def _shipped(device: str, folder: Path) -> Step:
    from talk2dino.features.store import read_features
    from talk2dino.methods.talk2dino.training.dataset import forget
    from talk2dino.methods.talk2dino.training.retrieval import best_rows

    store = read_features(folder / "s.pth")
    column = store.image_features[_KEY]
    done = partial(forget, column)
    query = torch.randn(1, PATCH_DIM, generator=torch.Generator().manual_seed(1)).to(device)
    return lambda: list(best_rows(query, column, TOP, done=done))


CASES = {
    "retrieval": Case(
        f"the {TOP} of {IMAGES:,} images that fit a text, {HEADS} heads of {PATCH_DIM}, on disk",
        {SHIPPED: _shipped},
        inputs=_write,
        limits={"seconds": 1, "resident_mb": 500},
        work=1,
        unit="texts",
    )
}
