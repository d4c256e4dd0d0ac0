"""The grounds of the drawn world: textures that fill a picture and are classes of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw


def draw_texture(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """A square RGB picture, `size` pixels per side, of the texture `name` (one of `TEXTURES`)."""
    return TEXTURES[name](size, rng)


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
    for _ in range(420):
        x, y = rng.uniform(0, size, 2)
        lean, tall = rng.uniform(-0.018, 0.018) * size, rng.uniform(0.03, 0.07) * size
        shade = rng.uniform(-28, 24)
        colour = (int(122 + shade * 0.8), int(208 + shade), int(96 + shade * 0.5))
        pen.line([(x, y), (x + lean, y - tall)], fill=colour, width=max(1, size // 200))
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
        grey = int(rng.choice([216, 255]))
        pen.ellipse(
            [x - reach, y - reach, x + reach, y + reach], fill=(grey, grey, min(255, grey + 8))
        )
    return picture


def _lavender(size: int, rng: np.random.Generator) -> Image.Image:
    picture = _coloured((146, 138, 222), 5 * _noise(size, 5, rng), rng)
    pen = ImageDraw.Draw(picture)
    for _ in range(150):
        x, y = rng.uniform(0, size, 2)
        lean = rng.uniform(-0.01, 0.01) * size
        pen.line(
            [(x, y), (x + lean, y + 0.05 * size)], fill=(120, 140, 168), width=max(1, size // 220)
        )
        for step in range(4):
            shade = rng.uniform(-24, 24)
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
"""What a picture can be filled with; the class ids follow those of the objects."""
