"""Read any image file as 8-bit RGB: the only place where files become pixels.

Benchmarks are the exception: they follow OpenCV, as MMSegmentation does.
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: the limit where Pillow suspects a decompression bomb."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
"""File names taken from a folder; a file that is named explicitly may have any name."""

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File suffix -> Pillow's name of the format a picture can be written in."""

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
"""What the Python API takes as one picture; see `as_rgb`."""

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


def read_rgb(path: str | Path) -> Image.Image:
    """Read an image file as an upright 8-bit RGB picture.

    EXIF orientation is applied; 16-bit grey keeps its high byte (as Pillow does for 16-bit
    colour); transparent pixels are laid on white; the first frame of an animation is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: empty, truncated, too large, or not an image that can be shown as RGB.
    """
    path = Path(path)
    _check_file(path)
    with path.open("rb") as file:
        return _decode(file, str(path))


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """`read_rgb` for an encoded image in memory; `name` is what errors call it."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes): not an image.")
    return _decode(io.BytesIO(data), name)


def as_rgb(image: ImageInput) -> Image.Image:
    """One picture in any usual form as an upright 8-bit RGB picture.

    Args:
        image: a path, a PIL image of any mode but F, an (H, W, 3) uint8 array or a (3, H, W)
            uint8 tensor, both RGB.

    Raises:
        FileNotFoundError, ValueError: as `read_rgb`; another shape or number type.
    """
    from torch import Tensor

    if isinstance(image, str | Path):
        return read_rgb(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"the image has no pixels: {image.width} x {image.height}.")
        return _to_rgb(_upright(image), "the image")
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(
            f"an image is a path, a PIL image, an array or a tensor, found {type(image).__name__}."
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


def check_image(path: str | Path) -> tuple[int, int]:
    """Check what the header of an image file can tell, without decoding it.

    Returns:
        (height, width) as stored, before EXIF orientation.

    Raises: as `read_rgb`, except for damage behind the header.
    """
    path = Path(path)
    _check_file(path)
    with path.open("rb") as file, _open(file, str(path)) as image:
        return image.height, image.width


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly in `folder`, by suffix, in the order of their names."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def rgb_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) uint8."""
    import torch

    pixels = np.array(image, dtype=np.uint8)  # a copy: the tensor owns its memory
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"There is no image at {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; an image file was expected.")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): not an image.")


def _decode(file: BinaryIO, name: str) -> Image.Image:
    with _open(file, name) as image:
        try:
            image.load()
            return _to_rgb(_upright(image), name)
        except (MemoryError, _UnsupportedPixels):
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds on a damaged file
            raise ValueError(
                f"{name} is truncated or damaged: {error}. Replace the file."
            ) from error


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Open without decoding. Raises ValueError for what is no image and for a huge one."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of MAX_PIXELS; the limit below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
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


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Unreadable EXIF data counts as upright."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception as error:  # any damage; it must not cost the picture
        logger.warning("EXIF data ignored: %s", error)
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return _grey16_to_rgb(image, name)
    if image.mode == "F":
        raise _UnsupportedPixels(
            f"{name} holds floating point pixels, whose range is not defined. "
            "Save it with 8 or 16 bits per channel."
        )
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise _UnsupportedPixels(
            f"{name} holds 32-bit pixels ({values.min()} to {values.max()}). "
            "Save it with 8 or 16 bits per channel."
        )
    return Image.fromarray((values // 256).astype(np.uint8)).convert("RGB")


class _UnsupportedPixels(ValueError):
    """An intact file whose pixels have no meaning as 8-bit RGB."""
