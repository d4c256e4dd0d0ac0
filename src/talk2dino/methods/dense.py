"""What methods share that compare every patch of a window with every word."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talk2dino.devices import in_float32
from talk2dino.refine.propagation import MOST_BYTES
from talk2dino.refine.refinement import Refinement
from talk2dino.segmenter import ClassQuery, ClassWords, Finalising, Words, with_background
from talk2dino.sizes import Protocol


class WordSegmenter(nn.Module):
    """A `FeatureSharing` segmenter, but for `embed_classes` and what gives features and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ClassWords()
        """By which words classes are looked for, unless a query says it."""
        self.protocol = Protocol()
        """Sizes and windows of `label_map`."""

    embed_classes: Callable[[Sequence[str]], Tensor]
    """To (Q, D), one row per word; the method owns its templates."""
    patch_features: Callable[[Tensor], Any]
    """See `FeatureSharing`."""
    score_features: Callable[[Any, Tensor, ClassQuery], Tensor]
    """`window_scores` of features, windows and query, whose `patch_features` are there already."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its frozen models, which others of the same method may use, too."""
        return tuple(self.children())

    @property
    def deciding(self) -> tuple[Any, ...]:
        """What decides `patch_features`, beside the windows."""
        return self.parts

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def query(
        self, names: Sequence[str], background: float | None = None, words: Words | None = None
    ) -> ClassQuery:
        return self.words.query(names, background, words, self.embed_classes)

    @in_float32
    def window_scores(self, windows: Tensor, query: ClassQuery) -> Tensor:
        if windows.ndim != 4 or windows.shape[1] != 3:
            raise ValueError(f"windows must be (B, 3, h, w), found {tuple(windows.shape)}.")
        return self.score_features(self.patch_features(windows), windows, query)

    def shares_features(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.deciding == other.deciding


class DenseSegmenter(WordSegmenter):
    """A `PatchScoring` segmenter, but for `embed_classes`, `patch_features` and `patch_scores`."""

    aligned_corners = True
    """How scores are interpolated between patches."""
    most_bytes = MOST_BYTES
    """Memory that refinements of patch scores may take."""
    refinements: tuple[Refinement, ...] = ()
    """Of features, patch scores and pixel scores, each in its place."""
    patch_scores: Callable[[Any, ClassQuery], Tensor]
    """See `PatchScoring`."""

    @in_float32
    def score_features(self, features: Any, windows: Tensor, query: ClassQuery) -> Tensor:
        scores = self.pixel_scores(self.patch_scores(features, query), windows)
        return scores if isinstance(self, Finalising) else with_background(scores, query, dim=1)

    @in_float32
    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Spread `patch_scores` (B, c, gh, gw) over windows (B, 3, h, w); classes do not interact.

        Returns:
            (B, c, h, w), refined as configured.
        """
        size_hw = windows.shape[-2:]
        spread = F.interpolate(
            scores, size=size_hw, mode="bilinear", align_corners=self.aligned_corners
        )
        return self.refined(spread, windows)

    def refined(self, scores: Tensor, pictures: Tensor) -> Tensor:
        """Scores (B, c, h, w) of the pixels of pictures (B, 3, h, w) after the refinements."""
        for refinement in self.refinements:
            scores = refinement.pixels(scores, pictures)
        return scores

    @property
    def follows_edges(self) -> bool:
        return any(type(r).pixels is not Refinement.pixels for r in self.refinements)

    @property
    def joins_windows(self) -> bool:
        return any(refinement.joins_windows for refinement in self.refinements)

    def cosines(self, patches: Tensor, rows: Tensor, eps: float = 1e-12) -> Tensor:
        """(B, Q, P) of patches (B, P, D) with rows (Q, D) of unit length, refined."""
        compared = patches
        for refinement in self.refinements:
            compared = refinement.features(compared)
        compared = F.normalize(compared, dim=-1, eps=eps)
        cosines = torch.einsum("bpd,qd->bqp", compared, rows)
        for refinement in self.refinements:
            cosines = refinement.patches(cosines, patches, self.most_bytes)
        return cosines
