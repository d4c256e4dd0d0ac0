"""CLIP-DINOiser (Wysoczańska et al., 2024): CLIP alone, smoothed by what it learned of DINO.

Two convolutions read one of CLIP's middle layers. The first says which patches resemble each other
as DINO's do, and patches are averaged with those; the second says where objects are, as FOUND does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import load_strict, state_of, state_shapes
from talk2dino.backbones.clip_image import (
    ClipImage,
    load_clip,
    queries_keys_values,
)
from talk2dino.backbones.seeded import parse_seeded
from talk2dino.backbones.text import TextEncoder, check_clip
from talk2dino.backbones.vision import exact_positions
from talk2dino.files import find_in_checkout
from talk2dino.methods.base import published
from talk2dino.methods.clip_words import (
    ANY,
    PICTURES,
    ClipOptions,
    ClipWordMethod,
    ClipWordSegmenter,
    Rules,
    rules_of,
    words_of,
)
from talk2dino.refine.refinement import Refinement
from talk2dino.segmenter import BACKGROUND, ClassQuery, ClassWords
from talk2dino.sizes import WHOLE, Protocol


class Heads(nn.Module):
    """What is learned; its names are those of the published file.

    Args:
        width: of CLIP's image tower.
        weights: where the weights came from.
    """

    def __init__(self, width: int, weights: str) -> None:
        super().__init__()
        self.weights = weights
        self.obj_proj = nn.Conv2d(width, width // 3, 3, padding=1, padding_mode="replicate")
        self.bkg_decoder = nn.Conv2d(width, 1, 1)

    def alike(self, middle: Tensor) -> Tensor:
        """Middle features (B, D, h, w) to unit vectors (B, P, D / 3) that are compared."""
        return F.normalize(self.obj_proj(middle), dim=1).flatten(2).transpose(1, 2)

    def objectness(self, middle: Tensor) -> Tensor:
        """(B, h, w) logits of each patch belonging to an object."""
        return self.bkg_decoder(F.normalize(middle, dim=1))[:, 0]


def check_heads(name: str, weights: str) -> None:
    """Raise FileNotFoundError where the convolutions of a model should be, and are not."""
    if parse_seeded(weights) is None and not Path(weights).is_file():
        raise FileNotFoundError(
            f"no weights of CLIP-DINOiser at {weights!r}. Put checkpoints/last.pt of its "
            "repository there, give it as --weights FILE, or try seeded:0."
        )


def load_heads(weights: str, image: ClipImage) -> Heads:
    """The convolutions of a file, `last.pt` or its four tensors alone, or of `seeded:<n>`.

    Raises:
        FileNotFoundError, ValueError: no such file, or one with other tensors; names them.
    """
    heads = Heads(image.model.conv1.out_channels, weights)
    load_strict(heads, state_of(weights, lambda: state_shapes(heads)), weights)
    return heads.eval().requires_grad_(False).to(image.device)


def smooth(features: Tensor, alike: Tensor, least: float = 0.2, rows: int = 1024) -> Tensor:
    """Every patch of a window becomes the weighted mean of those that it resembles.

    Args:
        features: (B, P, E).
        alike: (B, P, K) of unit length, whose products are the weights.
        least: weights below this count as 0; a patch has weight 1 for itself.
        rows: patches done at once, so that a large picture's P * P weights are never all there.
    """
    means = []
    for some in alike.split(rows, dim=1):
        weights = F.threshold(some @ alike.transpose(1, 2), least, 0.0)
        means.append(weights @ features / (weights.sum(dim=-1, keepdim=True) + 1e-6))
    return torch.cat(means, dim=1)


RULES = {
    ANY: Rules(Protocol(), logit_scale=100.0, threshold=0.99),
    PICTURES: Rules(WHOLE, logit_scale=100.0, threshold=0.99),
    "context": Rules(Protocol(), logit_scale=100.0, threshold=0.0),
}
"""By benchmark. Nothing is below the threshold of Context: its background is one word of 60. A
picture of a user is one window, as in the authors' demo."""
MODELS = {
    "clip_dinoiser": ("ViT-B/16-gelu", "clip_dinoiser"),
    "clip_dinoiser_toy": ("toy-gelu", "clip_dinoiser_toy"),
}
"""Name -> CLIP and convolutions."""
_OTHERS = "Talk2DINO's paper"  # which does not tell the protocol
PUBLISHED = {
    "clip_dinoiser": published(_OTHERS, 62.1, 32.4, 34.8, 80.9, 35.9, 24.6, 31.1, 20.0),
    "clip_dinoiser_pamr": published(_OTHERS, 64.6, 33.5, 36.1, 81.5, 37.1, 25.3, 31.5, 20.6),
}
"""As others report it; PAMR is not the authors'."""
_POTTED = {"pottedplant": "potted plant"}
_VOC = {**_POTTED, "diningtable": "dining table"}
_WORDS = {
    **dict.fromkeys(("voc", "voc20"), _VOC),
    **dict.fromkeys(("context", "context59"), _POTTED),
    "coco_object": {"airplane": "aeroplane"},
}


def class_words(benchmark: str | None) -> ClassWords:
    """One word per class of a benchmark; the background's is its name."""
    own = _WORDS.get(benchmark or ANY, {})
    return words_of(benchmark, lambda name: (own.get(name, name),), (BACKGROUND,))


class SmoothedFeatures(NamedTuple):
    """What is known of windows before any class."""

    patches: Tensor
    """(B, P, E) in the space of the text, not normalised."""
    objects: Tensor
    """(B, h, w) bool: the patch belongs to an object."""


class ClipDinoiserSegmenter(ClipWordSegmenter):
    """CLIP whose patches are averaged with those that the heads find alike.

    Probabilities are averaged over windows, and not cosines: a window decides on its background.

    Args:
        image: CLIP's image tower.
        text: its text tower.
        heads: the two convolutions.
        benchmark: whose words are used; None for pictures of a user.
        refinements: applied to averaged probabilities; the authors have none.
    """

    def __init__(
        self,
        image: ClipImage,
        text: TextEncoder,
        heads: Heads,
        benchmark: str | None = None,
        refinements: Sequence[Refinement] = (),
    ) -> None:
        words, multiple = class_words(benchmark), image.patch_size
        rules = rules_of(RULES, benchmark)
        super().__init__(image, text, rules, words, refinements, multiple)
        self.heads = heads

    @torch.no_grad()
    def patch_features(self, windows: Tensor) -> SmoothedFeatures:
        """Windows (B, 3, h, w) to smoothed patches in the space of the text, and objects."""
        dense, middle = self.dense_features(windows)
        patches = smooth(dense, self.heads.alike(middle))
        return SmoothedFeatures(patches, self.heads.objectness(middle) > 0)

    def dense_features(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of CLIP without its last attention (B, P, E), and the middle (B, D, h, w)."""
        missing = [-side % self.multiple for side in windows.shape[-2:]]
        padded = F.pad(windows, (0, missing[1], 0, missing[0]))  # black, at the right and below
        tokens, grid = self.image.tokens(self.image.normalise(padded), exact_positions)
        *blocks, third_last, second_last, last = self.image.blocks
        for block in blocks:
            tokens = block(tokens)
        tokens = tokens + third_last.attention(third_last.ln_1(tokens))
        middle = third_last.ln_2(tokens)
        tokens = second_last(tokens + third_last.mlp(middle))
        tokens = tokens + last.attn.out_proj(queries_keys_values(last, tokens)[2])
        tokens = tokens + last.mlp(last.ln_2(tokens))
        dense = self.image.project(tokens[:, 1:])
        return dense, middle[:, 1:].transpose(1, 2).unflatten(-1, grid)

    @torch.no_grad()
    def patch_scores(self, features: SmoothedFeatures, query: ClassQuery) -> Tensor:
        """Probabilities (B, C, h, w); where no class is probable and no object, the background."""
        cosines = self.cosines(features.patches, query.rows)
        cosines = cosines.unflatten(-1, features.objects.shape[1:])
        found = self.probabilities(cosines, query, dim=1)
        if query.background is None:
            return found
        if found.shape[1] < len(query.names):  # a background without a word
            found = F.pad(found, (0, 0, 0, 0, 1, 0))
        unsure = (found.amax(dim=1) < query.background) & ~features.objects
        found[:, 0].masked_fill_(unsure, 1.0)
        return found

    @torch.no_grad()
    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Spread `patch_scores` over whole patches, and crop to the windows (B, 3, h, w)."""
        high, wide = windows.shape[-2:]
        padded = [side + -side % self.multiple for side in (high, wide)]
        return F.interpolate(scores, padded, mode="bilinear")[..., :high, :wide]

    def finalise(self, scores: Tensor, image: Tensor, query: ClassQuery) -> Tensor:
        """Averaged probabilities are final; the background has its own already."""
        return self.refined(scores[None], image[None])[0]


@dataclass(frozen=True)
class ClipDinoiserOptions(ClipOptions):
    weights: str | None = None
    """The convolutions: the published last.pt, or seeded:<n> for both models."""
    clip_weights: str | None = None
    """CLIP's: pretrained (LAION's), a file with both towers, or seeded:<n>."""


@dataclass(frozen=True)
class ClipDinoiserMethod(ClipWordMethod):
    """CLIP-DINOiser (ECCV 2024)."""

    Options = ClipDinoiserOptions
    PUBLISHED = PUBLISHED
    MODELS = MODELS
    SEGMENTER = ClipDinoiserSegmenter
    PARTS = (("clip_weights", check_clip), ("weights", check_heads))
    table = RULES
    class_words = staticmethod(class_words)
    threshold_meaning = "the probability of the best class, of patches that are no object"

    @property
    def weights(self) -> str:
        """Of the convolutions."""
        if not self.options.weights and not self.toy:
            return str(find_in_checkout(f"weights/{self.model}/last.pt"))
        return super().weights

    def load_parts(self, device: torch.device) -> tuple[Any, ...]:
        image, text = load_clip(*self.parts["clip_weights"], device)
        return image, text, load_heads(self.weights, image)
