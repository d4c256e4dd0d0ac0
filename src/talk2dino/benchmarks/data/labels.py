"""Ground-truth label files: how they are read, and what their values mean."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from talk2dino.files import check_file
from talk2dino.pictures.images import MAX_PIXELS, UnsupportedPixels, use_picture

T = TypeVar("T")
IGNORED = 255
"""Ground-truth label of pixels that do not count."""
WIDE_IGNORED = 65535
"""The same where 255 is a class."""


def ignored_label(num_classes: int) -> int:
    """Which class id stands for pixels that do not count, among so many classes."""
    return IGNORED if num_classes <= IGNORED else WIDE_IGNORED


def read_labels(path: str | Path, colours: bool = False) -> np.ndarray:
    """Read a label file of 8 or 16 bits: PNG, TIFF or NPY.

    Args:
        path: the file.
        colours: it holds colours, given directly or by a palette.

    Returns:
        (H, W) uint8 or uint16 as stored, or (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """

    def use(image: Image.Image) -> np.ndarray:
        if colours:
            return np.array(image.convert("RGB"), dtype=np.uint8)
        values = np.array(image)
        return values.astype(np.uint8 if image.mode in _GREY else np.uint16)

    return _use_labels(path, use, np.array, colours)


def label_size(path: str | Path, colours: bool = False) -> tuple[int, int]:
    """(height, width) of a label file, from its header.

    Raises: as `read_labels`, except for damage behind the header.
    """
    return _use_labels(path, lambda image: (image.height, image.width), np.shape, colours, True)


def _use_labels(
    path: str | Path,
    use: Callable[[Image.Image], T],
    use_npy: Callable[[np.ndarray], T],
    colours: bool,
    header_only: bool = False,
) -> T:
    """What is made of a label file: of a picture, or of an array that is still on disk."""

    def checked(image: Image.Image) -> T:
        if (problem := _unfit(image, colours)) is not None:
            raise UnsupportedPixels(problem)
        return use(image)

    try:
        if Path(path).suffix.lower() != ".npy":
            return use_picture(path, checked, header_only)
        check_file(path)
        return use_npy(_open_npy(path))
    except PermissionError as error:
        raise ValueError(forbidden(path)) from error


def _open_npy(path: str | Path) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is no NPY file, or damaged ({error}).") from error
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16) or values.size > MAX_PIXELS:
        raise ValueError(
            f"{path} holds {values.dtype} {values.shape}; labels are (H, W) uint8 or uint16 of at "
            f"most {MAX_PIXELS} pixels."
        )
    return values


Value = tuple[int, ...]
"""Of a pixel in a label file: grey (value,) or a colour (r, g, b)."""


@dataclass(frozen=True)
class LabelRules:
    """What the values of a data set's label files mean."""

    ignore: tuple[int, ...] = ()
    """Grey values without a class ..."""
    default_ignored: bool = True
    """... and 255 of files with 8 bits, 65535 of those with 16."""
    shift: int = 0
    """Added to the grey values that are neither ignored nor in `values`."""
    values: tuple[tuple[Value, int], ...] = ()
    """Values and the ids of their classes; an id that no class has is ignored if it is in `ignore`,
    or 255 or 65535."""
    others_shifted: bool = True
    """Whether values that are not in `values` have a class at all."""
    unknown_ignored: bool = False
    """Whether values without a class are ignored; otherwise they are an error."""
    ids: tuple[int, ...] = ()
    """Ids of the classes, ascending; none: 0, 1, 2, ..."""

    @property
    def colours(self) -> bool:
        """Whether label files hold colours."""
        return any(len(value) == 3 for value, _ in self.values)

    def known(self, num_classes: int, wide: bool = False) -> np.ndarray:
        """The values that stand for a class in files of 8 or 16 bits; colours as one number."""
        keys, classes = _rules_table(self, num_classes, wide)
        return keys[classes < num_classes]

    def class_ids(self, values: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """What a label file means.

        Args:
            values: (H, W) or (H, W, 3), from `read_labels`.
            num_classes: C.

        Returns:
            (H, W) class ids, uint8 up to 255 classes and else uint16, with
            `ignored_label`; and (H, W) bool, where a value means nothing.
        """
        kind = np.uint8 if num_classes <= IGNORED else np.uint16
        wide = values.dtype == np.uint16
        keys, classes = _rules_table(self, num_classes, wide)
        if values.ndim == 2:
            lookup = np.full(1 << (16 if wide else 8), -1, np.int32)
            lookup[keys] = classes
            found = lookup[values]
        else:
            packed = values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
            places = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
            found = np.where(keys[places] == packed, classes[places], -1)
        unknown = found < 0
        return np.where(unknown, ignored_label(num_classes), found).astype(kind), unknown


@lru_cache(maxsize=64)
def _rules_table(rules: LabelRules, num_classes: int, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values (n,) int32 that mean something, ascending, and their classes or the ignored."""
    ignored = ignored_label(num_classes)
    ids = rules.ids or range(num_classes)
    last = 0xFFFFFF if rules.colours else WIDE_IGNORED if wide else IGNORED
    class_of = {label: place for place, label in enumerate(ids)}
    nothing = {*rules.ignore, IGNORED, WIDE_IGNORED}
    table: dict[int, int] = {}
    if not rules.colours:
        if rules.others_shifted:
            for label, place in class_of.items():
                if 0 <= label - rules.shift <= last:
                    table[label - rules.shift] = place
        if rules.default_ignored:
            table.setdefault(last, ignored)  # unless it is a class
        table |= dict.fromkeys(rules.ignore, ignored)
    for value, label in rules.values:
        key = value[0] if len(value) == 1 else (value[0] << 16) + (value[1] << 8) + value[2]
        if label not in class_of and label not in nothing:
            raise ValueError(f"values: no class has the id {label}, to which {key} is mapped.")
        table[key] = class_of.get(label, ignored)
    keys = np.array([key for key in sorted(table) if 0 <= key <= last], np.int32)
    return keys, np.array([table[key] for key in keys.tolist()], np.int32)


def forbidden(path: str | Path) -> str:
    """What is said of a file that is there, but that the user may not read."""
    return f"{path} may not be read: permission denied. Change its mode (chmod) or its owner."


_GREY = ("1", "L", "P")


def _unfit(image: Image.Image, colours: bool) -> str | None:
    """Why a picture holds no class numbers of 8 or 16 bits, or no 8-bit colours, if so."""
    if not isinstance(image, PngImageFile | TiffImageFile):
        return (
            f"is no lossless PNG but {image.format}, which may have changed its class numbers: "
            "use the official file."
        )
    # Grey of 2 or 4 bits is stretched to 0 to 255 by every reader. Pillow before 11 reads 16-bit
    # PNG as "I".
    raw = str(image.tile[0][3] if image.tile else image.mode)
    if colours:
        if image.mode in ("RGB", "RGBA", "P") and "16" not in raw:
            return None
        return f"has pixels of mode {image.mode}, and `values:` are colours; they need 8-bit RGB."
    if image.mode in ("RGB", "RGBA", "LA", "PA"):
        return (
            f"holds {image.mode} colours, not class numbers. It was probably re-saved by a "
            "program that flattens palettes, or is a colour visualisation: use the official file, "
            "or say with `values:` which colour is which class."
        )
    wide = image.mode.startswith("I;16") or (image.mode == "I" and "I;16" in raw)
    if (image.mode not in _GREY and not wide) or "L;2" in raw or "L;4" in raw:
        return f"has pixels of mode {raw}; labels must be grey of 8 or 16 bits or palette indices."
    return None
