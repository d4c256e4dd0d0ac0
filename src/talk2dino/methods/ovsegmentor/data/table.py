"""Tables of images and captions, csv or tsv, read one record at a time and from any place.

Nothing but the record at hand is in memory. In a csv, fields may be quoted and hold line breaks;
in a tsv every line is a record, as in CC12M's own.

Beside them: which rows name which entities, how partners are drawn from that, what is left out.
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
import re
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np

from talk2dino.config import check_name
from talk2dino.files import check_file
from talk2dino.textfiles import check_once, refuse_packed

logger = logging.getLogger(__name__)

IMAGE, CAPTION, ENTITY = "image_id", "caption", "entity"
PAIR_ROWS, PAIR_ENTITIES = "pairindex", "pairentity"
"""Columns of a training metafile; the pair columns are for stage 2."""

_ALIASES = {
    IMAGE: (IMAGE, "filename", "file_name", "filepath", "file", "path", "image", "url", "key"),
    CAPTION: (CAPTION, "text", "title", "description"),
}
_IMAGE_NAME = re.compile(r"\s*(https?://.+|\S+\.(jpe?g|png|webp))\s*", re.IGNORECASE)
_LONGEST_LINE = 2**20  # bytes that are read at once
_SHOWN = 5  # of what is left out


@dataclass(frozen=True)
class Table:
    """A csv or tsv file whose columns are known."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Names, with `image_id` and `caption` for whatever the file calls them."""
    start: int
    """Byte at which the first record after the header begins."""

    def need(self, column: str) -> None:
        """Raise ValueError if there is no such column; those there are are listed."""
        check_name(f"column of {self.path}:", column, self.columns)

    def records(
        self, start: int | None = None, stop: float = math.inf
    ) -> Iterator[tuple[int, list[str]]]:
        """(byte, fields) of the records that begin in `[start, stop)`; empty lines are left out.

        What is not UTF-8 is kept as surrogates; see `damage`.

        Args:
            start: a byte where a record begins; by default the first.
            stop: by default the end of the file.

        Raises:
            ValueError: the file is no valid csv, for example because a quote is not closed.
        """
        with self.path.open("rb") as file:
            place = file.seek(self.start if start is None else start)

            def lines() -> Iterator[str]:
                nonlocal place
                while line := file.readline(_LONGEST_LINE):
                    place += len(line)
                    yield line.decode("utf-8", "surrogateescape")

            tabs = self.path.suffix.lower() == ".tsv"
            # The reader takes no line before it needs it, so `place` is where a record begins.
            reader = map(_split, lines()) if tabs else csv.reader(lines(), strict=True)
            while (begin := place) < stop:
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    raise ValueError(
                        f"{self.path}: the record at byte {begin} is not valid csv ({error}). "
                        "Is a quote not closed?"
                    ) from error
                if fields is None:
                    return
                if len(fields) > 1 or "".join(fields).strip():
                    yield begin, fields

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(byte, fields by column) of every row.

        Raises:
            ValueError: a record is damaged; its row counts from 0, as pairindex does.
        """
        for row, (place, fields) in enumerate(self.records()):
            if damage := self.damage(fields):
                raise ValueError(f"{self.path}: row {row} {damage}")
            yield place, self.named(fields)

    def named(self, fields: list[str]) -> dict[str, str]:
        """The fields of a record that is not damaged, by column."""
        return dict(zip(self.columns, fields, strict=True))

    def damage(self, fields: list[str]) -> str:
        """What is wrong with a record, to be continued after `row 7 `; empty if nothing is."""
        if len(fields) != len(self.columns):
            return f"has {len(fields)} fields instead of {len(self.columns)}"
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            return "is not UTF-8 text"
        return ""

    def fail(self, row: int, column: str, problem: str) -> NoReturn:
        """Raise ValueError with the place of a problem."""
        raise ValueError(f"{self.path}: row {row}, column {column!r}: {problem}")


def open_table(path: str | Path) -> Table:
    """Look at the first records of a file.

    Its first one is a header if it names an image and a caption column. Without one there are two
    columns, image and caption, or the other way round if only the second holds image names (CC3M).

    Args:
        path: `.csv` or `.tsv`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, an empty one, or one whose columns are not known.
    """
    path = Path(path)
    check_file(path)
    refuse_packed(path)
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(f"{path} is neither a .csv nor a .tsv file")
    with path.open("rb") as file:
        start = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
    records = list(itertools.islice(Table(path, (), start).records(), 2))
    if not records:
        raise ValueError(f"{path} is empty")
    columns = [name.strip() for name in records[0][1]]
    lower = [name.lower() for name in columns]
    for target, aliases in _ALIASES.items():
        if found := [lower.index(alias) for alias in aliases if alias in lower]:
            columns[found[0]] = target
    if {IMAGE, CAPTION} <= set(columns):
        check_once([name for name in lower if name], f"{path}: the header")
        return Table(path, tuple(columns), records[1][0] if records[1:] else path.stat().st_size)
    if len(columns) != 2:
        raise ValueError(
            f"{path} has no header that names an image and a caption column, but "
            f"{len(columns)} columns: {', '.join(columns)[:200]}. Add a header such as "
            "image_id,caption"
        )
    looks = [bool(_IMAGE_NAME.fullmatch(field)) for field in records[-1][1]]
    if looks != [False, True]:
        return Table(path, (IMAGE, CAPTION), start)
    _say_once(f"{path}: the first column is taken for the caption, the second for the image")
    return Table(path, (CAPTION, IMAGE), start)


@cache
def _say_once(message: str) -> None:
    """A table is opened several times."""
    logger.warning(message)


def _split(line: str) -> list[str]:
    """The fields of a tsv, without the quotes that some programs put around them."""
    return [
        field[1:-1].replace('""', '"') if re.fullmatch('"([^"]|"")*"', field) else field
        for field in line.rstrip("\r\n").split("\t")
    ]


class EntityIndex:
    """Which rows name which entities; rows are numbered from 0, as they are added."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}  # entity -> its code
        self.counts, self.codes = array("i"), array("i")  # of each row; of all, row by row

    def add(self, entities: Iterable[str]) -> None:
        """The next row."""
        before = len(self.codes)
        self.codes.extend(self.names.setdefault(entity, len(self.names)) for entity in entities)
        self.counts.append(len(self.codes) - before)

    def join(self, names: Iterable[str], counts: np.ndarray, codes: np.ndarray) -> None:
        """The next rows, as another index has collected them."""
        own = [self.names.setdefault(name, len(self.names)) for name in names]
        self.counts.frombytes(counts.astype(np.int32).tobytes())
        self.codes.frombytes(np.array(own, np.int32)[codes].tobytes())

    def sort(self) -> EntityIndex:
        """Let `draw` know the rows that were added."""
        counts, self._codes = np.asarray(self.counts, np.int32), np.asarray(self.codes, np.int32)
        rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        sizes = np.bincount(self._codes, minlength=len(self.names))
        # The codes of row r are codes[starts[r]:starts[r + 1]]; so are the rows of a code, members.
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._members = rows[np.argsort(self._codes, kind="stable")]
        self._member_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return self

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
        first, last = self._starts[rows], self._starts[rows + 1]
        offsets = (choices[0] * (last - first)[:, None]).astype(np.int64)
        codes = self._codes[first[:, None] + offsets]
        sizes = self._member_starts[codes + 1] - self._member_starts[codes]
        positions = self._member_starts[codes] + (choices[1] * sizes).astype(np.int64)
        return codes, self._members[positions]


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
        self.reasons.update(reasons)
        self.examples += examples[: _SHOWN - len(self.examples)]

    def __str__(self) -> str:
        return "; ".join(f"{count} {why}" for why, count in sorted(self.reasons.items()))
