"""FreeDA (Barsellotti et al., 2024): text retrieves visual prototypes, regions resemble one.

A class's prototype is the mean of the bank's vectors whose text keys are nearest to its name. A
superpixel takes the similarity of its mean feature, mixed with CLIP's opinion of the whole window.
Nothing is learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.clip_image import ClipImage, load_clip
from talk2dino.backbones.templates import prompt_means
from talk2dino.backbones.text import TextEncoder, check_clip
from talk2dino.backbones.vision import (
    VisionBackbone,
    check_vision,
    exact_positions,
    load_vision,
    patch_size,
)
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.config import check_at_least, optional_module
from talk2dino.devices import in_float32
from talk2dino.methods.base import ComposedMethod, MethodOptions, PictureRules, published
from talk2dino.methods.dense import WordSegmenter
from talk2dino.methods.freeda.bank import Bank, check_bank, load_bank
from talk2dino.segmenter import ClassQuery, pool_words, with_background
from talk2dino.sizes import Protocol

_LOCAL, _GLOBAL = 0.8, 0.2
_SKIMAGE = (
    "skimage.segmentation",
    "superpixels need scikit-image: pip install scikit-image. Or score patches in their place: "
    "--superpixels off",
)


# -- Superpixels, and the mean of patch features over each of them --


@dataclass(frozen=True)
class Superpixels:
    """Settings of Felzenszwalb's method."""

    scale: float
    """Larger ones with larger values."""
    sigma: float
    """Of the Gaussian before."""
    min_size: int
    """In pixels; smaller ones join a neighbour."""

    def of(self, window: Tensor) -> Tensor:
        """A window (3, h, w) RGB in [0, 255] to labels (h, w) int64 from 0, on the CPU."""
        pixels = (window.float().cpu() / 255).permute(1, 2, 0).contiguous().numpy()
        segmentation = optional_module(*_SKIMAGE)
        labels = segmentation.felzenszwalb(pixels, self.scale, self.sigma, self.min_size)
        return torch.from_numpy(labels).long()


def region_weights(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each region every patch sees: (R, gh * gw).

    That is what bilinear interpolation of each region's mask, with aligned corners and without
    antialias, gives at the grid. A region between the sample points gets nothing.

    Args:
        labels: (H, W) int64, 0 to R - 1.
        grid: of patches.
    """
    (rows, of_rows), (columns, of_columns) = map(_axis_weights, labels.shape, grid)
    seen = labels[rows[..., None, None], columns]  # (2, gh, 2, gw)
    weights = of_rows[..., None, None] * of_columns
    patches = torch.arange(grid[0] * grid[1]).view(1, grid[0], 1, grid[1]).expand_as(seen)
    found = weights.new_zeros(int(labels.max()) + 1, grid[0] * grid[1])
    return found.index_put_((seen, patches), weights, accumulate=True)


def _axis_weights(length: int, points: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a side are interpolated at each point, and how much of each: (2, points)."""
    basis = torch.eye(length)[None]
    weights = F.interpolate(basis, points, mode="linear", align_corners=True)[0]
    largest = weights.topk(min(2, length), dim=0)
    return largest.indices, largest.values


def pool_regions(weights: Tensor, patches: Tensor) -> Tensor:
    """Weighted means (R, D) of patches (P, D); 0 for a region that no patch sees."""
    total = weights.sum(dim=1, keepdim=True)
    return weights @ patches / (total + torch.finfo(torch.float32).eps)


# -- The segmenter --


class FreeDAFeatures(NamedTuple):
    """What is known of windows before any class."""

    patches: Tensor
    """(B, P, D) of DINOv2, of unit length."""
    embeddings: Tensor
    """(B, E) of CLIP, of unit length."""
    regions: list[tuple[Tensor, Tensor]]
    """Per window, labels (H, W) and mean features (R, D) of unit length, zero where a region lies
    between the patches. Empty without superpixels."""


class FreeDASegmenter(WordSegmenter):
    """The method behind the seam; rows are (C, D + E): a prototype and a text, each a unit vector.

    Args:
        image: CLIP's image tower.
        text: and the text tower that belongs to it.
        vision: DINOv2.
        bank: of prototypes.
        neighbours: keys whose vectors are averaged for a class.
        superpixels: None for scores of patches, spread over the pixels.
    """

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        vision: VisionBackbone,
        bank: Bank,
        neighbours: int = 350,
        superpixels: Superpixels | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.vision = vision
        self.bank = bank
        self.neighbours = neighbours
        self.superpixels = superpixels

    @property
    def parts(self) -> tuple[Any, ...]:
        return *super().parts, self.bank

    @property
    def deciding(self) -> tuple[Any, ...]:
        return *super().parts, self.superpixels

    # -- From names to prototypes --

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """(C, D + E), one row per name: its prototype and its text."""
        texts = self.embed_texts(names)
        found = self.bank.class_prototypes(texts, self.neighbours, names)
        return torch.cat([F.normalize(found, eps=1e-6).to(texts.device), texts], dim=1)

    def embed_texts(self, names: Sequence[str]) -> Tensor:
        """(C, E) of unit length: the mean of a name's 7 prompts, which are not normalised."""
        return F.normalize(prompt_means(self.text.encode, names, "subset"), eps=1e-6)

    # -- From windows to scores --

    def clip_input(self, windows: Tensor) -> Tensor:
        """Windows (B, 3, h, w) as CLIP sees them: square, their aspect lost."""
        return self.image.normalise(F.interpolate(windows, (224, 224), mode="bicubic"))

    def dino_input(self, windows: Tensor) -> Tensor:
        """Windows as DINOv2 sees them: at the size of its own positions."""
        return self.vision.normalise(F.interpolate(windows, (518, 518), mode="bilinear"))

    def embed_windows(self, windows: Tensor) -> Tensor:
        """(B, E) of unit length."""
        tokens, _ = self.image.tokens(self.clip_input(windows), exact_positions)
        for block in self.image.blocks:
            tokens = block(tokens)
        return F.normalize(self.image.project(tokens[:, 0]), dim=-1)

    @in_float32
    def patch_features(self, windows: Tensor) -> FreeDAFeatures:
        """Windows (B, 3, h, w) RGB in [0, 255], each on its own, to patches and regions."""
        patches = self.vision(self.dino_input(windows)).patches
        regions = []
        if self.superpixels is not None:
            side = _side(patches)
            for window, of_window in zip(windows, patches, strict=True):
                labels = self.superpixels.of(window)
                weights = region_weights(labels, (side, side)).to(patches.device)
                pooled = F.normalize(pool_regions(weights, of_window), dim=-1)
                regions.append((labels.to(patches.device), pooled))
        unit = F.normalize(patches, dim=-1, eps=1e-6)
        return FreeDAFeatures(unit, self.embed_windows(windows), regions)

    @in_float32
    def score_features(
        self, features: FreeDAFeatures, windows: Tensor, query: ClassQuery
    ) -> Tensor:
        """See `WordSegmenter`; the background is a constant score, the threshold."""
        texts = query.rows[:, features.patches.shape[-1] :]
        scores = self.local_scores(features, windows, query).mul_(_LOCAL)
        scores += _GLOBAL * (features.embeddings @ texts.T)[..., None, None]
        return with_background(pool_words(scores, query), query, dim=1)

    def dense_scores(self, features: FreeDAFeatures, query: ClassQuery) -> Tensor:
        """How much every patch resembles every prototype, (B, C, gh, gw) in [0, 1]."""
        prototypes = query.rows[:, : features.patches.shape[-1]]
        scores = torch.sigmoid(prototypes @ features.patches.transpose(1, 2))
        return scores.unflatten(-1, (_side(features.patches), -1))

    def local_scores(self, features: FreeDAFeatures, windows: Tensor, query: ClassQuery) -> Tensor:
        """(B, C, h, w) of regions, and of patches where there are none."""
        dense = self.dense_scores(features, query)
        size_hw = windows.shape[-2:]
        scores = F.interpolate(dense, size_hw, mode="bilinear", align_corners=True)
        prototypes = query.rows[:, : features.patches.shape[-1]]
        for window, (labels, pooled) in zip(scores, features.regions, strict=False):
            of_regions = torch.sigmoid(prototypes @ pooled.T)
            kept = pooled.any(dim=1)[labels]
            window[:, kept] = of_regions[:, labels[kept]]
        return scores


def _side(patches: Tensor) -> int:
    return round(patches.shape[1] ** 0.5)


# -- The method: models, options, published numbers --

MODELS = {
    "freeda_vitl": ("ViT-L/14", "dinov2_vitl14", "freeda_vitl"),
    "freeda_toy": ("toy14", "toy_without_registers", "freeda_toy"),
}
"""Name -> CLIP, DINOv2 and bank."""
_SOURCE = "Talk2DINO's paper, run again by FreeDA's authors"  # who do not tell its superpixels
PUBLISHED = {"freeda_vitl": published(_SOURCE, 44.1, 34.8, 33.9, 85.7, 39.7, 26.3, 33.6, 21.4)}
SETTINGS = {
    "voc20": Superpixels(100, 0.7, 20),
    "context59": Superpixels(100, 1.0, 20),
    "ade20k": Superpixels(100, 1.0, 20),
    "coco_stuff": Superpixels(100, 1.0, 100),
    "cityscapes": Superpixels(20, 0.5, 50),
}
"""By benchmark; a user's pictures take those of context59."""
UNRELEASED = {"voc": "voc20", "context": "context59", "coco_object": "coco_stuff"}
"""Benchmarks that have no settings of their own -> whose they take."""


@dataclass(frozen=True)
class FreeDAOptions(MethodOptions):
    weights: str | None = None
    """CLIP's: pretrained, a file with both towers, or seeded:<n> for everything."""
    vision_weights: str | None = None
    """Of DINOv2: pretrained, a file, or seeded:<n>."""
    bank: str | None = None
    """Of prototypes: a folder as published, a converted file, or seeded:<n> for a random one."""
    neighbours: int = 350
    """Vectors of the bank that are averaged for a class."""
    superpixels: bool = True
    """Score superpixels in place of patches."""

    def __post_init__(self) -> None:
        check_at_least(1, neighbours=self.neighbours)


@dataclass(frozen=True)
class FreeDAMethod(ComposedMethod):
    """FreeDA (CVPR 2024)."""

    Options = FreeDAOptions
    PUBLISHED = PUBLISHED
    MODELS = MODELS
    SEGMENTER = FreeDASegmenter
    PARTS = (("weights", check_clip), ("vision_weights", check_vision), ("bank", check_bank))
    threshold_meaning = "0.8 sigmoid(cosine) + 0.2 cosine; its authors give none"
    demo = PictureRules(0.5, protocol=Protocol())

    @property
    def superpixels(self) -> Superpixels | None:
        """Those of its benchmark."""
        key = UNRELEASED.get(str(self.key), self.key)
        found = SETTINGS.get(str(key), SETTINGS["context59"])
        return found if self.options.superpixels else None

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """Those without a background: its authors released nothing for the others."""
        return [row for row in BENCHMARKS.values() if not row.background]

    @property
    def patch_size(self) -> int:
        return patch_size(MODELS[self.model][1])

    def threshold(self, row: Benchmark) -> None:
        """There is no published one: `evaluate` asks for it."""

    def remarks(self, row: Benchmark) -> list[str]:
        """Whose superpixels a benchmark without its own takes."""
        remarks = super().remarks(row)
        if row.key in UNRELEASED and self.options.superpixels:
            theirs = UNRELEASED[row.key]
            remarks.append(f"{self.model} has no superpixels for {row.key}: those of {theirs}")
        return remarks

    def check(self) -> None:
        super().check()
        if self.superpixels is not None:
            optional_module(*_SKIMAGE)

    def settings(self) -> dict[str, Any]:
        superpixels = self.superpixels and dataclasses.asdict(self.superpixels)
        found = {"neighbours": self.options.neighbours, "superpixels": superpixels}
        return {**super().settings(), **found}

    def text_settings(self) -> dict[str, Any]:
        """All that the prototypes of classes depend on."""
        settings = self.settings()
        return {name: settings[name] for name in ("model", "weights", "bank", "neighbours")}

    def load_parts(self, device: torch.device) -> tuple[Any, ...]:
        clip, dino, (_, bank) = self.parts.values()
        image, text = load_clip(*clip, device)
        vision = load_vision(*dino, device)
        return image, text, vision, load_bank(bank, image.embed_dim, vision.embed_dim)

    def choices(self) -> dict[str, Any]:
        return {"neighbours": self.options.neighbours, "superpixels": self.superpixels}
