"""What methods share that compare patches with words in CLIP's space, and take softmax over them.

Averaged cosines become labels in this order: refinement, softmax over all words, the best word of
every class, and the background where no class is probable enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.clip_image import ClipImage, crop_margins, margins
from talk2dino.backbones.templates import check_names, get_templates
from talk2dino.backbones.text import TextEncoder
from talk2dino.methods.dense import DenseSegmenter
from talk2dino.refine.refinement import Refinement
from talk2dino.segmenter import BACKGROUND, ClassQuery, ClassWords, Words, pool_words

WITHOUT_BACKGROUND = ("voc20", "context59", "coco_stuff", "cityscapes", "ade20k")
"""Benchmarks whose every pixel has a class."""
BACKGROUND_WORDS = (
    *("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk"),
    *("bed", "building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf"),
    *("curtain", "stair", "floor", "hill", "rail", "fence"),
)
"""By which words the background of VOC is looked for."""
_CLOTHES = ("shirt", "jeans", "dress", "sweater", "skirt", "jacket")
_PERSON = ("person", *(f"person in {garment}" for garment in _CLOTHES))
_SCREENS = ("television monitor", "tv monitor", "monitor", "television", "screen")
_EXPANSIONS: dict[str | None, dict[str, tuple[str, ...]]] = {
    "voc": {"person": _PERSON, "tvmonitor": _SCREENS},
    "voc20": {"person": _PERSON, "tvmonitor": _SCREENS},
    "coco_object": {"person": (*_PERSON, "body")},
}
_WRITTEN_AS_ONE = ("ade20k", "cityscapes", "coco_stuff")
_VOC = {"boat": "ship", "diningtable": "table"}


def benchmark_word(benchmark: str | None, name: str) -> str:
    """What the published word lists call MMSegmentation's class `name` of a benchmark."""
    if benchmark in _WRITTEN_AS_ONE:
        return name.replace(" ", "")
    return _VOC.get(name, name) if benchmark in ("voc", "voc20") else name


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
        background=BACKGROUND_WORDS if many else (BACKGROUND,),
    )


def word_rows(text: TextEncoder, words: Sequence[str]) -> Tensor:
    """(Q, E) of unit length: the mean of a word's 80 prompts, each of unit length before."""
    check_names(words)
    templates = get_templates("full")
    prompts = text.encode([template.format(word) for word in words for template in templates])
    means = F.normalize(prompts, dim=-1).unflatten(0, (len(words), len(templates))).mean(dim=1)
    return F.normalize(means, dim=-1)


class ClipWordSegmenter(DenseSegmenter):
    """A `Finalising` segmenter, but for `patch_features` and `patch_scores`.

    Args:
        image: CLIP's image tower.
        text: and the text tower that belongs to it.
        benchmark: key of the one that it is set up for; None for a user's pictures.
        logit_scale: of cosines, before the softmax.
        refinements: applied to averaged cosines of the whole picture.
    """

    aligned_corners = False

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        benchmark: str | None,
        logit_scale: float,
        refinements: Sequence[Refinement] = (),
    ) -> None:
        super().__init__()
        self._refinements = tuple(refinements)
        self.image = image
        self.text = text
        self.benchmark = benchmark
        self.logit_scale = logit_scale
        self.multiple = 1
        """Of pixels, to which windows are padded."""

    @property
    def refinements(self) -> tuple[Refinement, ...]:
        """Of the whole picture's averaged cosines; those of patches in their place."""
        return self._refinements

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

    def cosines(self, patches: Tensor, grid: tuple[int, int], query: ClassQuery) -> Tensor:
        """Cosines (B, Q, gh, gw) of patches (B, P, E) with the words."""
        cosines = torch.einsum("bpe,qe->bqp", F.normalize(patches, dim=-1), query.rows)
        return self.refine_patches(cosines, patches).unflatten(-1, grid)

    @torch.no_grad()
    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Spread `patch_scores` of padded windows over the windows (B, 3, h, w) themselves."""
        size_hw = (windows.shape[-2], windows.shape[-1])
        padded = [side + sum(margins(side, self.multiple)) for side in size_hw]
        spread = F.interpolate(scores, padded, mode="bilinear")
        return crop_margins(spread, size_hw, self.multiple)

    @property
    def follows_edges(self) -> bool:
        """Refinement is the business of `finalise`."""
        return False

    @property
    def pixelwise(self) -> bool:
        """Whether `finalise` may be called for strips of rows."""
        return not self.refinements

    @torch.no_grad()
    def finalise(self, scores: Tensor, image: Tensor, query: ClassQuery) -> Tensor:
        """Averaged cosines (Q, H, W) to probabilities (C, H, W).

        Where the best is below the threshold, the background's is 1.
        """
        for refinement in self.refinements:
            scores = refinement.pixels(scores[None], image[None])[0]
        probabilities = self.probabilities(scores, query)
        if query.background is not None:
            unsure = probabilities.amax(dim=0) < query.background
            probabilities[0].masked_fill_(unsure, 1.0)
        return probabilities

    def probabilities(self, scores: Tensor, query: ClassQuery) -> Tensor:
        """Softmax over the words (Q, H, W), and the best word of every class: (C, H, W)."""
        return pool_words((self.logit_scale * scores).softmax(dim=0), query, dim=0)
