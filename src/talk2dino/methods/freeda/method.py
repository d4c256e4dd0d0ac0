"""FreeDA (Barsellotti et al., 2024): text retrieves visual prototypes, regions resemble one.

A class's prototype is the mean of the bank's vectors whose text keys are nearest to its name. A
superpixel takes the similarity of its mean feature, mixed with CLIP's opinion of the whole window.
Nothing is learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talk2dino.backbones.clip_image import ClipImage, check_clip, exact_positions, load_clip
from talk2dino.backbones.seeded import parse_seeded
from talk2dino.backbones.templates import check_names, get_templates
from talk2dino.backbones.text import TextEncoder, default_weights
from talk2dino.backbones.vision import PRETRAINED, VisionBackbone, check_vision, load_vision
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.config import check_at_least
from talk2dino.devices import in_float32
from talk2dino.files import weights_identity
from talk2dino.methods.base import Method, MethodOptions, PictureRules
from talk2dino.methods.freeda.bank import Bank, check_bank, load_bank
from talk2dino.methods.freeda.superpixels import (
    Superpixels,
    import_felzenszwalb,
    pool_regions,
    region_weights,
)
from talk2dino.segmenter import ClassQuery, ClassWords, Segmenter, Words, make_query
from talk2dino.segmenter import with_background as background_in_front
from talk2dino.sizes import Protocol

MODELS = {
    "freeda_vitl": ("ViT-L/14", "dinov2_vitl14"),
    "freeda_toy": ("toy14", "toy_without_registers"),
}
"""Name -> CLIP and DINOv2."""
_ON = ("voc", "context", "coco_object", "voc20", "context59", "coco_stuff", "cityscapes", "ade20k")
_REPORTED = (44.1, 34.8, 33.9, 85.7, 39.7, 26.3, 33.6, 21.4)
PUBLISHED = {"freeda_vitl": dict(zip(_ON, _REPORTED, strict=True))}
"""mIoU in percent, run again by its authors for Talk2DINO's paper; its superpixels are not said."""
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
_LOCAL, _GLOBAL = 0.8, 0.2


class FreeDAFeatures(NamedTuple):
    """What is known of windows before any class."""

    patches: Tensor
    """(B, P, D) of DINOv2, of unit length."""
    embeddings: Tensor
    """(B, E) of CLIP, of unit length."""
    regions: list[tuple[Tensor, Tensor]]
    """Per window, labels (H, W) and mean features (R, D) of unit length, zero where a region lies
    between the patches. Empty without superpixels."""


class FreeDASegmenter(nn.Module):
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
        self.words = ClassWords()
        self.protocol = Protocol()

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.image.device

    # -- From names to prototypes --

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """(C, D + E), one row per name: its prototype and its text."""
        texts = self.embed_texts(check_names(names))
        found = self.bank.class_prototypes(texts, self.neighbours, names)
        return torch.cat([F.normalize(found, eps=1e-6).to(texts.device), texts], dim=1)

    def embed_texts(self, names: Sequence[str]) -> Tensor:
        """(C, E) of unit length: the mean of a name's 7 prompts, which are not normalised."""
        templates = get_templates("subset")
        prompts = self.text.encode([t.format(name) for name in names for t in templates])
        means = prompts.unflatten(0, (len(names), len(templates))).mean(dim=1)
        return F.normalize(means, eps=1e-6)

    def query(
        self, names: Sequence[str], background: float | None = None, words: Words | None = None
    ) -> ClassQuery:
        """See `Segmenter.query`; the background is a constant score, the threshold."""
        labels, of_labels = self.words.lists(names, background, words)
        return make_query(labels, background, of_labels, self.embed_classes)

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

    def shares_features(self, other: object) -> bool:
        """Whether `other` computes the same `patch_features`."""
        return (
            isinstance(other, FreeDASegmenter)
            and self.superpixels == other.superpixels
            and all(
                (mine.name, mine.weights) == (its.name, its.weights)
                for mine, its in ((self.image, other.image), (self.vision, other.vision))
            )
        )

    @in_float32
    def patch_features(self, windows: Tensor) -> FreeDAFeatures:
        """Windows (B, 3, h, w) RGB in [0, 255], each on its own, to patches and regions."""
        if windows.ndim != 4 or windows.shape[1] != 3:
            raise ValueError(f"windows must be (B, 3, h, w), found {tuple(windows.shape)}.")
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
    def window_scores(self, windows: Tensor, query: ClassQuery) -> Tensor:
        """See `Segmenter.window_scores`."""
        return self.score_features(self.patch_features(windows), windows, query)

    @in_float32
    def score_features(
        self, features: FreeDAFeatures, windows: Tensor, query: ClassQuery
    ) -> Tensor:
        """`window_scores` of windows whose `patch_features` are there already."""
        texts = query.rows[:, features.patches.shape[-1] :]
        scores = self.local_scores(features, windows, query).mul_(_LOCAL)
        scores += _GLOBAL * (features.embeddings @ texts.T)[..., None, None]
        return background_in_front(scores, query, dim=1)

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
        for window, (labels, pooled) in zip(scores, features.regions):
            of_regions = torch.sigmoid(prototypes @ pooled.T)
            kept = pooled.any(dim=1)[labels]
            window[:, kept] = of_regions[:, labels[kept]]
        return scores


def _side(patches: Tensor) -> int:
    return round(patches.shape[1] ** 0.5)


# -- The method with its options --


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

    def threshold(self, row: Benchmark) -> None:
        """There is no published one: `evaluate` asks for it."""

    def describe(self) -> tuple[str, list[str]]:
        """What is loaded, and whose superpixels a benchmark without its own takes."""
        text, notes = super().describe()
        if self.key in UNRELEASED and self.superpixels is not None:
            theirs = UNRELEASED[self.key]
            notes.append(f"nothing is published for {self.key}: superpixels as for {theirs}")
        return text, notes

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
            "weights": weights_identity(self.clip_weights),
            "vision_weights": weights_identity(self.vision_weights),
            "bank": weights_identity(str(self.bank)),
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
