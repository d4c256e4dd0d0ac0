"""Where the features of a training are while it runs: in memory as a whole, or left on disk.

In memory they are gathered by index. From disk, threads read the rows of the next batches ahead.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from talk2dino.features.store import FeatureFile, check_finite
from talk2dino.files import read_ahead
from talk2dino.methods.talk2dino.projection import unit

BLOCK_BYTES = 16 << 20
"""Bytes read at a time when a column is read whole."""
BATCHES_AHEAD = 2
"""Batches read ahead from disk, each by its own thread."""
_ROWS = 16  # read at a time: the system may map two megabytes around every row
_MADVISE = ctypes.CDLL(None).madvise if os.name == "posix" else None

Gathered = dict[str, Tensor]


def forget(column: Tensor) -> None:
    """Give back the memory of a column that is mapped from a file; it is read again when used.

    Otherwise a process that reads at random comes to hold the whole file. Never for a column of
    another kind, which would lose its content.
    """
    if _MADVISE is not None:
        start = column.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = column.data_ptr() + column.nbytes - start
        _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


class Columns:
    """Features of images and of captions: read whole where they fit, or left on disk.

    On a GPU they may take half of its free memory. In memory they may take `memory_bytes`; what is
    in memory already stays there. A file may be replaced or removed meanwhile; the one that was
    opened is read.

    Args:
        features: mapped from disk or in memory.
        image_keys: columns with a row per image.
        caption_keys: columns with a row per caption.
        unit_key: the column whose vectors are given with length 1, in float32.
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
        self._file = features.mapped_from
        self._columns = {
            k: features.require(k, "the features") for k in (*image_keys, *caption_keys)
        }
        needed = sum(
            column.numel() * (4 if key == unit_key else column.element_size())
            for key, column in self._columns.items()
        )
        on_device = device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] // 2
        self.on_disk = self._file is not None and not on_device and needed > memory_bytes
        """Whether the rows of every batch are read from the file."""
        self._place = device if on_device else torch.device("cpu")
        self._read_whole = on_device or (self._file is not None and not self.on_disk)
        if self._read_whole:
            self._columns = {key: self._whole(key, c) for key, c in self._columns.items()}

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
        found = read_ahead(reads, BATCHES_AHEAD) if self.on_disk else (read() for read in reads)
        for images, texts in found:
            yield self._sent(images), self._sent(texts)

    def _read(self, rows: Tensor, captions: Tensor) -> tuple[Gathered, Gathered]:
        return (
            {key: self._take(key, rows) for key in self._image_keys},
            {key: self._take(key, captions) for key in self._caption_keys},
        )

    def _take(self, key: str, index: Tensor) -> Tensor:
        column = self._columns[key]
        if not self.on_disk:
            values = column.index_select(0, index)
        else:
            values = torch.empty((len(index), *column.shape[1:]), dtype=column.dtype)
            for few, part in zip(index.split(_ROWS), values.split(_ROWS), strict=True):
                torch.index_select(column, 0, few, out=part)
                forget(column)
            check_finite(values, key, self._file or "")
        if self._read_whole:
            return values
        return unit(values.float()) if key == self._unit_key else values

    def _whole(self, key: str, column: Tensor) -> Tensor:
        """The column where it is kept, read in blocks."""
        dtype = torch.float32 if key == self._unit_key else column.dtype
        held = torch.empty(column.shape, dtype=dtype, device=self._place)
        count = max(1, BLOCK_BYTES // max(1, column[:1].nbytes))
        for start in range(0, len(column), count):
            block = column[start : start + count]
            check_finite(block, key, self._file or "the features")
            block = block.to(self._place)
            held[start : start + count] = unit(block.float()) if key == self._unit_key else block
            if self._file is not None:
                forget(column)
        return held

    def _sent(self, gathered: Gathered) -> Gathered:
        if not self.on_disk or self._device.type != "cuda":
            return {key: values.to(self._device) for key, values in gathered.items()}
        return {
            key: values.pin_memory().to(self._device, non_blocking=True)
            for key, values in gathered.items()
        }
