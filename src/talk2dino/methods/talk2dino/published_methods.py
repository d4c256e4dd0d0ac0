"""The methods of the published model class, under their names and with their meaning.

They are here for code that was written against it. Unlike everything else in this package,
`generate_masks` takes BGR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.templates import check_names, get_templates
from talk2dino.backbones.text import TextEncoder
from talk2dino.devices import in_float32
from talk2dino.methods.talk2dino.segmenter import Talk2DinoSegmenter, patch_cosines
from talk2dino.segmenter import ClassQuery

BACKGROUND_FUNCTION = "weighted_average_sigmoid"
LAMBDA = 0.2
"""The published weight of background cleaning."""


class PublishedMethods:
    """Mixed into `Talk2DINO`; needs its `segmenter`."""

    segmenter: Talk2DinoSegmenter

    def build_dataset_class_tokens(self, template_set: str, classnames: Sequence[str]) -> Tensor:
        """Token ids (C, T, 77) of C class names in the T prompts of a template set.

        Args:
            template_set: name of the prompts, as `sub_imagenet_template` (= `subset`) or `full`.
            classnames: the classes, without the background.

        Raises:
            ValueError: an unknown set; no class, an empty one or one that is no text; a text
                encoder that is no CLIP.
        """
        names, templates = check_names(classnames), get_templates(template_set)
        tokenize = self._clip_text().tokenize
        tokens = [tokenize([template.format(name) for template in templates]) for name in names]
        return torch.stack(tokens).to(self.segmenter.device)

    def build_text_embedding(self, text: Tensor) -> Tensor:
        """Unit-length class embeddings (C, D) of the tokens (C, T, 77) of their prompts.

        The mean of the prompts' CLIP vectors, projected; what `segmenter.embed_classes` gives.

        Raises:
            ValueError: another shape or type, or a text encoder that is no CLIP.
        """
        self._clip_text()
        _check_tensor("tokens", text, "(C, T, 77) whole numbers", 3, whole=True)
        return self.segmenter.embed_class_tokens(text.long())

    @in_float32
    def generate_masks(
        self,
        image: Tensor,
        img_metas: Any,
        text_emb: Tensor,
        classnames: Sequence[str] | None = None,
        text_is_token: bool = False,
        apply_pamr: bool = False,
        background_func: str = BACKGROUND_FUNCTION,
        lambda_bg: float = LAMBDA,
    ) -> tuple[Tensor, Tensor]:
        """Score windows, without a background channel.

        Args:
            image: (B, 3, H, W) **BGR**, float in [0, 255], as MMSegmentation loads pictures.
            img_metas, classnames: not used; the published callers pass them.
            text_emb: (C, D) from `build_text_embedding`.
            text_is_token: only false is supported: classes are compared by one vector each.
            apply_pamr: refine the masks along the image's edges.
            background_func: how cleaning mixes; there is one way.
            lambda_bg: weight of the cleaning, which is on if the model's `clean_background` is.

        Returns:
            masks (B, C, H, W): sigmoid(cosine), cleaned and refined;
            cosines (B, C, h, w) on the grid of patches, before both.

        Raises:
            ValueError: other shapes or types, or an option that is not supported.
        """
        _check_tensor("image", image, "(B, 3, H, W) BGR", 4)
        _check_tensor("text_emb", text_emb, "(C, D) of build_text_embedding", 2)
        for name, found, only in (
            ("text_is_token", text_is_token, False),
            ("background_func", background_func, BACKGROUND_FUNCTION),
            ("lambda_bg", lambda_bg, LAMBDA),
        ):
            if found != only:
                raise ValueError(f"{name}={found!r} is not supported, only {only!r}.")
        text_emb = text_emb.to(self.segmenter.device, torch.float32)
        windows = image.to(self.segmenter.device, torch.float32).flip(1)  # BGR to RGB
        method = self.segmenter.variant(pamr=apply_pamr)
        features = method.patch_features(windows)
        cosines = patch_cosines(features.patches, text_emb)
        side = method.config.input_size // method.vision.patch_size
        masks = method.score_features(features, windows, ClassQuery.of_rows(text_emb))
        return masks, cosines.unflatten(-1, (side, side))

    def _clip_text(self) -> TextEncoder:
        text = self.segmenter.text
        if not isinstance(text, TextEncoder):
            raise ValueError(f"{text.name} is no CLIP text encoder, so it has no CLIP tokens.")
        return text


def _check_tensor(name: str, value: Any, form: str, ndim: int, whole: bool = False) -> None:
    """Raise ValueError for what is no tensor with `ndim` axes, none of them empty."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor {form}, found {type(value).__name__}.")
    if value.ndim != ndim or 0 in value.shape or (whole and value.is_floating_point()):
        raise ValueError(f"{name} must be {form}, found {tuple(value.shape)} {value.dtype}.")
