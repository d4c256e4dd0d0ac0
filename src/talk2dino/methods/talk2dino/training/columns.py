"""Where the features of a training are while it runs: in memory as a whole, or left on disk.

In memory they are gathered by index. From disk, threads read the rows of the next batches ahead.
"""

from __future__ import annotations

import os
import struct
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from talk2dino.features.store import FeatureFile, check_finite
from talk2dino.files import read_ahead
from talk2dino.methods.talk2dino.projection import unit


class Rows:
    """Random access to the columns of a mapped feature file, with a call for each row.

    A mapped column would do the same with an indexing, but the system keeps the pages around every
    row that was touched, up to the whole file, and a process that reads at random pays for each
    fault.

    The file may be replaced or removed meanwhile; this keeps the one that was opened.

    Args:
        features: as `read_features` gave it, mapped.
        keys: the columns to read.
    """

    def __init__(self, features: FeatureFile, keys: tuple[str, ...]) -> None:
        assert features.mapped_from is not None
        self._columns = {key: features.require(key, features.mapped_from) for key in keys}
        self.path = features.mapped_from
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._starts = column_starts(features.mapped_from, self._columns)

    def take(self, key: str, index: Tensor) -> Tensor:
        """(n, ...) the rows of a column at (n,) int64 positions."""
        column = self._columns[key]
        if self._starts is None or not hasattr(os, "preadv"):
            return column.index_select(0, index)
        rows = torch.empty((len(index), *column.shape[1:]), dtype=column.dtype)
        size = column[:1].nbytes
        target = _bytes_of(rows)
        for number, row in enumerate(index.tolist()):
            place = target[number * size : (number + 1) * size]
            self._fill(place, self._starts[key] + row * size)
        return rows

    def block(self, key: str, start: int, stop: int) -> Tensor:
        """(stop - start, ...) successive rows of a column."""
        column = self._columns[key]
        if self._starts is None or not hasattr(os, "preadv"):
            return column[start:stop]
        rows = torch.empty((stop - start, *column.shape[1:]), dtype=column.dtype)
        self._fill(_bytes_of(rows), self._starts[key] + start * column[:1].nbytes)
        return rows

    def _fill(self, place: memoryview, position: int) -> None:
        done = 0
        while done < len(place):
            count = os.preadv(self._file, [place[done:]], position + done)
            if not count:
                raise RuntimeError(f"{self.path} became shorter while it was read")
            done += count


def column_starts(path: Path, columns: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Where the bytes of mapped columns begin in their file, or None if that cannot be told.

    `torch.save` writes an uncompressed zip archive. A mapping keeps the distances between its
    parts, so there is one address at which all columns meet parts of their own sizes.
    """
    parts = _stored_parts(path)
    addresses = [
        {column.data_ptr() - start for start, size in parts if size == column.nbytes}
        for column in columns.values()
    ]
    common = set.intersection(*addresses) if addresses else set()
    if len(common) != 1:
        return None
    begin = common.pop()
    return {key: column.data_ptr() - begin for key, column in columns.items()}


def _bytes_of(rows: Tensor) -> memoryview:
    """The memory of a new tensor, to be filled."""
    memory: memoryview = rows.flatten().view(torch.uint8).numpy().data
    return memory


def _stored_parts(path: Path) -> list[tuple[int, int]]:
    """(start, size) of every uncompressed member of a zip archive."""
    parts = []
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            file.seek(member.header_offset + 26)  # the local header repeats name and extra field
            name, extra = struct.unpack("<HH", file.read(4))
            if member.compress_type == zipfile.ZIP_STORED:
                parts.append((member.header_offset + 30 + name + extra, member.file_size))
    return parts


BLOCK_BYTES = 16 << 20
"""Bytes read at a time when a column is read whole."""
BATCHES_AHEAD = 2
"""Batches read ahead from disk, each by its own thread."""

Gathered = dict[str, Tensor]


class Columns:
    """Features of images and of captions: read whole where they fit, or left on disk.

    On a GPU they may take half of its free memory. In memory they may take `memory_bytes`; what is
    in memory already stays there.

    Args:
        features: mapped from disk or in memory.
        image_keys: columns with a row per image.
        caption_keys: columns with a row per caption.
        unit_key: the column whose vectors are scaled to length 1, in float32, where it is read.
        device: where the batches are needed.
        memory_bytes: see above.
    """

    def __init__(
        self,
        features: FeatureFile,
        image_keys: Sequence[str],
        caption_keys: Sequence[str],
        unit_key: str | None,
        device: torch.device,
        memory_bytes: int,
    ) -> None:
        self._image_keys, self._caption_keys = image_keys, caption_keys
        self._unit_key, self._device = unit_key, device
        self._place = torch.device("cpu")
        self.held: dict[str, Tensor] | None = None
        """The columns, unless they stay on disk."""
        columns = {k: features.require(k, "the features") for k in (*image_keys, *caption_keys)}
        needed = sum(
            column.numel() * (4 if key == unit_key else column.element_size())
            for key, column in columns.items()
        )
        on_device = device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] // 2
        self._rows = Rows(features, tuple(columns)) if features.mapped_from is not None else None
        self.unit_done = unit_key is not None and (on_device or self._rows is not None)
        """Whether the vectors of `unit_key` come with length 1."""
        if on_device or (self._rows is not None and needed <= memory_bytes):
            self._place = device if on_device else self._place
            self.held = {key: self._whole(key, column) for key, column in columns.items()}
        elif self._rows is None:
            self.held = columns

    def read(
        self, rows: Tensor, captions: Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[Gathered, Gathered]]:
        """The features of batches of the given sizes, as (key -> (B, ...) tensor) pairs.

        The indices travel to a GPU once, not batch by batch.

        Args:
            rows: (n,) int64 the image of each pair, in order.
            captions: (n,) int64 the caption of each pair.
            sizes: pairs per batch; their sum is n.
        """
        split = [part.to(self._place).split(list(sizes)) for part in (rows, captions)]
        reads = (partial(self._read, *part) for part in zip(*split, strict=True))
        found = (read() for read in reads) if self.held else read_ahead(reads, BATCHES_AHEAD)
        for images, texts in found:
            yield self._sent(images), self._sent(texts)

    def _read(self, rows: Tensor, captions: Tensor) -> tuple[Gathered, Gathered]:
        return (
            {key: self._take(key, rows) for key in self._image_keys},
            {key: self._take(key, captions) for key in self._caption_keys},
        )

    def _take(self, key: str, index: Tensor) -> Tensor:
        if self.held:
            return self.held[key].index_select(0, index)
        assert self._rows is not None
        return self._checked(key, self._rows.take(key, index))

    def _whole(self, key: str, column: Tensor) -> Tensor:
        """The column where it is kept, read in blocks."""
        dtype = torch.float32 if key == self._unit_key else column.dtype
        held = torch.empty(column.shape, dtype=dtype, device=self._place)
        count = max(1, BLOCK_BYTES // max(1, column[:1].nbytes))
        for start in range(0, len(column), count):
            stop = min(start + count, len(column))
            block = self._rows.block(key, start, stop) if self._rows else column[start:stop]
            held[start:stop] = self._checked(key, block)
        return held

    def _checked(self, key: str, values: Tensor) -> Tensor:
        """What was read, where it is kept and of length 1 if it is to be."""
        check_finite(values, key, self._rows.path if self._rows else "the features")
        values = values.to(self._place)
        return unit(values.float()) if key == self._unit_key else values

    def _sent(self, gathered: Gathered) -> Gathered:
        if self.held or self._device.type != "cuda":
            return {key: values.to(self._device) for key, values in gathered.items()}
        return {
            key: values.pin_memory().to(self._device, non_blocking=True)
            for key, values in gathered.items()
        }
