"""Prompt templates that turn a class name into sentences."""

from __future__ import annotations

from collections.abc import Iterable

from talk2dino.config import as_texts, check_name

_SUBSET = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
_MASKCLIP = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
# The 80 prompts of CLIP's ImageNet evaluation (Radford et al., 2021).
_FULL = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "subset": _SUBSET,
    "full": _FULL,
    "simple": ("a photo of a {}.",),
    "maskclip": _MASKCLIP,
    "plural": ("a photo of {}s.",),
    "identity": ("{}",),
    "full+maskclip": _FULL + _MASKCLIP,
    "subset+maskclip": _SUBSET + _MASKCLIP,
}
"""Name -> prompts. `subset` is the default."""

# What the published evaluation files call the same sets.
ALIASES = {
    "sub_imagenet_template": "subset",
    "full_imagenet_templates": "full",
    "simple_templates": "simple",
}


def get_templates(name: str) -> tuple[str, ...]:
    """The prompts of a set, each with one `{}`.

    Raises:
        ValueError: there is no such set.
    """
    return TEMPLATES[check_name("template", ALIASES.get(name, name), TEMPLATES)]


def check_names(names: str | Iterable[str]) -> list[str]:
    """The class names. Raises ValueError unless there are some, none of them empty."""
    given = as_texts(names)
    if not given:
        raise ValueError("no class names given. At least one is needed.")
    if not all(name.strip() for name in given):
        raise ValueError(f"an empty class name in {given}.")
    return given
