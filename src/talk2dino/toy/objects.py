"""The things of the drawn world: one painter per object class, each a few polygons and a palette.

A painter draws in its own coordinates (x to the right, y down, the object about as large as the
unit disc) on a supersampled canvas; `draw_object` turns it into an anti-aliased RGBA picture with
soft shading. The colours are far apart in direction from middle grey: that is what patch features
of a backbone with random weights tell apart best.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = np.ndarray
"""(N, 2) corners of a polygon, x and y in the object's coordinates."""

_TURN = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.cos(_TURN), np.sin(_TURN)
SUPERSAMPLING = 3
REACH = 1.12
"""The painters stay this close to the origin, so that no turn moves a part out of the canvas."""


class Brush:
    """A supersampled square canvas, `size` pixels per side, with the axes turned by `angle`.

    `add` paints a part of the object; `detail` paints only where the object is already.
    """

    def __init__(self, size: int, angle: float, mirror: bool, rng: np.random.Generator):
        self.size = size
        self.rng = rng
        side = size * SUPERSAMPLING
        self._paint = Image.new("RGB", (side, side))
        self._silhouette = Image.new("L", (side, side))
        self._painter = ImageDraw.Draw(self._paint)
        self._outliner = ImageDraw.Draw(self._silhouette)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        mirrored = np.array([[-1.0 if mirror else 1.0, 0.0], [0.0, 1.0]])
        self._centre = side / 2
        self._axes = mirrored @ turn * (self._centre / REACH)

    def add(self, points: Points, colour: Colour) -> None:
        """Paint a polygon that belongs to the object's outline."""
        corners = self._pixels(points)
        self._painter.polygon(corners, fill=colour)
        self._outliner.polygon(corners, fill=255)

    def detail(self, points: Points, colour: Colour) -> None:
        """Paint a polygon inside the outline; what lies outside of it does not show."""
        self._painter.polygon(self._pixels(points), fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Paint an open line `width` wide (in the object's units) inside the outline."""
        pixels = max(1, round(width * self._centre / REACH))
        self._painter.line(self._pixels(points), fill=colour, width=pixels, joint="curve")

    def picture(self) -> Image.Image:
        """The object as RGBA of `size` pixels, lighter at the top left, darker at its rim."""
        paint = self._paint.resize((self.size, self.size), Image.Resampling.BOX)
        alpha = self._silhouette.resize((self.size, self.size), Image.Resampling.BOX)
        inside = np.asarray(alpha.filter(ImageFilter.GaussianBlur(self.size * 0.05)), np.float32)
        ramp = np.linspace(1, -1, self.size, dtype=np.float32)
        light = 0.86 + 0.16 * (inside / 255) + 0.04 * (ramp[None, :] + ramp[:, None])
        shaded = np.clip(np.asarray(paint, np.float32) * light[..., None], 0, 255)
        picture = Image.fromarray(shaded.astype(np.uint8))
        picture.putalpha(alpha)
        return picture

    def _pixels(self, points: Points) -> list[float]:
        pixels: list[float] = (points @ self._axes + self._centre).ravel().tolist()
        return pixels


def draw_object(name: str, radius: float, rng: np.random.Generator) -> Image.Image:
    """Draw one object of class `name`, turned, mirrored and tinted at random.

    Args:
        name: one of a world's, in `WORLDS`.
        radius: of the disc that holds the object, in pixels.
        rng: every random choice comes from here.

    Returns:
        A square RGBA picture of side 2 * radius; alpha is the share of a pixel that is covered.
    """
    angle = rng.uniform(-0.45, 0.45)
    brush = Brush(max(8, round(2 * radius)), angle, bool(rng.random() < 0.5), rng)
    {name: paint for world in WORLDS.values() for name, paint in world.items()}[name](brush)
    return brush.picture()


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Points:
    """Corners of an ellipse with centre (cx, cy), turned by `angle` radians."""
    x, y = rx * _CIRCLE[0], ry * _CIRCLE[1]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cx + cos * x - sin * y, cy + sin * x + cos * y], axis=1)


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _tint(brush: Brush, colour: Colour, spread: int = 10) -> Colour:
    """The colour of this one specimen: each is a little different."""
    red, green, blue = np.clip(
        np.array(colour) + brush.rng.integers(-spread, spread + 1, 3), 0, 255
    )
    return int(red), int(green), int(blue)


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(value * factor)) for value in colour)
    return red, green, blue


def _apple(brush: Brush) -> None:
    skin = _tint(brush, (222, 22, 34))
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    dimple = 0.24 * np.exp(-((np.angle(np.exp(1j * (turn + np.pi / 2))) / 0.42) ** 2))
    foot = 0.09 * np.exp(-((np.angle(np.exp(1j * (turn - np.pi / 2))) / 0.35) ** 2))
    reach = 0.80 - dimple - foot
    body = np.stack([1.04 * reach * np.cos(turn), 0.16 + 0.98 * reach * np.sin(turn)], axis=1)
    brush.add(_polygon((-0.05, -0.35), (0.02, -0.95), (0.14, -0.92), (0.06, -0.35)), (104, 66, 36))
    brush.add(ellipse(0.34, -0.72, 0.30, 0.13, -0.45), _tint(brush, (88, 160, 52)))
    brush.add(body, skin)
    brush.detail(ellipse(-0.36, -0.10, 0.13, 0.24, 0.5), (240, 128, 122))


def _lemon(brush: Brush) -> None:
    peel = _tint(brush, (252, 226, 16))
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    tips = 0.20 * np.exp(-((np.sin(turn) / 0.20) ** 2))
    reach_x = 0.78 + tips
    brush.add(np.stack([reach_x * np.cos(turn), 0.62 * np.sin(turn)], axis=1), peel)
    for _ in range(26):
        x, y = brush.rng.uniform(-0.7, 0.7), brush.rng.uniform(-0.5, 0.5)
        brush.detail(ellipse(x, y, 0.032, 0.026), _darker(peel, 0.90))
    brush.detail(ellipse(-0.25, -0.28, 0.24, 0.09, -0.25), (255, 246, 170))


def _heart(brush: Brush) -> None:
    turn = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    brush.add(np.stack([x, y - 2.5], axis=1) / 17.5, _tint(brush, (250, 50, 190)))
    brush.detail(ellipse(-0.48, -0.42, 0.20, 0.12, -0.7), (255, 190, 224))


def _grapes(brush: Brush) -> None:
    berry = _tint(brush, (138, 20, 152))
    brush.add(_polygon((-0.05, -0.55), (-0.02, -0.98), (0.09, -0.96), (0.06, -0.55)), (110, 80, 44))
    brush.add(ellipse(0.30, -0.76, 0.26, 0.13, -0.3), _tint(brush, (96, 160, 60)))
    for row, count in enumerate((4, 4, 3, 2, 1)):
        for column in range(count):
            x = (column - (count - 1) / 2) * 0.43 + brush.rng.uniform(-0.03, 0.03)
            y = -0.46 + row * 0.32
            brush.add(ellipse(x, y, 0.26, 0.26), _darker(berry, 0.80))
            brush.add(ellipse(x, y, 0.235, 0.235), _tint(brush, berry, 10))
            brush.detail(ellipse(x - 0.08, y - 0.09, 0.06, 0.04, -0.6), (190, 110, 190))


def _whale(brush: Brush) -> None:
    skin = _tint(brush, (24, 44, 206))
    brush.add(ellipse(-0.14, 0.14, 0.82, 0.60), skin)
    brush.add(_polygon((0.35, 0.40), (0.66, -0.22), (0.88, -0.14), (0.62, 0.52)), skin)
    brush.add(ellipse(0.60, -0.36, 0.26, 0.13, 0.5), skin)
    brush.add(ellipse(0.92, -0.28, 0.22, 0.12, -0.6), skin)
    for height in (0.50, 0.60):
        lines = np.stack(
            [np.linspace(-0.62, 0.22, 12), height + 0.1 * np.cos(np.linspace(-1.5, 1.5, 12))],
            axis=1,
        )
        brush.line(lines, (90, 116, 230), 0.035)
    brush.detail(ellipse(-0.56, 0.06, 0.09, 0.09), (255, 255, 255))
    brush.detail(ellipse(-0.58, 0.06, 0.05, 0.05), (16, 18, 30))


def _frog(brush: Brush) -> None:
    skin = _tint(brush, (22, 186, 44))
    for side in (-1, 1):
        brush.add(ellipse(side * 0.42, -0.52, 0.30, 0.30), skin)
    brush.add(ellipse(0.0, 0.14, 0.92, 0.70), skin)
    for side in (-1, 1):
        brush.detail(ellipse(side * 0.42, -0.56, 0.15, 0.15), (250, 250, 240))
        brush.detail(ellipse(side * 0.42, -0.54, 0.08, 0.09), (18, 24, 18))
        brush.detail(ellipse(side * 0.10, 0.08, 0.025, 0.03), _darker(skin, 0.6))
    bow = np.linspace(-1, 1, 15)
    brush.line(np.stack([0.46 * bow, 0.46 - 0.16 * bow**2], axis=1), _darker(skin, 0.55), 0.05)


def _cat(brush: Brush) -> None:
    fur = _tint(brush, (34, 32, 40), 6)
    for side in (-1, 1):
        brush.add(_polygon((side * 0.82, -0.05), (side * 0.74, -0.92), (side * 0.18, -0.52)), fur)
    brush.add(ellipse(0.0, 0.12, 0.86, 0.74), fur)
    for side in (-1, 1):
        brush.detail(ellipse(side * 0.34, -0.02, 0.13, 0.10, side * 0.3), (196, 220, 70))
        brush.detail(ellipse(side * 0.34, -0.02, 0.035, 0.09), (14, 14, 16))
    brush.detail(_polygon((-0.08, 0.26), (0.08, 0.26), (0.0, 0.35)), (230, 130, 140))


OBJECTS: dict[str, Callable[[Brush], None]] = {
    "apple": _apple,
    "lemon": _lemon,
    "heart": _heart,
    "grapes": _grapes,
    "whale": _whale,
    "frog": _frog,
    "cat": _cat,
}
"""What can be drawn, in the order of the class ids."""


def _orange(brush: Brush) -> None:
    peel = _tint(brush, (255, 122, 6))
    brush.add(ellipse(0.0, 0.05, 0.86, 0.86), peel)
    for _ in range(30):
        x, y = brush.rng.uniform(-0.6, 0.6, 2)
        brush.detail(ellipse(x, y, 0.03, 0.03), _darker(peel, 0.88))
    brush.detail(ellipse(0.04, -0.58, 0.10, 0.06), (70, 110, 40))


def _leaf(brush: Brush) -> None:
    green = _tint(brush, (8, 104, 44))
    bow = np.linspace(0, 1, 30)
    side = 0.62 * np.sin(np.pi * bow) ** 0.8
    upper = np.stack([1.9 * bow - 0.95, -side], axis=1)
    brush.add(np.concatenate([upper, upper[::-1] * (1, -1)]), green)
    brush.line(_polygon((-0.9, 0.0), (0.9, 0.0)), _darker(green, 1.5), 0.05)
    for x in (-0.4, 0.0, 0.4):
        brush.line(_polygon((x + 0.2, -0.3), (x, 0), (x + 0.2, 0.3)), _darker(green, 1.4), 0.03)


def _star(brush: Brush) -> None:
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = np.where(np.arange(10) % 2, 0.52, 1.05)
    brush.add(
        np.stack([reach * np.cos(turn), reach * np.sin(turn)], axis=1),
        _tint(brush, (252, 214, 30)),
    )
    brush.detail(ellipse(-0.14, -0.16, 0.16, 0.12, 0.6), (255, 244, 170))


def _fish(brush: Brush) -> None:
    skin = _tint(brush, (0, 92, 128))
    brush.add(_polygon((0.35, 0.0), (1.0, -0.46), (0.86, 0.0), (1.0, 0.46)), _darker(skin, 0.8))
    brush.add(ellipse(-0.18, 0.0, 0.80, 0.56), skin)
    brush.detail(ellipse(-0.60, -0.12, 0.10, 0.10), (255, 255, 255))
    brush.detail(ellipse(-0.62, -0.12, 0.05, 0.05), (16, 18, 30))


def _brick(brush: Brush) -> None:
    clay = _tint(brush, (150, 40, 20))
    brush.add(_polygon((-1.0, -0.46), (1.0, -0.46), (1.0, 0.46), (-1.0, 0.46)), clay)
    for x in (-0.5, 0.0, 0.5):
        brush.detail(ellipse(x, 0.0, 0.14, 0.14), _darker(clay, 0.6))


WORLDS: dict[int, dict[str, Callable[[Brush], None]]] = {
    1: OBJECTS,
    2: {"orange": _orange, "leaf": _leaf, "star": _star, "fish": _fish, "brick": _brick},
}
"""The objects of each drawn world; the grounds are the same in all."""
