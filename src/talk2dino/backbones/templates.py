"""Prompt templates that turn a class name into sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.config import as_texts, check_name
from talk2dino.textfiles import read_names

if TYPE_CHECKING:
    from torch import Tensor

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
_FULL = tuple(read_names(Path(__file__).with_name("imagenet_templates.txt")))

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


def prompt_means(
    encode: Callable[[list[str]], Tensor], names: str | Iterable[str], template: str
) -> Tensor:
    """(C, E): the mean of the vectors that `encode` makes of every name's prompts.

    Raises:
        ValueError: no name, an empty one, or no such set of prompts.
    """
    templates = get_templates(template)
    # Only the placeholder is replaced: names may hold braces, quotes, commas, any script.
    prompts = [prompt.replace("{}", name) for name in check_names(names) for prompt in templates]
    return encode(prompts).unflatten(0, (-1, len(templates))).mean(dim=1)


def check_names(names: str | Iterable[str]) -> list[str]:
    """The class names. Raises ValueError unless there are some, none of them empty."""
    given = as_texts(names)
    if not given:
        raise ValueError("no class names given. At least one is needed.")
    if not all(name.strip() for name in given):
        raise ValueError(f"an empty class name in {given}.")
    return given
