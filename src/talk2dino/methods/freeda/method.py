"""FreeDA as evaluation and the commands know it: models, options, published numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from talk2dino.backbones.clip_image import check_clip, load_clip
from talk2dino.backbones.seeded import parse_seeded
from talk2dino.backbones.text import default_weights
from talk2dino.backbones.vision import PRETRAINED, check_vision, load_vision, patch_size
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.config import check_at_least
from talk2dino.files import content_digest
from talk2dino.methods.base import Method, MethodOptions, PictureRules, published
from talk2dino.methods.freeda.bank import check_bank, load_bank
from talk2dino.methods.freeda.segmenter import FreeDASegmenter, Superpixels, import_felzenszwalb
from talk2dino.segmenter import Segmenter
from talk2dino.sizes import Protocol

MODELS = {
    "freeda_vitl": ("ViT-L/14", "dinov2_vitl14"),
    "freeda_toy": ("toy14", "toy_without_registers"),
}
"""Name -> CLIP and DINOv2."""
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
    """Choices beside a model's name."""

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
class FreeDAMethod(Method):
    """FreeDA (CVPR 2024)."""

    options: FreeDAOptions
    key: str | None = None
    """Of the benchmark whose superpixels are used; None for a user's pictures."""

    NAMES = tuple(MODELS)
    Options = FreeDAOptions
    PUBLISHED = PUBLISHED
    threshold_meaning = "0.8 sigmoid(cosine) + 0.2 cosine; its authors give none"

    @property
    def clip_weights(self) -> str:
        """Of both towers of CLIP."""
        return self.options.weights or default_weights(MODELS[self.model][0])

    @property
    def seeded(self) -> str | None:
        """What stands for the other parts where CLIP has no real weights."""
        return self.clip_weights if parse_seeded(self.clip_weights) is not None else None

    @property
    def vision_weights(self) -> str:
        """Of DINOv2."""
        return self.options.vision_weights or self.seeded or PRETRAINED

    @property
    def bank(self) -> str | None:
        """Where its prototypes are."""
        return self.options.bank or self.seeded

    @property
    def superpixels(self) -> Superpixels | None:
        """Those of its benchmark."""
        key = UNRELEASED.get(str(self.key), self.key)
        found = SETTINGS.get(str(key), SETTINGS["context59"])
        return found if self.options.superpixels else None

    @property
    def demo(self) -> PictureRules:
        """The benchmarks' windows, and no background unless it is asked for."""
        return PictureRules(0.5, protocol=Protocol())

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """Those without a background: its authors released nothing for the others."""
        return [row for row in BENCHMARKS.values() if not row.background]

    def on(self, row: Benchmark) -> FreeDAMethod:
        """With the superpixels of a benchmark."""
        return dataclasses.replace(self, key=row.key)

    @property
    def patch_size(self) -> int:
        """Of DINOv2."""
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
        """See `check_clip`, `check_vision`, `check_bank`."""
        clip, vision = MODELS[self.model]
        check_clip(clip, self.clip_weights)
        check_vision(vision, self.vision_weights)
        check_bank(self.bank, self.model)
        if self.superpixels is not None:
            import_felzenszwalb()

    def settings(self) -> dict[str, Any]:
        """Model, weights, bank and superpixels."""
        superpixels = self.superpixels
        return {
            "model": self.model,
            "weights": content_digest(self.clip_weights),
            "vision_weights": content_digest(self.vision_weights),
            "bank": content_digest(str(self.bank)),
            "neighbours": self.options.neighbours,
            "superpixels": superpixels and dataclasses.asdict(superpixels),
        }

    def text_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All that the prototypes of classes depend on."""
        kept = ("model", "weights", "bank", "neighbours")
        return {name: settings[name] for name in kept}

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> FreeDASegmenter:
        """See `load_clip`, `load_vision` and `load_bank`."""
        if isinstance(loaded, FreeDASegmenter):
            parts = (loaded.image, loaded.text, loaded.vision, loaded.bank)
        else:
            clip, vision_name = MODELS[self.model]
            image, text = load_clip(clip, self.clip_weights, device)
            vision = load_vision(vision_name, self.vision_weights, device)
            bank = load_bank(str(self.bank), image.embed_dim, vision.embed_dim)
            parts = (image, text, vision, bank)
        return FreeDASegmenter(*parts, self.options.neighbours, self.superpixels)
