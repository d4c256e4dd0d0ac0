"""Where the features of a training are while it runs: in memory as a whole, or left on disk.

In memory they are gathered by index. From disk, threads read the rows of the next batches ahead.
"""

from __future__ import annotations

import os
import struct
import weakref
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from talk2dino.features.store import FeatureFile, check_finite
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


@dataclass(frozen=True)
class ColumnChoice:
    """Which columns to read, and how."""

    image_keys: tuple[str, ...]
    """Columns with a row per image."""
    caption_keys: tuple[str, ...]
    """Columns with a row per caption."""
    unit_key: str | None = None
    """The column whose vectors are scaled to length 1, in float32, where it is read whole."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.image_keys, *self.caption_keys)


class Columns(Protocol):
    """The features of all pairs, wherever they are."""

    unit_done: bool
    """Whether the vectors of `unit_key` come with length 1."""

    def read(
        self, rows: Tensor, captions: Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[Gathered, Gathered]]:
        """The features of batches of the given sizes, as (key -> (B, ...) tensor) pairs.

        Args:
            rows: (n,) int64 the image of each pair, in order.
            captions: (n,) int64 the caption of each pair.
            sizes: pairs per batch; their sum is n.
        """


def place_columns(
    features: FeatureFile, choice: ColumnChoice, device: torch.device, memory_bytes: int
) -> Columns:
    """Read the columns whole where they fit, or leave them on disk.

    On a GPU they may take half of its free memory. In memory they may take `memory_bytes`; what is
    in memory already stays there.
    """
    needed = sum(_held_bytes(features, key, choice) for key in choice.keys)
    if device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] // 2:
        return _read_whole(features, choice, device, device)
    if features.mapped_from is None:
        everything = {**features.image_features, **features.caption_features}
        return HeldColumns({key: everything[key] for key in choice.keys}, choice, device)
    if needed <= memory_bytes:
        return _read_whole(features, choice, torch.device("cpu"), device)
    return StoredColumns(Rows(features, choice.keys), choice, device)


class HeldColumns:
    """Columns in memory, of the machine or of a GPU, gathered by index.

    Args:
        columns: key -> the whole column.
        choice: which of them belong to images and which to captions.
        device: where the batches are needed.
        unit_done: whether the vectors of `unit_key` have length 1.
    """

    def __init__(
        self,
        columns: dict[str, Tensor],
        choice: ColumnChoice,
        device: torch.device,
        unit_done: bool = False,
    ) -> None:
        self.unit_done = unit_done
        self._columns = columns
        self._choice = choice
        self._device = device

    def read(
        self, rows: Tensor, captions: Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[Gathered, Gathered]]:
        """See Columns. The indices travel to the device once, not batch by batch."""
        sizes = list(sizes)
        places = {t.device for t in self._columns.values()}
        indices = {
            place: (rows.to(place).split(sizes), captions.to(place).split(sizes))
            for place in places
        }

        def gather(keys: Iterable[str], part: int, number: int) -> Gathered:
            found = {}
            for key in keys:
                column = self._columns[key]
                index = indices[column.device][part][number]
                found[key] = column.index_select(0, index).to(self._device)
            return found

        for number in range(len(sizes)):
            yield (
                gather(self._choice.image_keys, 0, number),
                gather(self._choice.caption_keys, 1, number),
            )


class StoredColumns:
    """Columns left on disk: threads read the rows of the batches to come."""

    def __init__(self, rows: Rows, choice: ColumnChoice, device: torch.device) -> None:
        self.unit_done = choice.unit_key is not None
        self._rows = rows
        self._choice = choice
        self._device = device

    def read(
        self, rows: Tensor, captions: Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[Gathered, Gathered]]:
        """See Columns."""
        parts = zip(rows.split(list(sizes)), captions.split(list(sizes)), strict=True)
        reads = (partial(self._read_batch, *part) for part in parts)
        for images, texts in _read_ahead(reads, BATCHES_AHEAD):
            if self._choice.unit_key is not None:
                images[self._choice.unit_key] = unit(images[self._choice.unit_key].float())
            yield self._to_device(images), self._to_device(texts)

    def _read_batch(self, rows: Tensor, captions: Tensor) -> tuple[Gathered, Gathered]:
        return (
            {key: self._take(key, rows) for key in self._choice.image_keys},
            {key: self._take(key, captions) for key in self._choice.caption_keys},
        )

    def _take(self, key: str, index: Tensor) -> Tensor:
        values = self._rows.take(key, index)
        check_finite(values, key, self._rows.path)
        return values

    def _to_device(self, gathered: Gathered) -> Gathered:
        if self._device.type != "cuda":
            return {key: values.to(self._device) for key, values in gathered.items()}
        return {
            key: values.pin_memory().to(self._device, non_blocking=True)
            for key, values in gathered.items()
        }


def _read_whole(
    features: FeatureFile, choice: ColumnChoice, place: torch.device, device: torch.device
) -> HeldColumns:
    """Copy the columns to `place` in blocks, one of them scaled to length 1."""
    rows = Rows(features, choice.keys) if features.mapped_from is not None else None
    held = {}
    for key in choice.keys:
        column = features.require(key, "the features")
        dtype = torch.float32 if key == choice.unit_key else column.dtype
        held[key] = torch.empty(column.shape, dtype=dtype, device=place)
        count = max(1, BLOCK_BYTES // max(1, column[:1].nbytes))
        for start in range(0, len(column), count):
            stop = min(start + count, len(column))
            values = rows.block(key, start, stop) if rows else column[start:stop]
            check_finite(values, key, features.mapped_from or "the features")
            values = values.to(place)
            held[key][start:stop] = unit(values.float()) if key == choice.unit_key else values
    return HeldColumns(held, choice, device, unit_done=choice.unit_key is not None)


def _held_bytes(features: FeatureFile, key: str, choice: ColumnChoice) -> int:
    column = features.require(key, "the features")
    return column.numel() * (4 if key == choice.unit_key else column.element_size())


def _read_ahead(
    reads: Iterable[Callable[[], tuple[Gathered, Gathered]]], count: int
) -> Iterator[tuple[Gathered, Gathered]]:
    """The results of `reads` in order, `count` of them under way in threads."""
    waiting: deque[Future[tuple[Gathered, Gathered]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for read in reads:
            waiting.append(pool.submit(read))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
