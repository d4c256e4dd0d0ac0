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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from talk2dino.files import check_file

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


class UnsupportedPixels(ValueError):
    """An intact file whose pixels have no meaning as what is asked for."""


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
    return use_picture(path, lambda image: _to_rgb(image, least))


def decode_rgb(data: bytes, name: str, least: int = 0) -> Image.Image:
    """`read_rgb` for an encoded image in memory; `name` is what errors call it."""
    return _use(io.BytesIO(data), name, lambda image: _to_rgb(image, least))


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

    if isinstance(image, Mapping):  # a column keeps the bytes of a picture, its path, or both
        row = image
        image = next((row[key] for key in ("bytes", "path") if row.get(key) is not None), row)
        if isinstance(image, Mapping):
            raise ValueError(
                f"an image in a dict is under 'bytes' or 'path', found {list(row)[:6]}."
            )
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        raise ValueError(f"{image[:80]} is an address. Download the picture and give its path.")
    if isinstance(image, str | Path):
        return read_rgb(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_rgb(bytes(image), "the image")
    if isinstance(image, Image.Image):
        with _errors_of(getattr(image, "filename", "") or "the image"):
            if 0 in image.size:
                raise UnsupportedPixels(f"has no pixels: {image.width} x {image.height}.")
            return _to_rgb(image)
    if isinstance(image, io.TextIOBase):
        raise ValueError("the image is a file opened as text. Open it with mode 'rb'.")
    if hasattr(image, "read"):
        return decode_rgb(image.read(), str(getattr(image, "name", "the image")))
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
        use: takes what is wanted from it; an error in it is damage, but for UnsupportedPixels,
            whose message continues the name of the file.
        header_only: `use` needs no pixels, so they may be missing.

    Raises: as `read_rgb`.
    """
    check_file(path, "image")
    with Path(path).open("rb") as file:
        return _use(file, str(path), use, header_only)


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


def _use(
    file: BinaryIO, name: str, use: Callable[[Image.Image], T], header_only: bool = False
) -> T:
    with _errors_of(name):
        if not file.read(1):
            raise UnsupportedPixels("is empty (0 bytes): not an image.")
        with Image.open(_plain_png(file, header_only) or file) as image:
            if image.format == "EPS":  # a program, which Pillow would give to Ghostscript
                raise UnsupportedPixels("is an EPS drawing, which is not read. Save it as PNG.")
            _check_size(image.width, image.height)
            return use(image)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Pillow's decoders raise a dozen kinds on a damaged file: one sentence about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: on damage, and at half of MAX_PIXELS
            yield
    except MemoryError:
        raise
    except UnsupportedPixels as error:
        raise type(error)(f"{name} {error}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error} Make it smaller first.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image in a format Pillow can read.") from error
    except Exception as error:
        raise ValueError(f"{name} is truncated or damaged: {error}. Replace the file.") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnsupportedPixels(
            f"is too large: {width} x {height} pixels, at most {MAX_PIXELS} are read. Make it "
            "smaller first."
        )


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_WHOLE = ((0, 0, 1, 1),)  # first column and row, steps between them
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def _plain_png(file: BinaryIO, header_only: bool) -> BinaryIO | None:
    """A PNG without what its pixels do not need, after a check that every pixel is there.

    Pillow refuses intact PNGs for damaged or large metadata, and shows cut ones in part. Of the
    metadata, transparency stays, and EXIF that is intact.

    Returns:
        None for other files, which are at their start again.

    Raises:
        ValueError: pixels are missing or damaged; says which chunk is.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        file.seek(0)
        return None
    kept, missing, stream = io.BytesIO(), 0, zlib.decompressobj()
    kept.write(_SIGNATURE)
    found, wanted = set(), {b"IHDR", b"IDAT"}
    while b"IEND" not in found and len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT" and header_only:
            return io.BytesIO(kept.getvalue() + head)
        if kind[:1].islower() and kind not in (b"tRNS", b"eXIf"):
            file.seek(size + 4, io.SEEK_CUR)
            continue
        body, checksum = file.read(size), file.read(4)
        if checksum != struct.pack(">I", zlib.crc32(kind + body)):
            if kind == b"eXIf":
                continue
            raise ValueError(f"its chunk {kind!r} is cut or has a wrong checksum")
        found.add(kind)
        kept.write(head + body + checksum)
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            _check_size(width, height)
            wanted |= {b"PLTE"} if colour == 3 else set()
            for left, top, across, down in _ADAM7 if interlaced else _WHOLE:
                columns, rows = -((left - width) // across), -((top - height) // down)
                if columns > 0 and rows > 0:  # a byte begins every row
                    bits = columns * depth * _CHANNELS.get(colour, 0)
                    missing += rows * (1 + -(-bits // 8))
        while kind == b"IDAT" and body and missing > 0 and not stream.eof:
            missing -= len(stream.decompress(body, 2**20))
            body = stream.unconsumed_tail
    if wanted - found or missing > 0:
        raise ValueError("the file ends before its last pixel")
    kept.seek(0)
    return kept


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


def _to_rgb(image: Image.Image, least: int = 0) -> Image.Image:
    if least:
        image.draft(None, (least, least))
    image.load()
    if image.mode == "F":
        raise UnsupportedPixels(
            "holds floating point pixels, whose range is not defined. Save it with 8 or 16 bits "
            "per channel."
        )
    bits = _grey_bits(image)
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if bits > 16 or values.min() < 0:
            raise UnsupportedPixels(
                f"holds {bits}-bit pixels from {values.min()} to {values.max()}, whose range is "
                "not defined. Save it with 8 or 16 bits per channel."
            )
        return Image.fromarray((values >> bits - 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """Of a grey value in one of Pillow's modes I; they are known of files, not of copies."""
    if hasattr(image, "tag_v2"):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])
    return 32 if image.mode == "I" and image.format != "PPM" else 16
