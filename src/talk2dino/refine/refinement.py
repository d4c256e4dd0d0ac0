"""Refinements of scores: one seam with three places, and the list of those there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from talk2dino.config import check_name
from talk2dino.refine.pamr import pamr


class Refinement:
    """Something done to a window's features or scores; each place returns its input by default."""

    name: ClassVar[str]
    """In `--refine` and in settings."""

    def features(self, features: Tensor, windows: Tensor) -> Tensor:
        """Patch features (B, P, D) of windows (B, 3, h, w), before they are compared."""
        return features

    def patches(self, scores: Tensor, features: Tensor) -> Tensor:
        """Raw scores (B, C, P) of the patches with features (B, P, D)."""
        return scores

    def pixels(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Scores (B, C, h, w) of the pixels of windows (B, 3, h, w) RGB in [0, 255]."""
        return scores


@dataclass(frozen=True)
class PAMR(Refinement):
    """Pixel-adaptive mask refinement; see talk2dino.refine.pamr."""

    iterations: int = 10
    """How often the scores are averaged."""
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    """Distances of the neighbours in pixels."""
    name: ClassVar[str] = "pamr"

    def pixels(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Scores that follow the edges of the window."""
        return pamr(windows, scores, self.iterations, self.dilations)


REFINEMENTS: dict[str, type[Refinement]] = {kind.name: kind for kind in (PAMR,)}
"""By name; a refinement is added here."""


def make_refinements(names: Sequence[str]) -> tuple[Refinement, ...]:
    """The refinements of names, in the order of REFINEMENTS, each once.

    Raises:
        ValueError: an unknown name.
    """
    wanted = {check_name("refinement", name, REFINEMENTS) for name in names}
    return tuple(kind() for name, kind in REFINEMENTS.items() if name in wanted)


def changes(refinements: Sequence[Refinement], place: str) -> tuple[Refinement, ...]:
    """The refinements that do something at a place: `features`, `patches` or `pixels`."""
    plain = getattr(Refinement, place)
    return tuple(r for r in refinements if getattr(type(r), place) is not plain)
