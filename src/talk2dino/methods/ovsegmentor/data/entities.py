"""Which rows name which entities, how partners are drawn from that, and which rows are left out."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_SHOWN = 5


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
    def of(cls, names: Sequence[str], per_row: np.ndarray, flat: np.ndarray) -> EntityIndex:
        """From the number of every row's entities, (N,) int32, and their codes, (M,) int32."""
        rows = np.repeat(np.arange(len(per_row), dtype=np.int32), per_row)
        sizes = np.bincount(flat, minlength=len(names))
        return cls(
            tuple(names),
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


class EntityLists:
    """The entities of rows, as they are met."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.counts, self.codes = array("i"), array("i")

    def add(self, entities: Sequence[str]) -> None:
        """Those of the next row."""
        self.counts.append(len(entities))
        self.codes.extend(self.names.setdefault(entity, len(self.names)) for entity in entities)

    def index(self) -> EntityIndex:
        """Of all rows so far."""
        counts, codes = np.asarray(self.counts, np.int32), np.asarray(self.codes, np.int32)
        return EntityIndex.of(list(self.names), counts, codes)


@dataclass
class LeftOut:
    """Captions that are not used."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Why -> how many."""
    examples: list[str] = field(default_factory=list)
    """The first few, by name."""

    def add(self, name: str, reason: str, why: str = "") -> None:
        """Count one; `why` is the reason as a sentence about this one."""
        self.reasons[reason] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(f"{name} {why or f'is {reason}'}")

    def join(self, reasons: dict[str, int], examples: list[str]) -> None:
        """Count what was counted elsewhere."""
        self.reasons.update(reasons)
        self.examples += examples[: _SHOWN - len(self.examples)]

    def __str__(self) -> str:
        return "; ".join(f"{count} {why}" for why, count in sorted(self.reasons.items()))
