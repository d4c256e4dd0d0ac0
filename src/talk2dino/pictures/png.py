"""PNG files without what their pixels do not need, after a check that every pixel is there.

Pillow refuses intact PNGs for damaged or large metadata, and shows cut ones in part.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_WHOLE = ((0, 0, 1, 1),)  # first column and row, steps between them
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def pixels_of_png(file: BinaryIO, max_pixels: int) -> BinaryIO | None:
    """The PNG in `file`, of its metadata only transparency and EXIF, if that is intact.

    Returns:
        None for what is no PNG, or promises more than `max_pixels`.

    Raises:
        ValueError: pixels are missing or damaged; says which chunk is.
    """
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return None
    kept, missing, stream = io.BytesIO(), 0, zlib.decompressobj()
    kept.write(SIGNATURE)
    found, wanted = set(), {b"IHDR", b"IDAT"}
    while b"IEND" not in found and len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
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
            if width * height > max_pixels:
                return None
            missing = _num_bytes(width, height, depth * _CHANNELS.get(colour, 0), interlaced)
            wanted |= {b"PLTE"} if colour == 3 else set()
        while kind == b"IDAT" and body and missing > 0 and not stream.eof:
            missing -= len(stream.decompress(body, 2**20))
            body = stream.unconsumed_tail
    if wanted - found or missing > 0:
        raise ValueError("the file ends before its last pixel")
    kept.seek(0)
    return kept


def _num_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Of the unpacked pixels, with the byte that begins every row."""
    total = 0
    for left, top, across, down in _ADAM7 if interlaced else _WHOLE:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
