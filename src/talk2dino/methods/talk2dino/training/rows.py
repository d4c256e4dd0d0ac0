"""Rows of a feature file's columns, read from the file with a call for each row.

A mapped column would do the same with an indexing, but the system keeps the pages around every row
that was touched, up to the whole file, and a process that reads at random pays for each fault.
"""

from __future__ import annotations

import os
import struct
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from talk2dino.features.store import FeatureFile


class Rows:
    """Random access to the columns of a mapped feature file.

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
