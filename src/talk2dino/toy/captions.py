"""What a person would write under a drawn picture: a few sentences, all of them true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WHERE = {
    "grass": ("on the grass", "in the grass"),
    "water": ("in the water", "on the water"),
    "snow": ("in the snow", "on the snow"),
    "lavender": ("in the lavender", "on the lavender"),
}
_OPENINGS = (
    "",
    "a photo of ",
    "a picture of ",
    "a drawing of ",
    "there is ",
    "we see ",
    "this is ",
)
_CLOSINGS = ("", "", "", " in the picture", " in this photo")
_EMPTY = ("a lot of {}", "{}", "only {}", "nothing but {}", "{} everywhere", "just {}")


def write_captions(
    objects: Sequence[str], texture: str, count: int, rng: np.random.Generator
) -> list[str]:
    """Describe a picture `count` times.

    The first sentence names every object and the ground, the second every object, the others one
    thing each. Nothing is ever named that is not in the picture.

    Args:
        objects: the object classes in the picture, none for a picture of the ground alone.
        texture: the ground.
        count: number of sentences.
        rng: chooses the words.
    """
    if not objects:
        return [_opening(rng) + str(rng.choice(_EMPTY)).format(texture) + "." for _ in range(count)]
    return [_sentence(objects, texture, index, rng) for index in range(count)]


def _sentence(objects: Sequence[str], texture: str, index: int, rng: np.random.Generator) -> str:
    order = [objects[i] for i in rng.permutation(len(objects))]
    where = str(rng.choice(_WHERE[texture]))
    if index == 0:
        return f"{_opening(rng)}{_listing(order)} {where}."
    if index == 1:
        return f"{_opening(rng)}{_listing(order)}{rng.choice(_CLOSINGS)}."
    if index == 2 and rng.random() < 0.5:
        return f"{_opening(rng)}{texture}{rng.choice(_CLOSINGS)}."
    return f"{_opening(rng)}{_with_article(order[0])}{rng.choice(_CLOSINGS)}."


def _opening(rng: np.random.Generator) -> str:
    return str(rng.choice(_OPENINGS))


def _listing(names: Sequence[str]) -> str:
    """`a cat`, `a cat and a frog`, `a cat, a frog and grapes`."""
    phrases = [_with_article(name) for name in names]
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _with_article(name: str) -> str:
    if name == "grapes":
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
