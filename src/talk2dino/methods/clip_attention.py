"""MaskCLIP, SCLIP, ClearCLIP and NACLIP: CLIP as a segmenter, by another attention at its end.

MaskCLIP (Zhou, Loy, Dai, 2022), SCLIP (Wang, Mei, Yuille, 2024), ClearCLIP (Lan et al., 2024) and
NACLIP (Hajimiri, Ben Ayed, Dolz, 2025) train nothing. Everything before the last block is CLIP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.clip_image import ClipImage, pad_to_multiple, queries_keys_values
from talk2dino.backbones.text import TextEncoder
from talk2dino.backbones.vision import offset_positions
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.config import check_name
from talk2dino.methods.base import published
from talk2dino.methods.clip_words import (
    ANY,
    ClipWordMethod,
    ClipWordSegmenter,
    Rules,
    Table,
    class_words,
    rules_of,
)
from talk2dino.refine.refinement import PAMR, Refinement
from talk2dino.segmenter import ClassQuery, ClassWords
from talk2dino.sizes import Protocol

Grid = tuple[int, int]
"""Rows and columns of patches."""
Attention = Callable[[Tensor, Tensor, Tensor, Grid], Tensor]
"""Queries, keys, values (B, H, N, d), the CLS token first, and the grid to new values."""

DILATIONS = (8, 16)
"""Distances of PAMR's neighbours, as NACLIP has them."""
SIGMA = 5.0
"""How far NACLIP's neighbourhood reaches, in patches."""


def values_alone(query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
    """MaskCLIP: every token attends to itself."""
    return value


def self_correlation(query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
    """SCLIP: queries with queries plus keys with keys; the weights of a row sum to two."""
    attend = F.scaled_dot_product_attention
    return attend(query, query, value) + attend(key, key, value)


def query_query(query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
    """ClearCLIP: queries with queries."""
    return F.scaled_dot_product_attention(query, query, value)


def neighbour_aware(query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
    """NACLIP: keys with keys, and a Gaussian around every patch added to the scaled logits."""
    near = F.pad(neighbourhood(grid, SIGMA), (1, 0, 1, 0)).to(key)  # nothing for the CLS token
    return F.scaled_dot_product_attention(key, key, value, attn_mask=near)


def as_trained(query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
    """CLIP: queries with keys."""
    return F.scaled_dot_product_attention(query, key, value)


def neighbourhood(grid: Grid, sigma: float) -> Tensor:
    """exp(-d^2 / (2 sigma^2)) for the distance d of each two of P patches: (P, P)."""
    rows, columns = (
        torch.exp(-((torch.arange(n)[:, None] - torch.arange(n)) ** 2) / (2 * sigma**2))
        for n in grid
    )
    return torch.kron(rows, columns)


_SMALL = Protocol(short_side=336, window=224, stride=112)
_WHOLE = Protocol(short_side=336, window=None)

_SCLIP = {
    ANY: Rules(_SMALL),
    "voc": Rules(_SMALL, logit_scale=65.0, area=0.1),
    "context": Rules(_SMALL, logit_scale=50.0),
    "coco_object": Rules(_SMALL, logit_scale=50.0),
    "coco_stuff": Rules(replace(_SMALL, short_side=448)),
    "cityscapes": Rules(replace(_SMALL, short_side=560)),
}
_NACLIP = {
    ANY: Rules(_SMALL),
    "voc": Rules(_WHOLE),
    "voc20": Rules(_WHOLE),
    "cityscapes": Rules(replace(_SMALL, short_side=560)),
}
_CLEARCLIP = {
    ANY: Rules(Protocol(), 50.0, threshold=0.5),
    "context": Rules(Protocol(), 50.0, threshold=0.15),
    "coco_object": Rules(Protocol(), 50.0, threshold=0.4),
    "cityscapes": Rules(Protocol(window=224, stride=224), 50.0),
}


@dataclass(frozen=True)
class Variant:
    """What distinguishes a method."""

    attention: Attention
    """Of the last block."""
    residual: bool
    """Whether the last block keeps its residual connections and feed-forward layer."""
    rules: Table
    """By benchmark."""
    pads: bool = True
    """Whether windows are padded to whole patches; else what fills none is dropped and the scores
    are stretched over the whole window, as published."""
    expands: bool = False
    """Whether people, screens and backgrounds are looked for by several words."""
    pamr: bool = False
    """Whether averaged cosines are refined."""


METHODS: dict[str, Variant] = {
    "maskclip": Variant(values_alone, True, _CLEARCLIP),
    "maskclip_reduced": Variant(values_alone, False, _CLEARCLIP),
    "sclip": Variant(self_correlation, True, _SCLIP, pads=False, expands=True),
    "clearclip": Variant(query_query, False, _CLEARCLIP),
    "naclip": Variant(neighbour_aware, False, _NACLIP, pads=False, expands=True, pamr=True),
    "clip": Variant(as_trained, True, {**_CLEARCLIP, ANY: Rules(Protocol(), 50.0, threshold=0.2)}),
}
_FIGURE, _OTHERS = "a figure of ClearCLIP's repository", "papers of others"
PUBLISHED = {
    "maskclip_vitb": published(_FIGURE, 74.9, 26.4, 16.4, 12.6, 9.8),
    "maskclip_reduced_vitb": published(_FIGURE, 61.4, 28.3, 18.4, 24.7, 13.6),
    "sclip_vitb": published(
        "SCLIP's repository", 59.63, 31.74, 33.52, 81.54, 34.46, 22.77, 32.34, 16.45
    ),
    "clearclip_vitb": published(_OTHERS, 51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7),
    "naclip_vitb": published(_OTHERS, 58.9, 32.2, 33.2, 79.7, 35.2, 23.3, 35.5, 17.4),
    "naclip_vitb_pamr": published(
        "NACLIP's repository", 64.07, 34.99, 36.19, 83.03, 38.35, 25.69, 38.27, 19.05
    ),
    "clip_vitb": published(_FIGURE, 41.8, 9.2, 4.4, 5.5, 2.1),
}
"""mIoU in percent by benchmark."""
SIZES = {"vitb": "ViT-B/16", "toy": "toy"}
"""What the name of a model ends with -> its CLIP."""
MODELS = {f"{method}_{size}": (clip,) for method in METHODS for size, clip in SIZES.items()}
"""Name -> CLIP."""


class Tokens(NamedTuple):
    """Windows before the last block."""

    tokens: Tensor
    """(B, 1 + h*w, D), the CLS token first."""
    grid: Grid
    """(h, w)."""


class ClipAttentionSegmenter(ClipWordSegmenter):
    """CLIP with another last block.

    Args:
        image: CLIP's image tower.
        text: its text tower.
        method: of METHODS.
        benchmark: whose rules and words are used; None for pictures of a user.
        refinements: None for the method's own.
    """

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        method: str,
        benchmark: str | None = None,
        refinements: Sequence[Refinement] | None = None,
    ) -> None:
        self.variant = METHODS[check_name("method", method, METHODS)]
        if refinements is None:
            refinements = [PAMR(dilations=DILATIONS)] if self.variant.pamr else []
        words = class_words(benchmark, self.variant.expands)
        multiple = image.patch_size if self.variant.pads else 1
        rules = rules_of(self.variant.rules, benchmark)
        super().__init__(image, text, rules, words, refinements, multiple)

    @torch.no_grad()
    def patch_features(self, windows: Tensor) -> Tokens:
        """Windows (B, 3, h, w) to the input of the last block."""
        images = pad_to_multiple(self.image.normalise(windows, digits=3), self.multiple)
        tokens, grid = self.image.tokens(images, offset_positions)
        for block in self.image.blocks[:-1]:
            tokens = block(tokens)
        return Tokens(tokens, grid)

    @torch.no_grad()
    def patch_scores(self, features: Tokens, query: ClassQuery) -> Tensor:
        """Cosines (B, Q, h, w) of the patches with the words."""
        return self.cosines(self.dense_features(features), query.rows).unflatten(-1, features.grid)

    @torch.no_grad()
    def dense_features(self, features: Tokens) -> Tensor:
        """(B, h*w, E) after the last block and CLIP's projection, not normalised."""
        last, tokens = self.image.blocks[-1], features.tokens
        query, key, value = (
            part.unflatten(-1, (self.image.num_heads, -1)).transpose(1, 2)  # (B, H, N, d)
            for part in queries_keys_values(last, tokens)
        )
        mixed = self.variant.attention(query, key, value, features.grid)
        mixed = last.attn.out_proj(mixed.transpose(1, 2).flatten(2))
        if self.variant.residual:
            tokens = tokens + mixed
            mixed = tokens + last.mlp(last.ln_2(tokens))
        return self.image.project(mixed[:, 1:])

    @property
    def pixelwise(self) -> bool:
        """Whether `finalise` may be called for strips of rows: the area rule counts all pixels."""
        return super().pixelwise and not self.rules.area

    def probabilities(self, cosines: Tensor, query: ClassQuery, dim: int = 0) -> Tensor:
        """Of the classes (C, H, W), after the area rule."""
        probabilities = super().probabilities(cosines, query, dim)
        if self.rules.area and query.background is not None:
            found = probabilities.max(dim=0).indices.flatten()
            pixels = torch.bincount(found, minlength=len(probabilities))[1:]
            small = pixels / pixels.sum().clamp(min=1) <= self.rules.area
            probabilities[1:][small] = 0.0
        return probabilities


@dataclass(frozen=True)
class ClipAttentionMethod(ClipWordMethod):
    """MaskCLIP, SCLIP, ClearCLIP, NACLIP or CLIP itself."""

    PUBLISHED = PUBLISHED
    MODELS = MODELS
    SEGMENTER = ClipAttentionSegmenter
    dilations = DILATIONS

    @property
    def method(self) -> str:
        """Of METHODS."""
        return self.model.rpartition("_")[0]

    @property
    def table(self) -> Table:  # type: ignore[override]
        return METHODS[self.method].rules

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """MaskCLIP and CLIP have no published thresholds, so no benchmark with background."""
        known = self.PUBLISHED[f"{self.method}_vitb"].miou
        return [self.benchmark(row) for key, row in BENCHMARKS.items() if key in known]

    @property
    def refines(self) -> bool:
        """NACLIP does, unless it is refused."""
        own = METHODS[self.method].pamr
        return own if self.options.pamr is None else self.options.pamr

    def class_words(self, benchmark: str | None) -> ClassWords:
        return class_words(benchmark, METHODS[self.method].expands)

    def choices(self) -> dict[str, Any]:
        return {**super().choices(), "method": self.method}
