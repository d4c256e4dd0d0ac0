"""What methods share that compare patches with words in CLIP's space, and take softmax over them.

Averaged cosines become labels in this order: refinement, softmax over all words, the best word of
every class, and the background where no class is probable enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.clip_image import (
    ClipImage,
    create_image_tower,
    crop_margins,
    load_clip,
    margins,
)
from talk2dino.backbones.templates import prompt_means
from talk2dino.backbones.text import TextEncoder, check_clip
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.files import content_digest, shipped
from talk2dino.methods.base import (
    PAPERS_TABLE,
    ComposedMethod,
    MethodOptions,
    Parts,
    PictureRules,
    Published,
)
from talk2dino.methods.dense import DenseSegmenter
from talk2dino.pictures.vocabularies import Vocabulary, read_word_lists
from talk2dino.refine.refinement import PAMR, Refinement, RefinementOptions
from talk2dino.segmenter import BACKGROUND, ClassQuery, ClassWords, pool_words
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
def published_words(benchmark: str | None) -> Vocabulary:
    """ProxyCLIP's words for the classes of a benchmark, which other methods share."""
    return read_word_lists(shipped(f"vocabularies/proxyclip_{benchmark}.txt"))


def benchmark_word(benchmark: str | None, name: str) -> str:
    """What the published word lists call MMSegmentation's class `name` of a benchmark."""
    row = BENCHMARKS.get(benchmark or "")
    names = () if row is None else row.classes[row.background :]
    return published_words(benchmark).names[names.index(name)] if name in names else name


def class_words(benchmark: str | None, several: bool) -> ClassWords:
    """By which words the classes of a benchmark are looked for, and the background.

    Args:
        benchmark: key; None for a user's pictures.
        several: people, screens and the background by several each, SCLIP's "name expansion".
    """
    expansions = _EXPANSIONS.get(benchmark, {}) if several else {}
    many = several and benchmark != "context"  # whose background is one word for everyone
    return words_of(
        benchmark,
        lambda name: expansions.get(name, (benchmark_word(benchmark, name),)),
        published_words("voc").background if many else (BACKGROUND,),
    )


def words_of(
    benchmark: str | None, of: Callable[[str], tuple[str, ...]], background: tuple[str, ...]
) -> ClassWords:
    """`ClassWords` that refuse a threshold where a benchmark's every pixel has a class."""
    refusal = (
        f"{benchmark} has no background, found a threshold of {{}}: it would turn unsure pixels "
        "into the first class. Leave it out."
    )
    return ClassWords(of, background, refusal=refusal if benchmark in WITHOUT_BACKGROUND else "")


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


ANY, PICTURES = "any", "pictures"
"""In tables of rules: all that have none of their own; and pictures of a user, if they have."""
Table = Mapping[str, Rules]
"""Of rules, by benchmark."""


def rules_of(table: Table, benchmark: str | None) -> Rules:
    """The rules for a benchmark, or for pictures of a user."""
    return table.get(benchmark or PICTURES, table[ANY])


@dataclass(frozen=True)
class ClipOptions(RefinementOptions, MethodOptions):
    weights: str | None = None
    """CLIP's: pretrained, a file with both towers, or seeded:<n>."""


@dataclass(frozen=True)
class ClipWordMethod(ComposedMethod):
    """A model with its options, whose first part is CLIP, but for `table` and what parts are."""

    Options = ClipOptions
    PARTS: ClassVar[Parts] = (("weights", check_clip),)
    threshold_meaning = "the probability of the best class; the published ones are 0.1 to 0.5"

    table: ClassVar[Table]
    """Its rules."""
    dilations: ClassVar[tuple[int, ...]] = PAMR.dilations
    """Distances of PAMR's neighbours."""

    @property
    def rules(self) -> Rules:
        """Those of its benchmark."""
        return rules_of(self.table, self.key)

    @property
    def demo(self) -> PictureRules:
        """Its own windows, and no background unless it is asked for."""
        rules = rules_of(self.table, None)
        on = tuple(refinement.name for refinement in self.refinements())
        return PictureRules(rules.threshold, protocol=rules.protocol, refines=on)

    def benchmark(self, row: Benchmark) -> Benchmark:
        return row.with_protocol(rules_of(self.table, row.key).protocol)

    @property
    def patch_size(self) -> int:
        with torch.device("meta"):
            return create_image_tower(self.MODELS[self.model][0]).patch_size[0]

    def threshold(self, row: Benchmark) -> float | None:
        return rules_of(self.table, row.key).threshold if row.background else None

    @property
    def published(self) -> Published:
        """Of its authors or of others; nothing with refinements of ours."""
        return Published({}) if self.options.recorded() else super().published

    @property
    def refines(self) -> bool:
        """Whether averaged cosines are refined with PAMR."""
        return bool(self.options.pamr)

    def refinements(self) -> tuple[Refinement, ...]:
        """Those that are on."""
        return dataclasses.replace(self.options, pamr=self.refines).refinements(self.dilations)

    def settings(self) -> dict[str, Any]:
        rules = {"logit_scale": self.rules.logit_scale, "area": self.rules.area}
        return {**super().settings(), **rules, "pamr": self.refines, **self.options.recorded()}

    def text_settings(self) -> dict[str, Any]:
        """CLIP alone: methods that share it share the rows of a word."""
        clip, weights = next(iter(self.parts.values()))
        return {"clip": clip, "weights": content_digest(weights)}

    def load_parts(self, device: torch.device) -> tuple[Any, ...]:
        return load_clip(*self.parts["weights"], device)

    def choices(self) -> dict[str, Any]:
        return {"benchmark": self.key, "refinements": self.refinements()}


class ClipWordSegmenter(DenseSegmenter):
    """A `Finalising` segmenter, but for `patch_features` and `patch_scores`.

    Args:
        image: CLIP's image tower.
        text: and the text tower that belongs to it.
        rules: those of a benchmark, or of a user's pictures.
        words: by which classes are looked for there.
        refinements: applied to averaged cosines of the whole picture; those of patches in their
            place.
        multiple: of pixels, to which windows are padded.
    """

    aligned_corners = False
    follows_edges = False
    """Refinement is the business of `finalise`."""

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        rules: Rules,
        words: ClassWords,
        refinements: Sequence[Refinement] = (),
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.rules = rules
        self.protocol = rules.protocol
        self.words = words
        self.refinements = tuple(refinements)
        self.multiple = multiple

    @property
    def deciding(self) -> tuple[Any, ...]:
        return *self.parts, self.multiple

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """(Q, E), one row of unit length per word."""
        return word_rows(self.text, names)

    @torch.no_grad()
    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Spread `patch_scores` of padded windows over the windows (B, 3, h, w) themselves."""
        size_hw = (windows.shape[-2], windows.shape[-1])
        padded = [side + sum(margins(side, self.multiple)) for side in size_hw]
        spread = F.interpolate(scores, padded, mode="bilinear")
        return crop_margins(spread, size_hw, self.multiple)

    @property
    def pixelwise(self) -> bool:
        """Whether `finalise` may be called for strips of rows."""
        return not super().follows_edges

    @torch.no_grad()
    def finalise(self, scores: Tensor, image: Tensor, query: ClassQuery) -> Tensor:
        """Averaged cosines (Q, H, W) to probabilities (C, H, W).

        Where the best is below the threshold, the background's is 1.
        """
        refined = self.refined(scores[None], image[None])[0]
        probabilities = self.probabilities(refined, query)
        if query.background is not None:
            unsure = probabilities.amax(dim=0) < query.background
            probabilities[0].masked_fill_(unsure, 1.0)
        return probabilities

    def probabilities(self, cosines: Tensor, query: ClassQuery, dim: int = 0) -> Tensor:
        """Cosines of the words (Q, H, W) to probabilities of the classes (C, H, W).

        Softmax over all words, and the best word of every class; or first what a vocabulary says.
        """
        scale = self.rules.logit_scale
        if query.pooling is not None:
            return (scale * pool_words(cosines, query, dim)).softmax(dim)
        return pool_words((scale * cosines).softmax(dim), query, dim)
