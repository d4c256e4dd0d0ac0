"""The methods of the published model class, under their names and with their meaning.

They are here for code that was written against it. Unlike everything else in this package,
`generate_masks` takes BGR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.templates import check_names, get_templates
from talk2dino.backbones.text import TextEncoder
from talk2dino.config import as_texts
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
        names = _as_names(classnames)
        text, templates = self._clip_text(), get_templates(template_set)
        tokens = [text.tokenize([t.format(name) for t in templates]) for name in names]
        return torch.stack(tokens).to(self.segmenter.device)

    def build_text_embedding(self, text: Tensor) -> Tensor:
        """Unit-length class embeddings (C, D) of the tokens (C, T, 77) of their prompts.

        The mean of the prompts' CLIP vectors, projected; what `segmenter.embed_classes` gives.

        Raises:
            ValueError: another shape or type, ids that are none of CLIP's, or a text encoder that
                is no CLIP.
        """
        _check_tokens(text, self._clip_text())
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
            ValueError: other shapes or types, or an option that is not supported.
        """
        form = "(C, D), fractions for at least one class, as build_text_embedding makes them"
        _check_tensor(
            "text_emb",
            text_emb,
            form,
            lambda given: given.ndim == 2 and len(given) > 0 and given.is_floating_point(),
        )
        count = len(text_emb) if classnames is None else len(as_texts(classnames))
        if count != len(text_emb):
            raise ValueError(f"{count} class names, but {len(text_emb)} embeddings.")
        unsupported = {
            "text_is_token": (text_is_token, False),
            "background_func": (background_func, BACKGROUND_FUNCTION),
            "lambda_bg": (lambda_bg, LAMBDA),
        }
        for name, (found, only) in unsupported.items():
            if found != only:
                raise ValueError(f"{name}={found!r} is not supported, only {only!r}.")
        _check_tensor(
            "image",
            image,
            "(B, 3, H, W) BGR",
            lambda given: given.ndim == 4 and given.shape[1] == 3 and 0 not in given.shape,
        )
        text_emb = text_emb.to(self.segmenter.device, torch.float32)
        windows = image.to(self.segmenter.device, torch.float32).flip(1)  # BGR to RGB
        method = self.segmenter.variant(pamr=apply_pamr)
        features = method.patch_features(windows)
        width = features.patches.shape[-1]
        if text_emb.shape[1] != width:
            raise ValueError(f"text_emb must be (C, {width}), found {tuple(text_emb.shape)}.")
        cosines = patch_cosines(features.patches, text_emb)
        side = method.config.input_size // method.vision.patch_size
        masks = method.score_features(features, windows, ClassQuery.of_rows(text_emb))
        return masks, cosines.unflatten(-1, (side, side))

    def _clip_text(self) -> TextEncoder:
        text = self.segmenter.text
        if not isinstance(text, TextEncoder):
            raise ValueError(f"{text.name} is no CLIP text encoder, so it has no CLIP tokens.")
        return text


def _as_names(classnames: Sequence[str]) -> list[str]:
    """Class names as a list. Raises ValueError unless there are some, all of them words."""
    form = "class names are a list, as ['cat', 'dog']"
    names = [] if isinstance(classnames, str) else as_texts(classnames, form)
    if not names:
        raise ValueError(f"{form}, found {classnames!r}.")
    return check_names(names)


def _check_tokens(tokens: Tensor, text: TextEncoder) -> None:
    """Raise ValueError unless these are CLIP's token ids (C, T, 77)."""
    length, known = text.context_length, text.model.token_embedding.num_embeddings
    form = f"(C, T, {length}), whole numbers, as build_dataset_class_tokens makes them"

    def fits(given: Tensor) -> bool:
        whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
        return whole and given.ndim == 3 and 0 not in given.shape and given.shape[2] <= length

    _check_tensor("tokens", tokens, form, fits)
    low, high = (int(end) for end in tokens.long().aminmax())  # not there for every small type
    if low < 0 or high >= known:
        raise ValueError(
            f"tokens must be CLIP's ids from 0 to {known - 1}, found {low if low < 0 else high}. "
            "build_dataset_class_tokens makes them."
        )


def _check_tensor(name: str, value: Any, form: str, fits: Callable[[Tensor], bool]) -> None:
    """Raise ValueError, with the form that is wanted, for no tensor, or one that does not fit."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} must be a PyTorch tensor, {form}, found {type(value).__name__}. "
            "torch.from_numpy makes one of an array."
        )
    if not fits(value):
        kind = str(value.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be {form}, found {tuple(value.shape)} {kind}.")
