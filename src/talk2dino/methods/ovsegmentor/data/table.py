"""Tables of images and captions, csv or tsv, read one record at a time and from any place.

Nothing but the record at hand is in memory. In a csv, fields may be quoted and hold line breaks;
in a tsv every line is a record, as in CC12M's own.
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

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


@dataclass(frozen=True)
class Table:
    """A csv or tsv file whose columns are known."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Names, with `image_id` and `caption` for whatever the file calls them."""
    start: int
    """Byte at which the first record after the header begins."""

    def column(self, name: str) -> int:
        """The position of a column.

        Raises:
            ValueError: there is none of that name; those there are are listed.
        """
        return self.columns.index(check_name(f"column of {self.path}:", name, self.columns))

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

    def damage(self, fields: list[str]) -> str:
        """What is wrong with a record, to be continued after `row 7 `; empty if nothing is."""
        if len(fields) != len(self.columns):
            return f"has {len(fields)} fields instead of {len(self.columns)}"
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            return "is not UTF-8 text"
        return ""

    def check(self, row: int, fields: list[str]) -> None:
        """Raise ValueError for a damaged record; rows count from 0, as pairindex does."""
        if damage := self.damage(fields):
            raise ValueError(f"{self.path}: row {row} {damage}")

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
