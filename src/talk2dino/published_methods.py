"""The methods of the published model class, under their names and with their meaning.

They are here for code that was written against it. Unlike everything else in this package,
`generate_masks` takes BGR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from talk2dino.segmenter import Talk2DinoSegmenter, patch_cosines
from talk2dino.templates import get_templates
from talk2dino.text import TextEncoder

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
            ValueError: an unknown set, no class, or a text encoder that is no CLIP.
        """
        if isinstance(classnames, str) or not classnames:
            raise ValueError(f"class names are a list, as ['cat', 'dog'], found {classnames!r}.")
        text, templates = self._clip_text(), get_templates(template_set)
        tokens = [text.tokenize([t.format(name) for t in templates]) for name in classnames]
        return torch.stack(tokens).to(self.segmenter.device)

    @torch.no_grad()
    def build_text_embedding(self, text: Tensor) -> Tensor:
        """Unit-length class embeddings (C, D) of the tokens (C, T, 77) of their prompts.

        The mean of the prompts' CLIP vectors, projected; what `segmenter.embed_classes` gives.
        """
        if text.ndim != 3 or not len(text):
            raise ValueError(
                f"tokens must be (C, T, 77), one row of prompts per class, found "
                f"{tuple(text.shape)}. build_dataset_class_tokens makes them."
            )
        return self.segmenter.embed_class_tokens(text)

    @torch.no_grad()
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
            img_metas: not used; the published callers pass it.
            text_emb: (C, D) from `build_text_embedding`.
            classnames: the classes; only their number is checked.
            text_is_token: only false is supported: classes are compared by one vector each.
            apply_pamr: refine the masks along the image's edges.
            background_func: how cleaning mixes; there is one way.
            lambda_bg: weight of the cleaning, which is on if the model's `clean_background` is.

        Returns:
            masks (B, C, H, W): sigmoid(cosine), cleaned and refined;
            cosines (B, C, h, w) on the grid of patches, before both.

        Raises:
            ValueError: other shapes, or an option that is not supported.
        """
        self._check_published(text_emb, classnames, text_is_token, background_func, lambda_bg)
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (B, 3, H, W) BGR, found {tuple(image.shape)}.")
        windows = image.to(self.segmenter.device, torch.float32).flip(1)  # BGR to RGB
        method = self.segmenter.variant(pamr=apply_pamr)
        features = method.patch_features(windows)
        width = features.patches.shape[-1]
        if text_emb.ndim != 2 or text_emb.shape[1] != width:
            raise ValueError(f"text_emb must be (C, {width}), found {tuple(text_emb.shape)}.")
        cosines = patch_cosines(features.patches, text_emb)
        side = method.config.input_size // method.vision.patch_size
        masks = method.score_features(features, windows, text_emb, background=None)
        return masks, cosines.unflatten(-1, (side, side))

    def _check_published(
        self,
        text_emb: Tensor,
        classnames: Sequence[str] | None,
        text_is_token: bool,
        background_func: str,
        lambda_bg: float,
    ) -> None:
        if classnames is not None and len(classnames) != len(text_emb):
            raise ValueError(f"{len(classnames)} class names, but {len(text_emb)} embeddings.")
        unsupported = {
            "text_is_token": (text_is_token, False),
            "background_func": (background_func, BACKGROUND_FUNCTION),
            "lambda_bg": (lambda_bg, LAMBDA),
        }
        for name, (found, only) in unsupported.items():
            if found != only:
                raise ValueError(f"{name}={found!r} is not supported, only {only!r}.")

    def _clip_text(self) -> TextEncoder:
        text = self.segmenter.text
        if not isinstance(text, TextEncoder):
            raise ValueError(f"{text.name} is no CLIP text encoder, so it has no CLIP tokens.")
        return text
