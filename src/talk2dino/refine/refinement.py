"""Refinements of scores: one seam with three places, and the list of those there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.config import as_texts, check_name, split_names
from talk2dino.refine.pamr import pamr
from talk2dino.refine.propagation import MOST_BYTES, propagate

GRAPHS = ("window", "image")
"""Between which patches scores are propagated: of one window, or of all windows of an image."""
_NEIGHBOURS = 12


class Refinement:
    """Something done to a window's features or scores; each place returns its input by default."""

    name: ClassVar[str]
    """In `--refine` and in settings."""
    joins_windows = False
    """Whether `patches` has to see all windows of an image at once, and no others."""

    def features(self, features: Tensor) -> Tensor:
        """Patch features (B, P, D) as they are compared."""
        return features

    def patches(self, scores: Tensor, features: Tensor, most_bytes: int) -> Tensor:
        """Raw scores (B, C, P) of the patches with features (B, P, D), within some memory."""
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
        return pamr(windows, scores, self.iterations, self.dilations)


@dataclass(frozen=True)
class Propagation(Refinement):
    """Label propagation; see talk2dino.refine.propagation."""

    graph: str = "window"
    """One of GRAPHS."""
    name: ClassVar[str] = "propagation"

    @property
    def joins_windows(self) -> bool:  # type: ignore[override]
        """A graph of the whole image needs all of it."""
        return self.graph == "image"

    def patches(self, scores: Tensor, features: Tensor, most_bytes: int = MOST_BYTES) -> Tensor:
        windows, rows = len(scores), scores.transpose(1, 2)  # (B, P, C)
        if self.joins_windows:
            rows, features = rows.flatten(0, 1)[None], features.flatten(0, 1)[None]
        nearest = min(_NEIGHBOURS, rows.shape[1] - 1)
        if nearest:
            rows = propagate(features, rows, nearest, most_bytes=most_bytes)
        return rows.reshape(windows, -1, rows.shape[2]).transpose(1, 2)


@dataclass(frozen=True)
class Smoothing(Refinement):
    """Every patch as the mean of those of its window that resemble it more than the average.

    One step without parameters, the self-correlating aggregation of RADSeg.
    """

    name: ClassVar[str] = "smoothing"

    def features(self, features: Tensor) -> Tensor:
        return torch.stack([mean_attention(one, 10.0, 1.0)[0] @ one for one in features])


def mean_attention(features: Tensor, gamma: float, beta: float) -> tuple[Tensor, float]:
    """How much each patch of one window counts for each other.

    Args:
        features: (P, D), of any length.
        gamma: makes differences of similarity larger.
        beta: similarities below this multiple of their mean do not count.

    Returns:
        (P, P) with rows that sum to one, and the mean similarity. A patch always counts for itself:
        where everything resembles everything, with a mean above 1 / beta, it is the only one.
    """
    unit = F.normalize(features, dim=-1)
    similarity = unit @ unit.T
    mean = similarity.mean()
    own = gamma * (similarity.diagonal() - beta * mean)
    logits = similarity.sub_(beta * mean).mul_(gamma)
    logits.masked_fill_(logits < 0, -torch.inf)
    logits.diagonal().copy_(own)
    return logits.softmax(dim=-1), float(mean)


REFINEMENTS: dict[str, type[Refinement]] = {r.name: r for r in (Smoothing, Propagation, PAMR)}
"""By name, in the order in which they are applied; a refinement is added here."""


def chosen_refinements(names: str | Sequence[str] | None) -> dict[str, bool]:
    """What `--refine` switches on: names, or one text with commas between them.

    Raises:
        ValueError: an unknown name.
    """
    words = [word.strip() for text in as_texts(names or ()) for word in split_names(text)]
    return {check_name("refinement", word, REFINEMENTS): True for word in words if word}


@dataclass(frozen=True)
class RefinementOptions:
    """Which refinements are on; those but PAMR are in no publication."""

    pamr: bool | None = None
    """Refine the scores along the edges of the image with PAMR."""
    smoothing: bool = False
    """Compare means of patches that resemble each other, in place of single ones."""
    propagation: bool = False
    """Spread the scores of patches among those that resemble each other."""
    propagation_graph: str = "window"
    """Between the patches of which windows: window, or image for all of an image's."""

    def __post_init__(self) -> None:
        graph = check_name("propagation_graph", self.propagation_graph, GRAPHS)
        if graph != GRAPHS[0] and not self.propagation:
            raise ValueError(
                f"propagation_graph {graph} means nothing without --refine propagation."
            )

    def refinements(self, dilations: tuple[int, ...] = PAMR.dilations) -> tuple[Refinement, ...]:
        """Those that are on, PAMR with these distances."""
        settings: dict[str, dict[str, Any]] = {
            Propagation.name: {"graph": self.propagation_graph},
            PAMR.name: {"dilations": dilations},
        }
        on = [name for name in REFINEMENTS if getattr(self, name)]
        return tuple(REFINEMENTS[name](**settings.get(name, {})) for name in on)

    def recorded(self) -> dict[str, object]:
        """What is on of that in settings of a run; nothing of what is off, nor of PAMR."""
        on = {name: True for name in REFINEMENTS if name != PAMR.name and getattr(self, name)}
        return on | ({"propagation_graph": self.propagation_graph} if self.propagation else {})
