"""Read any image file as 8-bit RGB: the only place where files become pixels.

Benchmarks are the exception: they follow OpenCV, as MMSegmentation does.
"""

from __future__ import annotations

import io
import logging
import mimetypes
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from talk2dino.files import check_file
from talk2dino.pictures.png import pixels_of_png

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: the limit where Pillow suspects a decompression bomb."""

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif")
)
"""File names taken from a folder; a file that is named explicitly may have any name."""

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File suffix -> Pillow's name of the format a picture can be written in."""

ImageInput: TypeAlias = (
    "str | Path | Image.Image | np.ndarray | Tensor | bytes | BinaryIO | Mapping[str, Any]"
)
"""What the Python API takes as one picture; see `as_rgb`."""

T = TypeVar("T")

_BITS_PER_SAMPLE = 0x0102  # a tag of TIFF
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_rgb(path: str | Path, least: int = 0) -> Image.Image:
    """Read an image file as an upright 8-bit RGB picture.

    EXIF orientation is applied; 12-bit and 16-bit grey keep their highest 8 bits (as Pillow does
    for 16-bit colour); transparent pixels are laid on white; the first frame of an animation is
    taken.

    Args:
        path: an image file.
        least: a JPEG may come at a half, a quarter or an eighth of its size, but with sides of at
            least so many pixels: much faster to decode. 0 for its own size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: empty, truncated, too large, or not an image that can be shown as RGB.
    """
    return use_picture(path, lambda image: _to_rgb(_drafted(image, least), str(path)))


def decode_rgb(data: bytes, name: str, least: int = 0) -> Image.Image:
    """`read_rgb` for an encoded image in memory; `name` is what errors call it."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes): not an image.")
    return _use_whole(io.BytesIO(data), name, lambda image: _to_rgb(_drafted(image, least), name))


def as_rgb(image: ImageInput) -> Image.Image:
    """One picture in any usual form as an upright 8-bit RGB picture.

    Args:
        image: a path, a PIL image of any mode but F, an (H, W, 3) uint8 array or a (3, H, W)
            uint8 tensor, both RGB; or encoded: bytes, an open binary file, or the "bytes" or
            "path" of a data set's column.

    Raises:
        FileNotFoundError, ValueError: as `read_rgb`; another shape or number type.
    """
    from torch import Tensor

    if isinstance(image, Mapping):
        image = _of_column(image)
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        raise ValueError(f"{image[:80]} is an address. Download the picture and give its path.")
    if isinstance(image, str | Path):
        return read_rgb(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_rgb(bytes(image), "the image")
    if isinstance(image, io.TextIOBase):
        raise ValueError("the image is a file opened as text. Open it with mode 'rb'.")
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        file = cast(BinaryIO, image)
        return decode_rgb(file.read(), str(getattr(file, "name", "the image")))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"the image has no pixels: {image.width} x {image.height}.")
        name = getattr(image, "filename", "") or "the image"
        try:
            return _to_rgb(image, name)
        except (MemoryError, UnsupportedPixels):
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds on a damaged file
            raise _damaged(name, error) from error
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(
            "an image is a path, a PIL image, an array, a tensor, bytes or an open file, found "
            f"{type(image).__name__}."
        )
    shape, kind = tuple(image.shape), str(image.dtype).removeprefix("torch.")
    wanted = "(3, H, W)" if isinstance(image, Tensor) else "(H, W, 3)"
    channels = shape[0 if isinstance(image, Tensor) else -1] if len(shape) == 3 else None
    if channels != 3 or 0 in shape or kind != "uint8":
        raise ValueError(
            f"an image as {type(image).__name__} is {wanted} uint8 RGB, found {shape} {kind}."
        )
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(image))


def _of_column(row: Mapping[str, Any]) -> ImageInput:
    """The picture of a data set's column, which keeps its bytes, its path, or both."""
    given = next((row[key] for key in ("bytes", "path") if row.get(key) is not None), None)
    if given is None or isinstance(given, Mapping):
        raise ValueError(f"an image in a dict is under 'bytes' or 'path', found {list(row)[:6]}.")
    return cast(ImageInput, given)


def check_image(path: str | Path) -> tuple[int, int]:
    """Check what the header of an image file can tell, without decoding it.

    Returns:
        (height, width) upright.

    Raises: as `read_rgb`, except for damage behind the header.
    """
    return use_picture(path, _upright_size, header_only=True)


def check_whole(path: str | Path) -> None:
    """Raise as `read_rgb` for a damaged picture: OpenCV shows the part that is left."""
    use_picture(path, _load_roughly)


def use_picture(path: str | Path, use: Callable[[Image.Image], T], header_only: bool = False) -> T:
    """What `use` makes of an opened picture of which no part is missing.

    Args:
        path: an image file.
        use: takes what is wanted from it; an error in it is damage, but for UnsupportedPixels.
        header_only: `use` needs no pixels, so they may be missing.

    Raises: as `read_rgb`.
    """
    path = Path(path)
    _check_file(path)
    with path.open("rb") as file:
        return _use_whole(file, str(path), use, header_only)


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly in `folder`, by suffix, in the order of their names.

    A warning names pictures that have another suffix.
    """
    files = [p for p in Path(folder).iterdir() if not p.name.startswith(".") and not p.is_dir()]
    taken = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if other := other_pictures(set(files).difference(taken)):
        logger.warning("%s: left out for their suffix, to be named one by one: %s", folder, other)
    return sorted(taken)


def other_pictures(files: Iterable[Path]) -> str:
    """The names of those `files` that are pictures by name or content, for a message."""
    return ", ".join(repr(path.name) for path in sorted(files) if _is_picture(path))


def rgb_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) uint8."""
    import torch

    pixels = np.array(image, dtype=np.uint8)  # a copy: the tensor owns its memory
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _drafted(image: Image.Image, least: int) -> Image.Image:
    if least:
        image.draft(None, (least, least))
    return image


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"There is no image at {path}.")
    check_file(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): not an image.")


def _is_picture(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind.startswith("image/") or path.suffix.lower() in (".heic", ".heif"):
        return True
    try:
        return bool(check_image(path))
    except (ValueError, OSError):
        return False


def _use_whole(
    file: BinaryIO, name: str, use: Callable[[Image.Image], T], header_only: bool = False
) -> T:
    """Also where Pillow refuses an intact PNG for chunks that no pixel needs."""
    plain = None if header_only else _plain_png(file, name)
    try:
        return _use(file, name, use)
    except UnsupportedPixels:
        raise
    except ValueError:
        plain = plain or _plain_png(file, name)
        if plain is None:
            raise
        return _use(plain, name, use)


def _plain_png(file: BinaryIO, name: str) -> BinaryIO | None:
    try:
        return pixels_of_png(file, MAX_PIXELS)
    except (ValueError, struct.error, zlib.error) as error:
        raise _damaged(name, error) from error


def _use(file: BinaryIO, name: str, use: Callable[[Image.Image], T]) -> T:
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: on damage, and at half of MAX_PIXELS
        with _open(file, name) as image:
            try:
                return use(image)
            except (MemoryError, UnsupportedPixels):
                raise
            except Exception as error:  # Pillow's decoders raise a dozen kinds on a damaged file
                raise _damaged(name, error) from error


def _damaged(name: str, reason: Exception) -> ValueError:
    return ValueError(f"{name} is truncated or damaged: {reason}. Replace the file.")


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Open without decoding. Raises ValueError for what is no image and for a huge one."""
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error} Make it smaller first.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image in a format Pillow can read.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged header: SyntaxError, struct.error, OSError, ...
        raise ValueError(f"{name} has a damaged header: {error}. Replace the file.") from error
    if image.format == "EPS":  # a program, which Pillow would give to Ghostscript
        raise ValueError(f"{name} is an EPS drawing, which is not read. Save it as PNG first.")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{name} is too large: {image.width} x {image.height} pixels, at most {MAX_PIXELS} "
            "are read. Make it smaller first."
        )
    return image


def _load_roughly(image: Image.Image) -> None:
    if image.format != "PNG":  # known to be whole already
        image.draft(None, (1, 1))  # a JPEG is read to its end, and drawn at an eighth of its size
        image.load()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # For a PNG without EXIF data Pillow would look for it behind the pixels, and decode them.
    turned = "exif" in image.info and _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int | None:
    """As in the EXIF data; None if that is unreadable, which counts as upright."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception as error:  # any damage; it must not cost the picture
        logger.warning("EXIF data ignored: %s", error)
        return None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()
    if image.mode == "F":
        raise UnsupportedPixels(
            f"{name} holds floating point pixels, whose range is not defined. "
            "Save it with 8 or 16 bits per channel."
        )
    bits = _grey_bits(image)
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I"):
        return _grey_to_rgb(np.asarray(image), bits, name)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(values: np.ndarray, bits: int, name: str) -> Image.Image:
    if bits > 16 or values.min() < 0:
        raise UnsupportedPixels(
            f"{name} holds {bits}-bit pixels from {values.min()} to {values.max()}, whose range is "
            "not defined. Save it with 8 or 16 bits per channel."
        )
    return Image.fromarray((values >> bits - 8).astype(np.uint8)).convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """Of a grey value in one of Pillow's modes I; they are known of files, not of copies."""
    if hasattr(image, "tag_v2"):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])
    return 32 if image.mode == "I" and image.format != "PPM" else 16


class UnsupportedPixels(ValueError):
    """An intact file whose pixels have no meaning as what is asked for."""
