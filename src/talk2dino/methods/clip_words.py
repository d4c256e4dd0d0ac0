"""What methods share that compare patches with words in CLIP's space, and take softmax over them.

Averaged cosines become labels in this order: refinement, softmax over all words, the best word of
every class, and the background where no class is probable enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.clip_image import (
    ClipImage,
    check_clip,
    create_image_tower,
    crop_margins,
    margins,
)
from talk2dino.backbones.templates import prompt_means
from talk2dino.backbones.text import TextEncoder
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.files import content_digest, shipped
from talk2dino.methods.base import PAPERS_TABLE, Method, MethodOptions, PictureRules, Published
from talk2dino.methods.dense import DenseSegmenter
from talk2dino.pictures.vocabularies import Vocabulary, read_word_lists
from talk2dino.refine.refinement import PAMR, Refinement, RefinementOptions
from talk2dino.segmenter import BACKGROUND, ClassQuery, ClassWords, Words, pool_words
from talk2dino.sizes import Protocol

WITHOUT_BACKGROUND = PAPERS_TABLE[3:]
"""Benchmarks whose every pixel has a class."""
_CLOTHES = ("shirt", "jeans", "dress", "sweater", "skirt", "jacket")
_PERSON = ("person", *(f"person in {garment}" for garment in _CLOTHES))
_SCREENS = ("television monitor", "tv monitor", "monitor", "television", "screen")
_EXPANSIONS: dict[str | None, dict[str, tuple[str, ...]]] = {
    "voc": {"person": _PERSON, "tvmonitor": _SCREENS},
    "voc20": {"person": _PERSON, "tvmonitor": _SCREENS},
    "coco_object": {"person": (*_PERSON, "body")},
}


@cache
def published_words(benchmark: str) -> Vocabulary:
    """ProxyCLIP's words for the classes of a benchmark, which other methods share."""
    return read_word_lists(shipped(f"vocabularies/proxyclip_{benchmark}.txt"))


@cache
def _words_by_name(benchmark: str | None) -> dict[str, str]:
    row = BENCHMARKS.get(benchmark or "")
    if row is None:
        return {}
    return dict(zip(row.classes[row.background :], published_words(row.key).names, strict=True))


def benchmark_word(benchmark: str | None, name: str) -> str:
    """What the published word lists call MMSegmentation's class `name` of a benchmark."""
    return _words_by_name(benchmark).get(name, name)


def class_words(benchmark: str | None, several: bool) -> ClassWords:
    """By which words the classes of a benchmark are looked for, and the background.

    Args:
        benchmark: key; None for a user's pictures.
        several: people, screens and the background by several each, SCLIP's "name expansion".
    """
    expansions = _EXPANSIONS.get(benchmark, {}) if several else {}
    many = several and benchmark != "context"  # whose background is one word for everyone
    return ClassWords(
        of=lambda name: expansions.get(name, (benchmark_word(benchmark, name),)),
        background=published_words("voc").background if many else (BACKGROUND,),
    )


def word_rows(text: TextEncoder, words: Sequence[str]) -> Tensor:
    """(Q, E) of unit length: the mean of a word's 80 prompts, each of unit length before."""
    distinct = list(dict.fromkeys(words))  # a word that comes twice has equal rows, to the bit
    units = partial(F.normalize, dim=-1)
    means = prompt_means(lambda prompts: units(text.encode(prompts)), distinct, "full")
    return units(means)[[distinct.index(word) for word in words]]


@dataclass(frozen=True)
class Rules:
    """How a method is run on a benchmark."""

    protocol: Protocol
    """Size and windows."""
    logit_scale: float = 40.0
    """Of cosines, before the softmax over the words."""
    threshold: float = 0.1
    """A best class less probable than this is background, where there is one."""
    area: float = 0.0
    """A foreground class with at most this share of the foreground pixels is dropped."""


ANY = "any"
"""In tables of rules: all other benchmarks, and pictures of a user."""


@dataclass(frozen=True)
class ClipOptions(RefinementOptions, MethodOptions):
    """Choices beside a model's name."""

    weights: str | None = None
    """CLIP's: pretrained, a file with both towers, or seeded:<n>."""


@dataclass(frozen=True)
class ClipWordMethod(Method):
    """A model with its options, but for `clip`, `table`, `words` and `load`."""

    options: ClipOptions
    key: str | None = None
    """Of the benchmark whose rules are used; None for a user's pictures."""

    Options = ClipOptions
    threshold_meaning = "the probability of the best class; the published ones are 0.1 to 0.5"

    table: ClassVar[Mapping[str, Rules]]
    """Its rules by benchmark."""

    @property
    def clip(self) -> str:
        """Name of its CLIP."""
        raise NotImplementedError

    @property
    def rules(self) -> Rules:
        """Those of its benchmark."""
        return self.table.get(self.key or ANY, self.table[ANY])

    @property
    def demo(self) -> PictureRules:
        """Its own windows, and no background unless it is asked for."""
        rules = self.table[ANY]
        on = tuple(refinement.name for refinement in self.refinements())
        return PictureRules(rules.threshold, protocol=rules.protocol, refines=on)

    def benchmark(self, row: Benchmark) -> Benchmark:
        """The row with the method's own size and windows."""
        return row.with_protocol(self.on(row).rules.protocol)

    @property
    def patch_size(self) -> int:
        """Of CLIP's image tower."""
        with torch.device("meta"):
            return create_image_tower(self.clip).patch_size[0]

    def on(self, row: Benchmark) -> ClipWordMethod:
        """With the rules for a benchmark."""
        return dataclasses.replace(self, key=row.key)

    def threshold(self, row: Benchmark) -> float | None:
        """The published one."""
        return self.on(row).rules.threshold if row.background else None

    @property
    def published(self) -> Published:
        """Of its authors or of others; nothing with refinements of ours."""
        return Published({}) if self.options.recorded() else super().published

    @property
    def refines(self) -> bool:
        """Whether averaged cosines are refined with PAMR."""
        return bool(self.options.pamr)

    def refinements(self, dilations: tuple[int, ...] = PAMR.dilations) -> tuple[Refinement, ...]:
        """Those that are on; PAMR with the method's own distances."""
        return dataclasses.replace(self.options, pamr=self.refines).refinements(dilations)

    def check(self) -> None:
        """See `check_clip`."""
        check_clip(self.clip, self.weights)

    def settings(self) -> dict[str, Any]:
        """Model, weights and rules."""
        return {
            "model": self.model,
            "weights": content_digest(self.weights),
            "logit_scale": self.rules.logit_scale,
            "area": self.rules.area,
            "pamr": self.refines,
            **self.options.recorded(),
        }

    def text_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """CLIP alone: methods that share it share the rows of a word."""
        return {"clip": self.clip, "weights": settings.get("clip_weights", settings["weights"])}


class ClipWordSegmenter(DenseSegmenter):
    """A `Finalising` segmenter, but for `patch_features` and `patch_scores`.

    Args:
        image: CLIP's image tower.
        text: and the text tower that belongs to it.
        benchmark: key of the one that it is set up for; None for a user's pictures.
        table: rules by benchmark.
        words: by which the classes of the benchmark are looked for.
        refinements: applied to averaged cosines of the whole picture; those of patches in their
            place.
    """

    aligned_corners = False

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        benchmark: str | None,
        table: Mapping[str, Rules],
        words: ClassWords,
        refinements: Sequence[Refinement] = (),
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.benchmark = benchmark
        self.rules = table.get(benchmark or ANY, table[ANY])
        self.logit_scale = self.rules.logit_scale
        self.protocol = self.rules.protocol
        self.words = words
        self.refinements = tuple(refinements)
        self.multiple = 1
        """Of pixels, to which windows are padded."""

    @property
    def deciding(self) -> tuple[Any, ...]:
        """Which CLIP, and how windows are padded for it."""
        return self.image.name, self.image.weights, self.multiple

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.image.device

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """(Q, E), one row of unit length per word."""
        return word_rows(self.text, names)

    def query(
        self, names: Sequence[str], background: float | None = None, words: Words | None = None
    ) -> ClassQuery:
        """See `Segmenter.query`; the threshold is one on the probability of the best class."""
        if background is not None and self.benchmark in WITHOUT_BACKGROUND:
            raise ValueError(
                f"{self.benchmark} has no background, found a threshold of {background}: it would "
                "turn unsure pixels into the first class. Leave it out."
            )
        return super().query(names, background, words)

    @torch.no_grad()
    def score_features(self, features: object, windows: Tensor, query: ClassQuery) -> Tensor:
        """Cosines (B, Q, h, w) of the words, from `patch_features` of the same windows."""
        return self.pixel_scores(self.patch_scores(features, query), windows)

    @torch.no_grad()
    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Spread `patch_scores` of padded windows over the windows (B, 3, h, w) themselves."""
        size_hw = (windows.shape[-2], windows.shape[-1])
        padded = [side + sum(margins(side, self.multiple)) for side in size_hw]
        spread = F.interpolate(scores, padded, mode="bilinear")
        return crop_margins(spread, size_hw, self.multiple)

    follows_edges = False
    """Refinement is the business of `finalise`."""

    @property
    def pixelwise(self) -> bool:
        """Whether `finalise` may be called for strips of rows."""
        return not super().follows_edges

    @torch.no_grad()
    def finalise(self, scores: Tensor, image: Tensor, query: ClassQuery) -> Tensor:
        """Averaged cosines (Q, H, W) to probabilities (C, H, W).

        Where the best is below the threshold, the background's is 1.
        """
        probabilities = self.probabilities(self.refined(scores, image), query)
        if query.background is not None:
            unsure = probabilities.amax(dim=0) < query.background
            probabilities[0].masked_fill_(unsure, 1.0)
        return probabilities

    @torch.no_grad()
    def refined(self, scores: Tensor, image: Tensor) -> Tensor:
        """Averages (Q, H, W) of a whole picture (3, H, W) after the refinements."""
        for refinement in self.refinements:
            scores = refinement.pixels(scores[None], image[None])[0]
        return scores

    def probabilities(self, cosines: Tensor, query: ClassQuery, dim: int = 0) -> Tensor:
        """Cosines of the words (Q, H, W) to probabilities of the classes (C, H, W).

        Softmax over all words, and the best word of every class; or first what a vocabulary says.
        """
        if query.pooling is not None:
            return (self.logit_scale * pool_words(cosines, query, dim)).softmax(dim)
        return pool_words((self.logit_scale * cosines).softmax(dim), query, dim)
