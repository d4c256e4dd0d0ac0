"""Talk2DINO behind the seam: patches of a window against projected class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.templates import prompt_means
from talk2dino.backbones.text import BertEncoder, TextEncoder, load_text, text_from_state
from talk2dino.backbones.vision import (
    PatchFeatures,
    VisionBackbone,
    check_sides,
    load_vision,
    vision_from_state,
)
from talk2dino.config import as_texts
from talk2dino.devices import in_float32, mixed_precision
from talk2dino.methods.dense import DenseSegmenter
from talk2dino.methods.talk2dino.config import PRECISIONS, SegmenterConfig
from talk2dino.methods.talk2dino.hub.layout import read_parts
from talk2dino.methods.talk2dino.projection import (
    CLIPLastLayer,
    Projection,
    average_tokens,
    load_projection,
)
from talk2dino.refine.refinement import Refinement
from talk2dino.segmenter import ClassQuery, pool_words


def clean_background(
    masks: Tensor,
    patches: Tensor,
    attention_logits: Tensor,
    classes: Tensor,
    weight: float = 0.2,
) -> Tensor:
    """Mix into every class map the attention of the heads that resemble the class.

    A foreground class gains inside objects, which the CLS token attends to, and so rises above a
    fixed background threshold there. Windows do not influence each other.

    Args:
        masks: (B, C, P) sigmoid of the cosine between patches and classes.
        patches: (B, P, D) patch embeddings, not normalised.
        attention_logits: (B, H, P) CLS towards every patch, before softmax.
        classes: (C, D) unit-length class embeddings.
        weight: the paper's lambda, the share of the attention map.

    Returns:
        (B, C, P).
    """
    if masks.shape[1] == 0:
        return masks.clone()
    # As published, heads are pooled with the logits themselves, not with their softmax.
    heads = torch.einsum("bhp,bpd->bhd", attention_logits, patches) / patches.shape[1]
    heads = F.normalize(heads, dim=-1)
    head_weights = torch.einsum("cd,bhd->bch", classes, heads).softmax(dim=-1)
    attention = torch.einsum("bch,bhp->bcp", head_weights, attention_logits).softmax(dim=-1)
    lowest, highest = attention.amin(dim=(1, 2)), attention.amax(dim=(1, 2))
    # As published, divided by the maximum and not by the range.
    attention = (attention - lowest[:, None, None]) / highest[:, None, None]
    floor, ceiling = masks.amin(dim=(1, 2))[:, None, None], masks.amax(dim=(1, 2))[:, None, None]
    attention = attention * (ceiling - floor) + floor
    return (masks + weight * attention) / (1 + weight)


PARTS: dict[str, Any] = {
    "vision": VisionBackbone,
    "text": TextEncoder | BertEncoder,
    "projection": Projection,
}
"""The models of a `Talk2DinoSegmenter`, by attribute, and what they are."""
EPS = 1e-6
"""Of the normalisations in the published inference code."""
_PROMPT_BATCH = 256


def _check_fit(vision: Any, text: Any, projection: Projection) -> None:
    """Raise ValueError unless the widths of the frozen models are those of the projection."""
    for side, width, expected in (
        ("text", text.embed_dim, projection.config.clip_embed_dim),
        ("vision", vision.embed_dim, projection.config.dino_embed_dim),
    ):
        if width != expected:
            raise ValueError(
                f"the {side} model gives vectors of width {width}, but the projection expects "
                f"{expected}. Choose the {side} model that the projection was trained with."
            )


class Talk2DinoSegmenter(DenseSegmenter):
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
        super().__init__()
        _check_fit(vision, text, projection)
        check_sides(vision.name, vision.patch_size, config.input_size)
        self.vision = vision
        self.text = text
        self.projection = projection
        self.config = config

    def __setattr__(self, name: str, value: Any) -> None:
        """A part can be replaced by another that fits the others.

        Raises:
            ValueError: something else, or a model that does not fit.
        """
        parts = self.__dict__.get("_modules", {})
        if name in parts:
            if not isinstance(value, PARTS[name]):
                raise ValueError(
                    f"{name} is a {type(parts[name]).__name__}, found {type(value).__name__}. "
                    "load_vision, load_text and load_projection make such parts."
                )
            _check_fit(**{**parts, name: value})
        super().__setattr__(name, value)

    @property
    def refinements(self) -> tuple[Refinement, ...]:  # type: ignore[override]
        return self.config.refinements()

    @in_float32
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Embed class names: mean of the prompts' text vectors, projected, of unit length.

        Raises:
            ValueError: no name, or an empty one.
        """
        # As published, CLIP's vectors are averaged without normalising them first.
        means = prompt_means(self._embed_prompts, names, self.config.template)
        return F.normalize(self._project(means), dim=-1, eps=EPS)

    @in_float32
    def embed_class_tokens(self, tokens: Tensor) -> Tensor:
        """As `embed_classes`, from CLIP's token ids (C, T, 77) of every class's T prompts."""
        prompts = self._embed_tokens(tokens.flatten(0, 1)).unflatten(0, tuple(tokens.shape[:2]))
        return F.normalize(self._project(prompts.mean(dim=1)), dim=-1, eps=EPS)

    @in_float32
    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """Texts as they are, without templates: (N, D) in the space of the patches, unnormalised.

        Raises:
            ValueError: no text at all.
        """
        if not (given := as_texts(texts)):
            raise ValueError("no texts given. At least one is needed.")
        return self._project(self._embed_prompts(given))

    @in_float32
    def patch_scores(self, features: PatchFeatures, query: ClassQuery) -> Tensor:
        """Scores (B, K, gh, gw) of the patches: sigmoid(cosine), cleaned as configured.

        The background's score is its threshold, everywhere: 0.55 is cosine 0.2007.
        """
        masks = self.cosines(features.patches, query.rows, EPS).sigmoid()
        if self.config.clean_background:
            masks = clean_background(masks, features.patches, features.attention_logits, query.rows)
        side = self.config.input_size // self.vision.patch_size
        if query.pooling == "lse":  # of cosines, after the cleaning, which is of every word
            masks = pool_words(masks.logit(1e-6), query).sigmoid()
        else:
            masks = pool_words(masks, query)
        return masks.unflatten(-1, (side, side))

    @in_float32
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

    @property
    def deciding(self) -> tuple[Any, ...]:
        return self.vision, self.projection, self.config.input_size, self.config.precision

    def _project(self, embeddings: Tensor) -> Tensor:
        """What `_embed_prompts` returns, to the space of the patches (..., D)."""
        if isinstance(self.projection, CLIPLastLayer):  # which has projected every prompt
            return embeddings
        return self.projection.project_clip_txt(embeddings)

    def _embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts (N,) to text vectors (N, E), or (N, D) where the projection holds CLIP's end."""
        if isinstance(self.text, TextEncoder):
            return self._embed_tokens(self.text.trimmed(self.text.tokenize(prompts)))
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
                dense = self.text(batch, dense=True)
                assert dense.tokens is not None
                kept = (self.config.keep_cls, self.config.keep_end_seq)
                embedded.append(average_tokens(dense.tokens, dense.mask, *kept))
            else:
                embedded.append(self.text(batch).pooled.float())
        return torch.cat(embedded)


def patch_cosines(patches: Tensor, classes: Tensor) -> Tensor:
    """Cosines (B, C, P) of patches (B, P, D) with unit-length classes (C, D)."""
    return torch.einsum("bpd,cd->bcp", F.normalize(patches, dim=-1, eps=EPS), classes)


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
    projection = load_projection(config.projection, config.projection_weights)
    text: TextEncoder | BertEncoder
    if config.whole:
        parts = read_parts(config.whole)
        vision = vision_from_state(config.vision_model, parts.vision, config.whole)
        text = text_from_state(config.text_model, parts.text, config.whole)
    else:
        vision = load_vision(config.vision_model, config.vision_weights, device)
        text = load_text(config.text_model, config.text_weights, device)
    config = dataclasses.replace(config, text_model=text.name)  # with its activation
    return Talk2DinoSegmenter(vision, text, projection, config).to(device)
