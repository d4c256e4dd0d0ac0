"""Where training samples come from: a metafile with a folder of images, or web tars.

Opening looks at every row once. Captions that cannot be used are left out, counted and named; what
makes the whole file unusable raises with its row and column.
"""

from __future__ import annotations

import ast
import json
from array import array
from pathlib import Path
from typing import NoReturn

import numpy as np

from talk2dino.features.sources import ImageSource, check_any_exists, image_source
from talk2dino.features.tars import is_tar_input
from talk2dino.methods.ovsegmentor.data.metafile import (
    CAPTION,
    ENTITY,
    IMAGE,
    PAIR_ENTITIES,
    PAIR_ROWS,
    Record,
    Table,
    open_table,
)
from talk2dino.methods.ovsegmentor.data.rows import NO_FILE, CocoRows, Partner, Refused, Rows
from talk2dino.methods.ovsegmentor.data.tar_rows import TarRows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader
from talk2dino.textfiles import parse_json


def open_rows(
    path: str | Path, images: str | Path, reader: CaptionReader, pairs: bool = False
) -> Rows:
    """Open a metafile, COCO captions, or web tars.

    Captions without an entity are left out, except under the reader's `compat`.

    Args:
        path: a csv or tsv, a JSON of COCO captions, or a tar, a folder or a pattern of tars.
        images: the folder of the images that a metafile names; not used for tars.
        reader: tells which captions can be used.
        pairs: whether partners will be asked for (stage 2); a csv has to list them.

    Raises:
        FileNotFoundError: no such file, or none of the images exists.
        ValueError: columns are missing, a row is damaged, pairs are out of range, or nothing can
            be used.
    """
    if is_tar_input(path):
        return TarRows(path, reader, pairs)
    if Path(path).name.lower().endswith((".json", ".json.gz")):
        return CocoRows(Path(path), Path(images), reader, pairs)
    return TableRows(open_table(path), Path(images), reader, pairs)


class TableRows(Rows):
    """The rows of a metafile; in memory are 16 bytes per row, the rest stays in the file."""

    def __init__(self, table: Table, images: Path, reader: CaptionReader, pairs: bool) -> None:
        self.table, self.images, self.refused = table, images, Refused()
        if not images.is_dir():
            raise FileNotFoundError(f"{images}: no such folder; it is to hold the images")
        self._columns = {name: table.column(name) for name in (IMAGE, CAPTION)}
        if pairs:
            self._require_pairs()
        if ENTITY in table.columns:
            self._columns[ENTITY] = table.column(ENTITY)
        offsets, usable = array("q"), array("q")
        self._highest = (-1, 0)  # the highest partner, and the row that has it
        for row, record in enumerate(table.records()):
            offsets.append(record.offset)
            if self._look_at(row, self._split(row, record), reader, pairs):
                usable.append(row)
        self._offsets = np.asarray(offsets, np.int64)
        highest, row = self._highest
        if highest >= len(offsets):
            self._out_of_range(row, highest)
        self.finish(usable, str(table.path))
        check_any_exists([self.source(int(row)) for row in self.usable[:100]])

    def caption(self, row: int) -> str:
        return self._field(row, CAPTION).strip()

    def source(self, row: int) -> ImageSource:
        return image_source({"file_name": self.name(row)}, self.images)

    def name(self, row: int) -> str:
        return self._field(row, IMAGE).strip()

    def partner(self, row: int, random: np.random.Generator) -> Partner:
        rows = self._pair_rows(row, self._field(row, PAIR_ROWS))
        entities = self._pair_entities(row, self._field(row, PAIR_ENTITIES), len(rows))
        choice = int(random.integers(len(rows)))
        return Partner(rows[choice], entities[choice])

    def _field(self, row: int, column: str) -> str:
        record = next(self.table.records(int(self._offsets[row])))
        return self.table.fields(record)[self._columns[column]]

    def _require_pairs(self) -> None:
        for name in (PAIR_ROWS, PAIR_ENTITIES):
            try:
                self._columns[name] = self.table.column(name)
            except ValueError as error:
                raise ValueError(
                    f"{error} Stage 2 needs pairs: python -m talk2dino prepare-captions makepair "
                    f"--metafile {self.table.path}"
                ) from error

    def _split(self, row: int, record: Record) -> list[str]:
        try:
            return self.table.fields(record)
        except ValueError as error:
            raise ValueError(f"{self.table.path}: row {row} {error}") from error

    def _look_at(self, row: int, fields: list[str], reader: CaptionReader, pairs: bool) -> bool:
        """Check one row; returns whether its caption can be used."""
        name = fields[self._columns[IMAGE]].strip()
        if not name:
            self.table.fail(row, IMAGE, "is empty")
        if image_source({"file_name": name}, self.images).is_url:
            self.table.fail(row, IMAGE, NO_FILE.format(name))
        if pairs:
            partners = self._pair_rows(row, fields[self._columns[PAIR_ROWS]])
            self._pair_entities(row, fields[self._columns[PAIR_ENTITIES]], len(partners))
            self._highest = max(self._highest, (max(partners), row))
        listed = ENTITY in self._columns and fields[self._columns[ENTITY]].strip()
        need_entity = not (listed or reader.compat)
        problem = reader.problem(fields[self._columns[CAPTION]], need_entity)
        if problem:
            self.refused.add(f"row {row} ({name})", problem)
        return problem is None

    def _pair_rows(self, row: int, text: str) -> list[int]:
        try:
            rows = parse_json(text, PAIR_ROWS)
        except ValueError:
            rows = None
        if not isinstance(rows, list) or not rows or not all(type(r) is int for r in rows):
            self.table.fail(row, PAIR_ROWS, f"{text[:80]!r} is no list of row numbers")
        if min(rows) < 0:
            self._out_of_range(row, min(rows))
        return rows

    def _pair_entities(self, row: int, text: str, count: int) -> list[str]:
        try:
            entities = _literal(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            entities = None
        if not isinstance(entities, list) or not all(isinstance(e, str) for e in entities):
            self.table.fail(row, PAIR_ENTITIES, f"{text[:80]!r} is no list of words")
        if len(entities) != count:
            self.table.fail(row, PAIR_ENTITIES, f"has {len(entities)} words for {count} pairs")
        return entities

    def _out_of_range(self, row: int, partner: int) -> NoReturn:
        self.table.fail(
            row,
            PAIR_ROWS,
            f"{partner} is no row of this file. Pairs belong to the file they were made for: "
            "make them again",
        )


def _literal(text: str) -> object:
    """A Python literal; json reads the usual list of words ten times as fast."""
    try:
        return json.loads(text.replace("'", '"'))
    except ValueError:
        return ast.literal_eval(text)
