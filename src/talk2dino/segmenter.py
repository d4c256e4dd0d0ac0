"""The seam between methods and everything around them, and Talk2DINO behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.templates import check_names, get_templates
from talk2dino.backbones.text import BertEncoder, TextEncoder, TextFeatures, load_text, trimmed
from talk2dino.backbones.vision import PatchFeatures, VisionBackbone, load_vision
from talk2dino.devices import mixed_precision
from talk2dino.methods.talk2dino.background import clean_background
from talk2dino.methods.talk2dino.config import PRECISIONS, SegmenterConfig
from talk2dino.methods.talk2dino.projection import CLIPLastLayer, Projection, load_projection
from talk2dino.refine.pamr import pamr

_EPS = 1e-6  # of the normalisations in the published inference code
_PROMPT_BATCH = 256


class Segmenter(Protocol):
    """What the evaluator and the demo need of a method; background rules stay inside it."""

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """(C, D), one unit-length row per class; the method owns its templates."""

    def window_scores(self, windows: Tensor, classes: Tensor, background: float | None) -> Tensor:
        """Score every pixel of every window.

        Args:
            windows: (B, 3, h, w) RGB float in [0, 255].
            classes: (C, D) from `embed_classes`.
            background: threshold of the background, or None for no background channel.

        Returns:
            (B, C, h, w), or (B, C+1, h, w) with channel 0 = background.
        """


@runtime_checkable
class FeatureSharing(Protocol):
    """A segmenter whose backbone need not run again for other classes or options."""

    def shares_features(self, other: object) -> bool:
        """Whether `other` computes the same `patch_features`."""

    def patch_features(self, windows: Tensor) -> Any:
        """What `score_features` needs of windows (B, 3, h, w)."""

    def score_features(
        self, features: Any, windows: Tensor, classes: Tensor, background: float | None
    ) -> Tensor:
        """As `Segmenter.window_scores`, from `patch_features` of the same windows."""


@runtime_checkable
class PatchScoring(FeatureSharing, Protocol):
    """A segmenter that scores patches and spreads these scores over the pixels, class by class.

    Its background, if any, is a constant channel; so nobody has to hold all classes at all pixels.
    """

    def patch_scores(self, features: Any, classes: Tensor) -> Tensor:
        """Scores (B, C, gh, gw) of the patches, from `patch_features`, without a background."""

    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Any classes' `patch_scores` (B, c, gh, gw) over windows (B, 3, h, w): (B, c, h, w)."""

    @property
    def follows_edges(self) -> bool:
        """Whether `pixel_scores` is more than bilinear interpolation with aligned corners."""


@runtime_checkable
class Grouping(Protocol):
    """A segmenter that divides a window into groups before it knows any class."""

    def group_maps(self, windows: Tensor) -> list[Tensor]:
        """One (B, G, h, w) per stage of grouping: how much each pixel belongs to each group.

        Args:
            windows: (B, 3, h, w) RGB float in [0, 255].
        """


def require_groups(segmenter: object) -> Grouping:
    """`segmenter` if it has group maps.

    Raises:
        ValueError: its method has none.
    """
    if isinstance(segmenter, Grouping):
        return segmenter
    raise ValueError(
        f"{type(segmenter).__name__} has no groups, so there are no group maps of it. They exist "
        "for methods with group tokens, such as ovsegmentor_vitb."
    )


class Talk2DinoSegmenter:
    """Open-vocabulary segmentation by the cosine of DINO patches and projected class names.

    Args:
        vision: frozen backbone.
        text: frozen text encoder.
        projection: trained map between the two.
        config: templates, input size and refinements; the models are those above.
    """

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextEncoder | BertEncoder,
        projection: Projection,
        config: SegmenterConfig,
    ) -> None:
        for side, width, expected in (
            ("text", text.embed_dim, config.projection.clip_embed_dim),
            ("vision", vision.embed_dim, config.projection.dino_embed_dim),
        ):
            if width != expected:
                raise ValueError(
                    f"the {side} model gives vectors of width {width}, but the projection expects "
                    f"{expected}. Choose the {side} model that the projection was trained with."
                )
        vision.check_size(config.input_size, config.input_size)
        self.vision = vision
        self.text = text
        self.projection = projection
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.vision.mean.device

    def to(self, device: str | torch.device) -> Talk2DinoSegmenter:
        """Move the models; returns the segmenter itself."""
        for part in (self.vision, self.text, self.projection):
            part.to(device)
        return self

    @torch.no_grad()
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Embed class names: mean of the prompts' text vectors, projected, of unit length.

        Raises:
            ValueError: no name, or an empty one.
        """
        check_names(names)
        templates = get_templates(self.config.template)
        prompts = [template.format(name) for name in names for template in templates]
        embeddings = self._embed_prompts(prompts)
        return self._class_embeddings(embeddings.unflatten(0, (len(names), len(templates))))

    @torch.no_grad()
    def embed_class_tokens(self, tokens: Tensor) -> Tensor:
        """As `embed_classes`, from CLIP's token ids (C, T, 77) of every class's T prompts."""
        embeddings = self._embed_tokens(tokens.flatten(0, 1))
        return self._class_embeddings(embeddings.unflatten(0, tuple(tokens.shape[:2])))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts as they are, without templates: (N, D) in the space of the patches, unnormalised.

        Raises:
            ValueError: no text at all.
        """
        if not texts:
            raise ValueError("no texts given. At least one is needed.")
        return self._project(self._embed_prompts(texts))

    @torch.no_grad()
    def window_scores(self, windows: Tensor, classes: Tensor, background: float | None) -> Tensor:
        """See `Segmenter.window_scores`; scores are sigmoid(cosine), refined as configured.

        The background's score is the threshold itself, everywhere: 0.55 is cosine 0.2007.
        """
        if windows.ndim != 4 or windows.shape[1] != 3:
            raise ValueError(f"windows must be (B, 3, h, w), found {tuple(windows.shape)}.")
        return self.score_features(self.patch_features(windows), windows, classes, background)

    @torch.no_grad()
    def score_features(
        self,
        features: PatchFeatures,
        windows: Tensor,
        classes: Tensor,
        background: float | None,
    ) -> Tensor:
        """`window_scores` of windows whose `patch_features` are there already."""
        scores = self.pixel_scores(self.patch_scores(features, classes), windows)
        if background is None:
            return scores
        constant = torch.full_like(scores[:, :1], background)
        return torch.cat([constant, scores], dim=1)

    @torch.no_grad()
    def patch_scores(self, features: PatchFeatures, classes: Tensor) -> Tensor:
        """Scores (B, C, gh, gw) of the patches: sigmoid(cosine), cleaned as configured."""
        masks = patch_cosines(features.patches, classes).sigmoid()
        if self.config.clean_background:
            masks = clean_background(masks, features.patches, features.attention_logits, classes)
        side = self.config.input_size // self.vision.patch_size
        return masks.unflatten(-1, (side, side))

    @torch.no_grad()
    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Spread `patch_scores` (B, c, gh, gw) over windows (B, 3, h, w); classes do not interact.

        Returns:
            (B, c, h, w), refined as configured.
        """
        spread = F.interpolate(scores, size=windows.shape[-2:], mode="bilinear", align_corners=True)
        return pamr(windows, spread) if self.config.pamr else spread

    @property
    def follows_edges(self) -> bool:
        """Whether `pixel_scores` is more than bilinear interpolation with aligned corners."""
        return self.config.pamr

    @torch.no_grad()
    def patch_features(self, windows: Tensor) -> PatchFeatures:
        """Backbone features of windows (B, 3, h, w), with patches in the space of the classes."""
        with mixed_precision(PRECISIONS[self.config.precision], windows.device):
            features = self.vision(self.vision.normalise(self.resize_windows(windows)))
        return PatchFeatures(
            cls=features.cls.float(),
            patches=self.projection.project_visual(features.patches.float()),
            attention_logits=features.attention_logits.float(),
            penultimate_cls=features.penultimate_cls.float(),
        )

    def resize_windows(self, windows: Tensor) -> Tensor:
        """Windows (B, 3, h, w) to the backbone's input (B, 3, side, side); the ratio is lost."""
        side = self.config.input_size
        if windows.shape[-2:] == (side, side):
            return windows
        return F.interpolate(
            windows, size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )

    def variant(self, **changes: Any) -> Talk2DinoSegmenter:
        """The same models with other options of inference, such as `pamr=True`."""
        config = dataclasses.replace(self.config, **changes)
        return Talk2DinoSegmenter(self.vision, self.text, self.projection, config)

    def shares_features(self, other: object) -> bool:
        """Whether `other` computes the same `patch_features`."""
        return (
            isinstance(other, Talk2DinoSegmenter)
            and self.vision is other.vision
            and self.projection is other.projection
            and self.config.input_size == other.config.input_size
            and self.config.precision == other.config.precision
        )

    def _class_embeddings(self, prompts: Tensor) -> Tensor:
        """Text vectors (C, T, E) of every class's prompts to unit-length classes (C, D)."""
        # As published, CLIP's vectors are averaged without normalising them first.
        return F.normalize(self._project(prompts.mean(dim=1)), dim=-1, eps=_EPS)

    def _project(self, embeddings: Tensor) -> Tensor:
        """What `_embed_prompts` returns, to the space of the patches (..., D)."""
        if isinstance(self.projection, CLIPLastLayer):  # which has projected every prompt
            return embeddings
        return self.projection.project_clip_txt(embeddings)

    def _embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts (N,) to text vectors (N, E), or (N, D) where the projection holds CLIP's end."""
        if isinstance(self.text, TextEncoder):
            return self._embed_tokens(trimmed(self.text.tokenize(prompts)))
        if isinstance(self.projection, CLIPLastLayer) or self.config.average_tokens:
            raise ValueError(f"{self.text.name} is no CLIP text encoder, which this model needs")
        return self.text.encode(prompts)

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        """As `_embed_prompts`, from CLIP's token ids (N, T)."""
        assert isinstance(self.text, TextEncoder)
        embedded = []
        for batch in tokens.to(self.device).split(_PROMPT_BATCH):
            if isinstance(self.projection, CLIPLastLayer):
                features = self.text(batch, penultimate=True)
                embedded.append(
                    self.projection.project_clip_txt(features.penultimate, features.end_positions)
                )
            elif self.config.average_tokens:
                embedded.append(self._average_tokens(self.text(batch, dense=True)))
            else:
                embedded.append(self.text(batch).pooled.float())
        return torch.cat(embedded)

    def _average_tokens(self, features: TextFeatures) -> Tensor:
        """Dense text features to (B, E): the mean over each prompt's own tokens."""
        assert features.tokens is not None
        kept = features.mask.clone()
        if not self.config.keep_cls:
            kept[:, 0] = False
        if not self.config.keep_end_seq:
            kept.scatter_(1, features.end_positions[:, None], False)
        total = (features.tokens * kept[..., None]).sum(dim=1)
        return total / kept.sum(dim=1, keepdim=True).clamp(min=1)


def patch_cosines(patches: Tensor, classes: Tensor) -> Tensor:
    """Cosines (B, C, P) of patches (B, P, D) with unit-length classes (C, D)."""
    return torch.einsum("bpd,cd->bcp", F.normalize(patches, dim=-1, eps=_EPS), classes)


def build_segmenter(
    config: SegmenterConfig, device: str | torch.device = "cpu"
) -> Talk2DinoSegmenter:
    """Load everything a configuration names.

    Raises:
        ValueError, FileNotFoundError: see `SegmenterConfig.check`; also weights that do not fit.
        RuntimeError: weights could not be downloaded.
    """
    config.check()
    # The projection first: it is the one whose file most often does not fit, and loads at once.
    projection = load_projection(config.projection, config.projection_weights, device)
    vision = load_vision(config.vision_model, config.vision_weights, device)
    text = load_text(config.text_model, config.text_weights, device)
    return Talk2DinoSegmenter(vision, text, projection, config)
