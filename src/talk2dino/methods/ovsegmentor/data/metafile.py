"""Tables of images and captions, csv or tsv, read one record at a time and from any place.

Nothing but the record at hand is in memory. In a csv, fields may be quoted and hold line breaks;
in a tsv every line is a record, as in CC12M's own.
"""

from __future__ import annotations

import csv
import difflib
import logging
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NoReturn

from talk2dino.files import check_file
from talk2dino.textfiles import check_once, refuse_packed

logger = logging.getLogger(__name__)

IMAGE, CAPTION, ENTITY, PAIR_ROWS, PAIR_ENTITIES = (
    *("image_id", "caption", "entity"),
    *("pairindex", "pairentity"),
)
"""Columns of a training metafile; the pair columns are for stage 2."""

MAX_RECORD = 2**20
"""Bytes; a longer record means a quote that is never closed."""
HEADERS = ("auto", "yes", "no")
"""Whether the first record names the columns; `auto` looks whether it holds known names."""

_ALIASES = {
    IMAGE: (IMAGE, "filename", "file_name", "filepath", "file", "path", "image", "url", "key"),
    CAPTION: (CAPTION, "text", "title", "description"),
}
_IMAGE_NAME = re.compile(r"https?://.+|\S+\.(jpe?g|png|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A csv or tsv file whose columns are known."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Names, with `image_id` and `caption` for whatever the file calls them."""
    start: int
    """Byte at which the first record after the header begins."""

    @property
    def is_tsv(self) -> bool:
        """Whether tabs separate the fields."""
        return _is_tsv(self.path)

    def column(self, name: str) -> int:
        """The position of a column.

        Raises:
            ValueError: there is none of that name; those there are are listed.
        """
        if name not in self.columns:
            close = difflib.get_close_matches(name, self.columns, n=1)
            raise ValueError(
                f"{self.path} has no column {name!r}; it has: {', '.join(self.columns)}."
                + (f" Is it {close[0]!r}? Then rename it." if close else "")
            )
        return self.columns.index(name)

    def records(self, start: int | None = None, stop: int | None = None) -> Iterator[Record]:
        """The records that begin in `[start, stop)` bytes; empty lines are left out.

        Args:
            start: where a record begins; by default the first.
            stop: by default the end of the file.

        Raises:
            ValueError: a record is longer than MAX_RECORD.
        """
        with self.path.open("rb") as file:
            file.seek(self.start if start is None else start)
            for offset, raw in _raw_records(file, self.path, not self.is_tsv):
                if stop is not None and offset >= stop:
                    return
                yield Record(offset, raw)

    def fields(self, record: Record) -> list[str]:
        """The fields of a record.

        Raises:
            ValueError: it is not UTF-8, or has another number of fields than the header.
        """
        values = _split(record.raw, self.is_tsv)
        if len(values) != len(self.columns):
            raise ValueError(f"has {len(values)} fields instead of {len(self.columns)}")
        return values

    def fail(self, row: int, column: str, problem: str) -> NoReturn:
        """Raise ValueError with the place of a problem; rows count from 0, as pairindex does."""
        raise ValueError(f"{self.path}: row {row}, column {column!r}: {problem}")


@dataclass(frozen=True)
class Record:
    """One row of a table, not yet split into fields."""

    offset: int
    """Byte at which it begins."""
    raw: bytes
    """With its line end."""


def open_table(path: str | Path, header: str = "auto") -> Table:
    """Look at the first record of a file.

    Args:
        path: `.csv` or `.tsv`.
        header: one of HEADERS. Without a header there are two columns, image and caption.

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
        records = _raw_records(file, path, not _is_tsv(path))
        first, second = next(records, None), next(records, None)
    if first is None:
        raise ValueError(f"{path} is empty")
    offset, raw = first
    try:
        names = [name.strip() for name in _split(raw, _is_tsv(path))]
    except ValueError as error:
        raise ValueError(f"{path}: the first record {error}") from error
    if header == "yes" or (header == "auto" and _is_header(names)):
        columns = _known_columns(path, names, header, second[1] if second else b"")
        return Table(path, columns, offset + len(raw))
    if len(names) != 2:
        raise ValueError(
            f"{path} has no header that names an image and a caption column, but "
            f"{len(names)} columns: {', '.join(names)[:200]}. Add a header such as image_id,caption"
        )
    if header == "auto" and _names_columns(names):
        raise ValueError(
            f"{path}: the first line, {','.join(names)}, seems to name columns, but not an image "
            "and a caption column. Call them image_id and caption, or say --header no if it is a "
            "caption already, --header yes if these are the image and the caption."
        )
    return Table(path, _two_columns(path, raw), offset)


def _is_tsv(path: Path) -> bool:
    return path.suffix.lower() == ".tsv"


def _raw_records(file: BinaryIO, path: Path, quoted: bool) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of every record from the file's position on."""
    offset = file.tell()
    while record := _read_record(file, quoted):
        if offset == 0 and record.startswith(BOM_UTF8):
            offset, record = len(BOM_UTF8), record[len(BOM_UTF8) :]
        if len(record) > MAX_RECORD or (quoted and record.count(b'"') % 2):
            begin = record[:80].decode("utf-8", "replace")
            raise ValueError(
                f"{path}: the record at byte {offset} has no end. Is a quote not closed? "
                f"It begins with {begin!r}"
            )
        if record.strip():
            yield offset, record
        offset += len(record)


def _read_record(file: BinaryIO, quoted: bool) -> bytes:
    """A line, and those after it while a quote is open; a little more than MAX_RECORD at most."""
    record = file.readline(MAX_RECORD + 1)
    if not quoted or record.count(b'"') % 2 == 0:
        return record
    lines, size, is_open = [record], len(record), True
    while is_open and size <= MAX_RECORD and (line := file.readline(MAX_RECORD + 1)):
        lines.append(line)
        size += len(line)
        is_open ^= line.count(b'"') % 2 == 1
    return b"".join(lines)


def _split(raw: bytes, tsv: bool) -> list[str]:
    """Raises ValueError, to be continued after `the record ...`."""
    try:
        text = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text ({error.reason})") from error
    if tsv:
        return [_unquoted(field) for field in text.split("\t")]
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"is not valid csv ({error})") from error


def _unquoted(field: str) -> str:
    """A field without the quotes that some programs put around it."""
    inner = field[1:-1].replace('""', "")
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if quoted else field


def _is_header(names: Sequence[str]) -> bool:
    lower = {name.lower() for name in names}
    return all(lower & set(aliases) for aliases in _ALIASES.values())


def _names_columns(names: Sequence[str]) -> bool:
    """Whether two fields read like names of columns: one is known, or both are plain words."""
    lower = {name.lower() for name in names}
    if any(lower & set(aliases) for aliases in _ALIASES.values()):
        return True
    return all(re.fullmatch(r"[A-Za-z_]+", name) for name in names)


@lru_cache(maxsize=8)  # said once, though a table is opened several times
def _two_columns(path: Path, raw: bytes) -> tuple[str, str]:
    """Image and caption, or the other way round if only the second field names an image (CC3M)."""
    try:
        fields = _split(raw, _is_tsv(path))
    except ValueError:
        fields = []
    if [bool(_IMAGE_NAME.fullmatch(field.strip())) for field in fields] != [False, True]:
        return IMAGE, CAPTION
    logger.warning("%s: the first column is taken for the caption, the second the image", path)
    return CAPTION, IMAGE


def _known_columns(path: Path, names: Sequence[str], header: str, first: bytes) -> tuple[str, ...]:
    """The names, with image_id and caption for whatever these are called.

    Of two columns with unknown names, the first record tells which is the image.
    """
    columns = list(names)
    for target, aliases in _ALIASES.items():
        lower = [name.lower() for name in names]
        found = [lower.index(alias) for alias in aliases if alias in lower]
        if found:
            columns[found[0]] = target
    if header == "yes" and len(names) == 2 and not {IMAGE, CAPTION} <= set(columns):
        columns = list(_two_columns(path, first))
    check_once([name.lower() for name in names if name], f"{path}: the header")
    table = Table(path, tuple(columns), 0)
    for name in (IMAGE, CAPTION):
        table.column(name)
    return table.columns
