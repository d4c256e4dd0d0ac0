"""Where the features of a training are while it runs: in memory as a whole, or left on disk.

In memory they are gathered by index. From disk, threads read the rows of the next batches ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from talk2dino.features.store import FeatureFile, check_finite
from talk2dino.methods.talk2dino.projection import unit
from talk2dino.methods.talk2dino.training.rows import Rows

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
