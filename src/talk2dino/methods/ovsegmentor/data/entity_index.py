"""Which rows have which entities, in arrays: 4 bytes per row and 16 per entity of a row."""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class EntityIndex:
    """Rows numbered from 0, each with some entities."""

    names: tuple[str, ...]
    """The entities; a code is a position here."""
    starts: np.ndarray
    """(N + 1,) int64: the codes of row r are `codes[starts[r]:starts[r + 1]]`."""
    codes: np.ndarray
    """(M,) int32."""
    members: np.ndarray
    """(M,) int32 rows, grouped by code and in order within a group."""
    member_starts: np.ndarray
    """(len(names) + 1,) int64: where the group of each code begins in `members`."""

    @classmethod
    def build(cls, lists: Iterable[Sequence[str]]) -> EntityIndex:
        """From the entities of every row; a row may have none."""
        known: dict[str, int] = {}
        codes, counts = array("i"), array("i")
        for entities in lists:
            counts.append(len(entities))
            codes.extend(known.setdefault(entity, len(known)) for entity in entities)
        return cls.of(tuple(known), np.asarray(counts, np.int32), np.asarray(codes, np.int32))

    @classmethod
    def of(cls, names: tuple[str, ...], per_row: np.ndarray, flat: np.ndarray) -> EntityIndex:
        """From the number of every row's entities, (N,) int32, and their codes, (M,) int32."""
        rows = np.repeat(np.arange(len(per_row), dtype=np.int32), per_row)
        sizes = np.bincount(flat, minlength=len(names))
        return cls(
            names,
            np.concatenate([[0], np.cumsum(per_row, dtype=np.int64)]),
            flat,
            rows[np.argsort(flat, kind="stable")],
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        )

    def draw(
        self, random: np.random.Generator, rows: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Partners of rows: an entity of the row, and a row that has it, uniformly each.

        The row itself may be drawn. Drawing is with replacement.

        Args:
            random: used for 2 * n * count numbers.
            rows: (n,) rows that have entities.
            count: partners per row.

        Returns:
            (n, count) codes of the shared entities and (n, count) partner rows.
        """
        choices = random.random((2, len(rows), count))
        first, last = self.starts[rows], self.starts[rows + 1]
        offsets = (choices[0] * (last - first)[:, None]).astype(np.int64)
        codes = self.codes[first[:, None] + offsets]
        sizes = self.member_starts[codes + 1] - self.member_starts[codes]
        positions = self.member_starts[codes] + (choices[1] * sizes).astype(np.int64)
        return codes, self.members[positions]

    def save(self, folder: Path) -> None:
        """Write the arrays, which processes can then share."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name, values in (arrays | {"names": np.array(self.names, dtype=np.str_)}).items():
            content = io.BytesIO()  # np.save to a file says nothing of a full disk
            np.save(content, values)
            (folder / f"{name}.npy").write_bytes(content.getbuffer())

    @classmethod
    def load(cls, folder: Path) -> EntityIndex:
        """Map what `save` wrote into memory."""
        names = tuple(np.load(folder / "names.npy").tolist())
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
        return cls(names, *arrays)


_ARRAYS = ("starts", "codes", "members", "member_starts")
