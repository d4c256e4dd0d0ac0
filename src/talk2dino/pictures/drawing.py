"""Pictures of a segmentation: class colours, indexed masks, overlays with a legend."""

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from talk2dino.config import check_between
from talk2dino.files import shipped

logger = logging.getLogger(__name__)

BACKGROUND_COLOUR = (0, 0, 0)
"""Black, as in Pascal VOC: under a half transparent overlay the background is dimmed."""

MAX_INDEXED = 256
"""Labels that an indexed PNG can tell apart."""

_LABEL_COLOUR = (255, 69, 0)
_LABEL_SIZE = 16


def class_colours(count: int, background: bool = False) -> np.ndarray:
    """Colours that are always the same; a class keeps its own when others are added.

    They were chosen one after the other as far as possible from all earlier ones, so few classes
    get very different colours. After 1024 they repeat.

    Args:
        count: number of labels, the background included.
        background: label 0 is the background and gets `BACKGROUND_COLOUR`.

    Returns:
        (count, 3) uint8 RGB.
    """
    distinct = palette("distinct")
    colours = distinct[np.arange(-1 if background else 0, count - background) % len(distinct)]
    if background:
        colours[:1] = BACKGROUND_COLOUR
    return colours


@cache
def palette(name: str) -> np.ndarray:
    """(C, 3) uint8 RGB: the colours of a data set by its key, or `distinct`."""
    return np.loadtxt(shipped(f"configs/datasets/{name}_palette.txt"), np.uint8, ndmin=2)


def group_colours(count: int) -> np.ndarray:
    """Colours (count, 3) uint8 RGB of group tokens, the published ones, repeated after 209."""
    city, voc, ade = map(palette, ("cityscapes", "voc20", "ade20k"))
    rows = np.concatenate([city, voc, ade[:25], voc, ade[25:]])
    bgr = rows[:, ::-1]  # the published file was read with its channels reversed
    return bgr[np.arange(count) % len(bgr)]


def indexed_mask(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """A palette picture whose pixel values are the labels and which shows in class colours.

    Args:
        labels: (H, W) integers below `len(colours)`.
        colours: (C, 3) uint8 RGB, at most 256 of them.
    """
    if len(colours) > MAX_INDEXED:
        raise ValueError(
            f"an indexed mask holds at most {MAX_INDEXED} classes, found {len(colours)}."
        )
    mask = Image.fromarray(labels.astype(np.uint8))
    mask.putpalette(colours.tobytes())
    return mask


def colour_pixels(
    image_rgb: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float
) -> np.ndarray:
    """Mix (H, W, 3) uint8 pixels with the colours of their labels; class borders stand out."""
    check_between(0, 1, opacity=opacity)
    painted = colours[labels]
    # Rounded mixing in integers: a large photograph as float would take four times the memory.
    share = round(opacity * 256)
    mixed = (image_rgb.astype(np.uint16) * (256 - share) + painted.astype(np.uint16) * share) >> 8
    result = mixed.astype(np.uint8)
    if 0 < opacity < 1:
        borders = _borders(labels)
        result[borders] = painted[borders]
    return result


def blend(image: np.ndarray, painted: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    """Half of each (H, W, 3) uint8 picture; where `kept` (H, W), the image as it is."""
    mixed = ((image.astype(np.uint16) + painted) // 2).astype(np.uint8)
    if kept is not None:
        mixed[kept] = image[kept]
    return mixed


def write_names(
    picture: Image.Image, labels: np.ndarray, names: Sequence[str], left_out: int | None
) -> Image.Image:
    """Write the name of every label into the picture, at the centre of mass of its pixels.

    Args:
        picture: RGB.
        labels: (H, W).
        names: per label.
        left_out: a label without a name, or None.
    """
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    for label in np.unique(labels):
        if label == left_out:
            continue
        rows, columns = np.nonzero(labels == label)
        name, path = drawn_name(names[label].strip(), int(label))
        font = legend_font(_LABEL_SIZE, path)
        left, top, right, bottom = font.getbbox(name)
        # The text begins at the centre, but ends inside the picture where it can.
        x = max(min(columns.mean(), picture.width - right), 0)
        y = max(min(rows.mean(), picture.height - bottom), 0)
        pen.rectangle((x + left, y + top, x + right, y + bottom), fill=(0, 0, 0, 128))
        pen.text((x, y), name, font=font, fill=(*_LABEL_COLOUR, 255))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def legend_font_size(width: int, height: int) -> int:
    """A text height that can be read when the picture is shown at screen size."""
    return int(min(max(14, max(width, height) / 45), 160))


def draw_legend(
    names: Sequence[str], colours: np.ndarray, width: int, font_size: int
) -> Image.Image:
    """A white strip of entries in lines, a coloured square with a name each.

    Args:
        names: one per entry, see `drawn_name`.
        colours: (C, 3) uint8 RGB.
        width: the width to fill; a narrow picture or a long name gets a wider strip.
        font_size: height of the text in pixels.

    Returns:
        An RGB picture at least `width` wide, of height 0 without names.
    """
    gap, line_height = font_size // 2, round(font_size * 1.5)
    left = gap + font_size + font_size // 3  # from an entry's edge: margin, square, space
    entries = []
    for number, name in enumerate(names):
        text, path = drawn_name(name, number)
        font = legend_font(font_size, path)
        entries.append((text, font, left + round(font.getlength(text)) + gap))
    width = max([width, 18 * font_size, *(wide for _, _, wide in entries)])
    places, x, y = [], 0, gap
    for _, _, wide in entries:
        if x + wide > width:
            x, y = 0, y + line_height
        places.append((x, y))
        x += wide
    strip = Image.new("RGB", (width, y + line_height + gap if names else 0), "white")
    draw = ImageDraw.Draw(strip)
    for (x, y), (text, font, _), colour in zip(places, entries, colours.tolist(), strict=True):
        top = y + (line_height - font_size) // 2
        box = (x + gap, top, x + gap + font_size - 1, top + font_size - 1)
        draw.rectangle(box, fill=tuple(colour), outline=(90, 90, 90))
        place = (x + left, y + line_height // 2)
        draw.text(place, text, fill=(20, 20, 20), font=font, anchor="lm")
    return strip


def legend_font(size: int, path: str | None = None) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more; or another."""
    return ImageFont.truetype(path or _dejavu(), size)


@cache
def drawn_name(name: str, number: int) -> tuple[str, str]:
    """What a legend shows for a name, and the file of a font that has the letters for it.

    Where no font of this system has them, the name becomes its number, and a warning says so.

    Args:
        name: of a label.
        number: position of the label, from 0.
    """
    blank = ("Zs", "Zl", "Zp", "Cc", "Cf")  # categories of what draws nothing
    letters = {ord(c) for c in name if unicodedata.category(c) not in blank}
    for path in chain([_dejavu()], _system_fonts()):
        if letters <= _letters(path):
            return name, path
    shown = "".join(c for c in name if ord(c) in _letters(_dejavu()))
    logger.warning(
        "no font of this system has the letters of %r: it is drawn as #%d. Install one that has "
        "them, such as Noto.",
        name,
        number,
    )
    return " ".join(f"#{number} {shown}".split()), _dejavu()


def _dejavu() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _system_fonts() -> Iterator[str]:
    """Files of all fonts, upright ones of usual weight first."""
    # Here: it looks for fonts when it is imported.
    from matplotlib.font_manager import FontEntry, fontManager

    def order(font: FontEntry) -> tuple[bool, bool, str]:
        return font.style != "normal", font.weight not in (400, "normal", "regular"), font.fname

    yield from (font.fname for font in sorted(fontManager.ttflist, key=order))


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font can draw; none of a font that cannot be drawn at any size."""
    try:
        ImageFont.truetype(path, 10)
        letters = frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
    # What has more than the 65,535 glyphs of a font stands in for letters, all with one box.
    return letters if len(letters) < 100_000 else frozenset()


def _borders(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: the label differs from the one to the right or below."""
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders
