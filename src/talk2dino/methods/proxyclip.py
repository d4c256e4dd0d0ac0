"""ProxyCLIP (Lan et al., 2024): which patches attend to each other is decided by another backbone.

Two frozen towers. In place of the attention of CLIP's last block, patches are mixed by the
similarity of a vision foundation model's features: DINO's or DINOv2's. Nothing is learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.clip_image import (
    ClipImage,
    pad_to_multiple,
    queries_keys_values,
)
from talk2dino.backbones.text import TextEncoder
from talk2dino.backbones.vision import (
    VisionBackbone,
    check_vision,
    load_vision,
    offset_positions,
)
from talk2dino.methods.base import published
from talk2dino.methods.clip_words import (
    ANY,
    ClipOptions,
    ClipWordMethod,
    ClipWordSegmenter,
    Rules,
    benchmark_word,
    published_words,
    rules_of,
    words_of,
)
from talk2dino.refine.refinement import Refinement, mean_attention
from talk2dino.segmenter import BACKGROUND, ClassQuery, ClassWords
from talk2dino.sizes import Protocol

# -- From DINO's features to CLIP's --

_GAMMA, _BETA = 3.0, 1.2


def proxy_attention(features: Tensor) -> tuple[Tensor, float]:
    """`mean_attention` of patches (P, D) of the foundation model, with the published numbers."""
    return mean_attention(features, _GAMMA, _BETA)


def mix_by_proxy(features: Tensor, values: Tensor) -> tuple[Tensor, float]:
    """Values (P, D) of CLIP mixed by `proxy_attention`, one matrix for all heads."""
    attention, mean = proxy_attention(features)
    return attention @ values, mean


# -- Names, protocols, words --


_NATIVE = Protocol(short_side=336, window=336, stride=112)
RULES = {
    ANY: Rules(_NATIVE, threshold=0.2),
    "context": Rules(_NATIVE, threshold=0.15),
    "coco_object": Rules(_NATIVE, threshold=0.25),
    "ade20k": Rules(Protocol(short_side=448, window=336, stride=112)),
    "cityscapes": Rules(Protocol(short_side=448, window=224, stride=112)),
}
"""By benchmark."""
MODELS = {
    "proxyclip_vitb": ("ViT-B/16", "dino_vitb8"),
    "proxyclip_vitl": ("ViT-L/14", "dino_vitb8"),
    "proxyclip_vith": ("ViT-H/14-gelu", "dino_vitb8"),
    "proxyclip_vitb_dinov2": ("ViT-B/16", "dinov2_vitb14_reg"),
    "proxyclip_toy": ("toy", "dino_toy"),
    "proxyclip_toy_dinov2": ("toy", "toy"),
}
"""Name -> CLIP and foundation model."""
_OTHERS, _TRIDENT = "Talk2DINO's paper", "Trident's paper"  # which do not tell the protocol
PUBLISHED = {
    "proxyclip_vitb": published(_OTHERS, 61.3, 35.3, 37.5, 80.3, 39.1, 26.5, 38.1, 20.2),
    "proxyclip_vitb_pamr": published(_OTHERS, 60.8, 35.3, 37.2, 80.3, 39.4, 26.9, 38.6, 20.2),
    "proxyclip_vitb_dinov2": published(_OTHERS, 58.6, 33.8, 37.4, 83.0, 37.2, 25.4, 33.9, 19.7),
    "proxyclip_vitb_dinov2_pamr": published(
        _OTHERS, 62.0, 35.2, 38.7, 83.1, 38.9, 26.6, 35.4, 20.3
    ),
    "proxyclip_vitl": published(_OTHERS, 60.6, 34.5, 39.2, 83.2, 37.7, 25.6, 40.1, 22.6),
    "proxyclip_vitl_pamr": published(_OTHERS, 60.7, 34.7, 39.4, 83.2, 38.0, 26.2, 41.0, 22.6),
    "proxyclip_vith": published(_TRIDENT, 65.0, 35.4, 38.6, 83.3, 39.6, 26.8, 42.0, 24.2),
}
"""As other papers report it; PAMR is not the authors'."""


def class_words(benchmark: str | None) -> ClassWords:
    """One word per class of a benchmark, and several for the background."""
    known = benchmark if benchmark in ("context", "coco_object") else "voc"
    background = published_words(known).background or (BACKGROUND,)
    if known == "coco_object":  # no list can say it: in one, a word belongs to one class
        place = background.index("desk") + 1
        background = (*background[:place], "bed", *background[place:])
    return words_of(benchmark, lambda name: (benchmark_word(benchmark, name),), background)


# -- The segmenter --


class ProxyFeatures(NamedTuple):
    """What is known of windows before any class."""

    patches: Tensor
    """(B, P, E) in the space of the text, not normalised."""
    grid: tuple[int, int]
    """Of the foundation model's patches."""
    mean_similarities: tuple[float, ...]
    """Per window."""


class ProxyClipSegmenter(ClipWordSegmenter):
    """CLIP whose last block mixes patches by another backbone's similarities.

    Args:
        image: CLIP's image tower.
        text: its text tower.
        vision: the foundation model.
        benchmark: whose rules and words are used; None for pictures of a user.
        refinements: applied to averaged cosines; the authors have none.
        compat: keep a background word that is a class's, too: it then hides the class, as "bed"
            of COCO-Object is hidden in the published runs.
    """

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        vision: VisionBackbone,
        benchmark: str | None = None,
        refinements: Sequence[Refinement] = (),
        compat: bool = False,
    ) -> None:
        words, multiple = class_words(benchmark), math.lcm(image.patch_size, vision.patch_size)
        rules = rules_of(RULES, benchmark)
        super().__init__(image, text, rules, words, refinements, multiple)
        self.vision = vision
        self.compat = compat

    @torch.no_grad()
    def patch_features(self, windows: Tensor) -> ProxyFeatures:
        """Windows (B, 3, h, w) to patches in the space of the text, on the finer model's grid."""
        mean_colour, _ = self.image.colour_statistics(digits=3)
        windows = pad_to_multiple(windows, self.multiple, mean_colour)
        proxies = self.vision(self.vision.normalise(windows)).patches
        high, wide = (side // self.vision.patch_size for side in windows.shape[-2:])
        values = self.last_values(windows, (high, wide))
        # One after the other: P * P similarities of a window take 12 MB at 336 pixels.
        mixed, means = zip(*map(mix_by_proxy, proxies, values), strict=True)
        patches = self.image.blocks[-1].attn.out_proj(torch.stack(mixed))
        return ProxyFeatures(self.image.project(patches), (high, wide), means)

    def uniform_windows(self, features: ProxyFeatures) -> list[bool]:
        """Where every patch attends to itself alone; published runs have no scores there."""
        return [mean > 1 / _BETA for mean in features.mean_similarities]

    def last_values(self, windows: Tensor, grid: tuple[int, int]) -> Tensor:
        """The values of CLIP's last block, without the CLS token's, at a grid: (B, P, D)."""
        tokens, own_grid = self.image.tokens(
            self.image.normalise(windows, digits=3), offset_positions
        )
        *blocks, last = self.image.blocks
        for block in blocks:
            tokens = block(tokens)
        values = queries_keys_values(last, tokens)[2][:, 1:]
        values = values.transpose(1, 2).unflatten(-1, own_grid)  # (B, D, gh, gw)
        return F.interpolate(values, grid, mode="bilinear").flatten(2).transpose(1, 2)

    @torch.no_grad()
    def patch_scores(self, features: ProxyFeatures, query: ClassQuery) -> Tensor:
        """Cosines (B, Q, h, w); -1 for words of the background that are a class's, too."""
        cosines = self.cosines(features.patches, query.rows).unflatten(-1, features.grid)
        if not self.compat:
            cosines[:, shared_words(query)] = -1.0
        return cosines


def shared_words(query: ClassQuery) -> Tensor:
    """(Q,) bool: words of a background whose vector is also one of a class's words."""
    places = torch.arange(len(query.rows), device=query.rows.device)
    if query.background is None:
        return places < 0
    owner = places if query.owner is None else query.owner
    # Equal words may differ in their last digits: prompts are embedded in batches.
    distances = torch.cdist(query.rows, query.rows[owner > 0])
    return (owner == 0) & (distances < 1e-4).any(dim=1)


@dataclass(frozen=True)
class ProxyClipOptions(ClipOptions):
    weights: str | None = None
    """CLIP's: pretrained, a file with both towers, or seeded:<n> for both models."""
    vision_weights: str | None = None
    """Of DINO: pretrained, a file, or seeded:<n>."""
    compat: bool = False
    """Let words of the background hide classes of the same name, as published."""


@dataclass(frozen=True)
class ProxyClipMethod(ClipWordMethod):
    """ProxyCLIP (ECCV 2024)."""

    Options = ProxyClipOptions
    PUBLISHED = PUBLISHED
    MODELS = MODELS
    SEGMENTER = ProxyClipSegmenter
    PARTS = (*ClipWordMethod.PARTS, ("vision_weights", check_vision))
    table = RULES
    class_words = staticmethod(class_words)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "compat": self.options.compat}

    def load_parts(self, device: torch.device) -> tuple[Any, ...]:
        return *super().load_parts(device), load_vision(*self.parts["vision_weights"], device)

    def choices(self) -> dict[str, Any]:
        return {**super().choices(), "compat": self.options.compat}
