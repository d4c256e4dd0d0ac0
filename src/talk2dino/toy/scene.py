"""One drawn picture: a few objects on a textured ground, with the exact mask of what is where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from talk2dino.toy.objects import OBJECTS, WORLDS, draw_object
from talk2dino.toy.textures import TEXTURES, draw_texture

CLASS_NAMES: tuple[str, ...] = (*OBJECTS, *TEXTURES)
"""Every class by id: the objects, then the grounds. Each pixel of a mask is one of them."""

CLASS_COLOURS: dict[str, tuple[int, int, int]] = {
    "apple": (222, 22, 34),
    "lemon": (252, 226, 16),
    "heart": (250, 50, 190),
    "grapes": (138, 20, 152),
    "whale": (24, 44, 206),
    "frog": (22, 160, 44),
    "cat": (34, 32, 40),
    "grass": (150, 212, 110),
    "water": (84, 200, 228),
    "snow": (236, 238, 242),
    "lavender": (168, 160, 232),
    "orange": (255, 122, 6),
    "leaf": (8, 104, 44),
    "star": (252, 214, 30),
    "fish": (0, 92, 128),
    "brick": (150, 40, 20),
}
"""Of the masks and panels: about the colour of the thing, so that a wrong label looks wrong."""

SMALLEST = 48
"""A smaller picture, in pixels per side, would not show what is in it."""

_PLACES_TRIED = 12
_MOST_HIDDEN = 0.25
"""At most this share of an object may be cut off, or be hidden by another one."""


def class_names(world: int = 1) -> tuple[str, ...]:
    """Every class of a world by id, as in CLASS_NAMES."""
    return (*WORLDS[world], *TEXTURES)


def class_palette(world: int = 1) -> np.ndarray:
    """(C, 3) uint8 RGB, by class id."""
    return np.array([CLASS_COLOURS[name] for name in class_names(world)], dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and everything that is true about it."""

    image: np.ndarray
    """(S, S, 3) RGB uint8."""
    mask: np.ndarray
    """(S, S) uint8 class ids: the topmost thing that covers at least half of the pixel."""
    objects: tuple[str, ...]
    """The objects in the picture, from left to right; each class at most once."""
    texture: str
    """The ground."""


@dataclass(frozen=True)
class _Kind:
    share: float
    """Of the pictures."""
    counts: tuple[int, ...]
    """Numbers of objects, equally likely."""
    radii: tuple[float, float]
    """Smallest and largest object, as a share of the picture's side."""


# Close-ups and empty grounds, as in anybody's photographs, show what one word means: pooled over
# the whole picture, features of several small things tell little about any of them.
_KINDS = (
    _Kind(share=0.10, counts=(0,), radii=(0.0, 0.0)),
    _Kind(share=0.35, counts=(1,), radii=(0.42, 0.60)),
    _Kind(share=0.55, counts=(1, 2, 2, 3), radii=(0.20, 0.36)),
)


@dataclass(frozen=True, eq=False)
class _Placed:
    name: str
    picture: Image.Image
    corner: tuple[int, int]
    covered: np.ndarray  # (S, S) bool


def draw_scene(size: int, rng: np.random.Generator, world: int = 1) -> Scene:
    """Draw a picture of `size` pixels per side; every choice comes from `rng`."""
    classes = class_names(world)
    kind = _KINDS[int(rng.choice(len(_KINDS), p=[kind.share for kind in _KINDS]))]
    texture = str(rng.choice(list(TEXTURES)))
    names = rng.permutation(list(WORLDS[world]))[: int(rng.choice(kind.counts))]
    placed: list[_Placed] = []
    for name in names:
        thing = _find_place(str(name), size, kind, placed, rng)
        if thing is not None:
            placed.append(thing)
    canvas = draw_texture(texture, size, rng)
    mask = np.full((size, size), classes.index(texture), np.uint8)
    for thing in placed:
        _paste(canvas, thing)
        mask[thing.covered] = classes.index(thing.name)
    from_left = sorted(placed, key=lambda thing: thing.corner[0])
    return Scene(np.asarray(canvas), mask, tuple(thing.name for thing in from_left), texture)


def _find_place(
    name: str, size: int, kind: _Kind, others: list[_Placed], rng: np.random.Generator
) -> _Placed | None:
    """Draw the object where it shows and hides little of the others; None if that fails."""
    radius = size * rng.uniform(*kind.radii)
    picture = draw_object(name, radius, rng)
    whole = np.count_nonzero(_opaque(picture.getchannel("A")))
    for _ in range(_PLACES_TRIED):
        low, high = -0.25 * radius, size - 1.75 * radius
        x, y = (round(v) for v in rng.uniform(min(low, high), max(low, high), 2))
        covered = _opaque(_layer(picture.getchannel("A"), (x, y), size))
        if np.count_nonzero(covered) < (1 - _MOST_HIDDEN) * whole:
            continue
        hidden = [
            np.count_nonzero(covered & o.covered) / np.count_nonzero(o.covered) for o in others
        ]
        if all(share <= _MOST_HIDDEN for share in hidden):
            return _Placed(name, picture, (x, y), covered)
    return None


def _opaque(alpha: Image.Image) -> np.ndarray:
    return np.asarray(alpha) >= 128


def _layer(alpha: Image.Image, corner: tuple[int, int], size: int) -> Image.Image:
    layer = Image.new("L", (size, size))
    layer.paste(alpha, corner)
    return layer


def _paste(canvas: Image.Image, thing: _Placed) -> None:
    """Put the object on the canvas, over a soft shadow (which belongs to the ground)."""
    x, y = thing.corner
    drop = max(1, round(0.06 * thing.picture.width))
    alpha = thing.picture.getchannel("A")
    shadow = _layer(
        alpha.point(lambda value: value * 0.30), (x + drop // 2, y + drop), canvas.width
    )
    canvas.paste((16, 20, 28), (0, 0), shadow.filter(ImageFilter.GaussianBlur(0.6 * drop)))
    canvas.paste(thing.picture, (x, y), thing.picture)
