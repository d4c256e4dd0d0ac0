"""One drawn picture: a few objects on a textured ground, with the exact mask of what is where."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from talk2dino.pictures.drawing import palette
from talk2dino.toy.objects import OBJECTS, WORLDS, draw_object

SMALLEST = 48
"""A smaller picture, in pixels per side, would not show what is in it."""

# Share of the pictures, numbers of objects (equally likely), and the smallest and largest radius as
# a share of the picture's side. Close-ups and empty grounds, as in anybody's photographs, show what
# one word means: pooled over the whole picture, several small things tell little about any of them.
_KINDS = (
    (0.10, (0,), (0.0, 0.0)),
    (0.35, (1,), (0.42, 0.60)),
    (0.55, (1, 2, 2, 3), (0.20, 0.36)),
)
_PLACES_TRIED = 12
_MOST_HIDDEN = 0.25
"""At most this share of an object may be cut off, or be hidden by another one."""


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


@dataclass(frozen=True, eq=False)
class _Placed:
    name: str
    picture: Image.Image
    corner: tuple[int, int]
    covered: np.ndarray  # (S, S) bool


def draw_scene(size: int, rng: np.random.Generator, world: int = 1) -> Scene:
    """Draw a picture of `size` pixels per side; every choice comes from `rng`."""
    classes = class_names(world)
    shares = [share for share, _, _ in _KINDS]
    _, counts, radii = _KINDS[int(rng.choice(len(_KINDS), p=shares))]
    texture = str(rng.choice(list(TEXTURES)))
    names = rng.permutation(list(WORLDS[world]))[: int(rng.choice(counts))]
    placed: list[_Placed] = []
    for name in names:
        thing = _find_place(str(name), size, radii, placed, rng)
        if thing is not None:
            placed.append(thing)
    canvas = TEXTURES[texture](size, rng)
    mask = np.full((size, size), classes.index(texture), np.uint8)
    for thing in placed:
        _paste(canvas, thing)
        mask[thing.covered] = classes.index(thing.name)
    from_left = sorted(placed, key=lambda thing: thing.corner[0])
    return Scene(np.asarray(canvas), mask, tuple(thing.name for thing in from_left), texture)


def _find_place(
    name: str,
    size: int,
    radii: tuple[float, float],
    others: list[_Placed],
    rng: np.random.Generator,
) -> _Placed | None:
    """Draw the object where it shows and hides little of the others; None if that fails."""
    radius = size * rng.uniform(*radii)
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


def _noise(
    size: int, cells: int, rng: np.random.Generator, cells_y: int | None = None
) -> np.ndarray:
    """Smooth noise (size, size) of about unit variance, with so many bumps along x (and y)."""
    grid = rng.standard_normal(((cells_y or cells) + 1, cells + 1), dtype=np.float32)
    smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


def _coloured(
    base: tuple[int, int, int], variation: np.ndarray, rng: np.random.Generator
) -> Image.Image:
    """A picture of colour `base`, tinted a little, plus `variation` (size, size) grey levels."""
    tint = np.array(base, np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    levels = np.clip(tint + variation[..., None], 0, 255)
    return Image.fromarray(levels.astype(np.uint8))


def _grass(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _coloured((126, 212, 100), 5 * _noise(size, 5, rng), rng)
    pen = ImageDraw.Draw(picture)
    low, high = (0, 0, -0.018, 0.03, -28), (size, size, 0.018, 0.07, 24)
    for x, y, lean, tall, shade in rng.uniform(low, high, (420, 5)).tolist():
        colour = (int(122 + shade * 0.8), int(208 + shade), int(96 + shade * 0.5))
        tip = (x + lean * size, y - tall * size)
        pen.line([(x, y), tip], fill=colour, width=max(1, size // 200))
    return picture


def _water(size: int, rng: np.random.Generator) -> Image.Image:
    y = np.mgrid[0:size, 0:size][0].astype(np.float32) / size
    swell = np.sin(2 * np.pi * (12 * y + 0.30 * _noise(size, 5, rng)) + rng.uniform(0, 6))
    crests = 22 * np.clip(swell - 0.72, 0, 1) / 0.28
    return _coloured((22, 184, 224), 6 * swell + crests + 4 * _noise(size, 4, rng), rng)


def _snow(size: int, rng: np.random.Generator) -> Image.Image:
    drifts = 5 * _noise(size, 4, rng, 8)
    picture = _coloured((234, 236, 240), drifts, rng)
    pen = ImageDraw.Draw(picture)
    for _ in range(160):
        x, y = rng.uniform(0, size, 2)
        reach = rng.uniform(0.003, 0.008) * size
        grey = (216, 255)[rng.integers(0, 2)]
        pen.ellipse(
            [x - reach, y - reach, x + reach, y + reach], fill=(grey, grey, min(255, grey + 8))
        )
    return picture


def _lavender(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _coloured((146, 138, 222), 5 * _noise(size, 5, rng), rng)
    pen = ImageDraw.Draw(picture)
    low, high = (0, 0, -0.01, -24, -24, -24, -24), (size, size, 0.01, 24, 24, 24, 24)
    for x, y, turn, *shades in rng.uniform(low, high, (150, 7)).tolist():
        lean = turn * size
        stalk = [(x, y), (x + lean, y + 0.05 * size)]
        pen.line(stalk, fill=(120, 140, 168), width=max(1, size // 220))
        for step, shade in enumerate(shades):
            reach = (0.011 - 0.0018 * step) * size
            cx, cy = x - lean * step * 0.3, y - 0.014 * size * step
            colour = (int(146 + shade), int(128 + shade), int(226 + shade))
            pen.ellipse([cx - reach, cy - reach, cx + reach, cy + reach], fill=colour)
    return picture


TEXTURES: dict[str, Callable[[int, np.random.Generator], Image.Image]] = {
    "grass": _grass,
    "water": _water,
    "snow": _snow,
    "lavender": _lavender,
}
"""What a picture can be filled with: each makes a square RGB picture, so many pixels per side. The
class ids follow those of the objects."""

CLASS_NAMES: tuple[str, ...] = (*OBJECTS, *TEXTURES)
"""Every class by id: the objects, then the grounds. Each pixel of a mask is one of them."""


def class_names(world: int = 1) -> tuple[str, ...]:
    """Every class of a world by id, as in CLASS_NAMES."""
    return (*WORLDS[world], *TEXTURES)


def class_palette(world: int = 1) -> np.ndarray:
    """(C, 3) uint8 RGB by class id: about the colours of the things; a wrong label looks wrong."""
    colours = palette("toy")
    return np.concatenate([palette("toy2"), colours[len(OBJECTS) :]]) if world == 2 else colours
