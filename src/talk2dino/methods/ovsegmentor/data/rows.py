"""What training samples come from: captions with their images, by row.

Opening looks at every caption once. Those that cannot be used are left out, counted and named; what
makes the whole file unusable raises with its row and column.
"""

from __future__ import annotations

import ast
import json
import logging
from abc import ABC, abstractmethod
from array import array
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from talk2dino.features.captions import ImageSource, check_any_exists, image_source, read_coco
from talk2dino.features.store import check_records
from talk2dino.methods.ovsegmentor.data.entities import EntityIndex, EntityLists, LeftOut
from talk2dino.methods.ovsegmentor.data.table import (
    CAPTION,
    IMAGE,
    PAIR_ENTITIES,
    PAIR_ROWS,
    Table,
)
from talk2dino.methods.ovsegmentor.data.words import NO_ENTITY, CaptionReader

logger = logging.getLogger(__name__)

_NO_FILE = (
    "{} is an address, not a file. Download the images; tars as img2dataset writes them can be "
    "used directly"
)


class Looked:
    """What is found in captions that are looked at one after the other.

    Args:
        reader: tells which captions can be used, and their entities.
        pairs: whether partners will be asked for, so that entities are noted.
    """

    def __init__(self, reader: CaptionReader, pairs: bool) -> None:
        self.reader, self.pairs = reader, pairs
        self.usable, self.left_out, self.entities = array("q"), LeftOut(), EntityLists()

    def add(self, row: int, caption: str, name: str, missing: str = "") -> None:
        """Look at the caption of the next row, or note why there is none."""
        problem, entities = (missing, []) if missing else self.reader.look_at(caption)
        if problem == NO_ENTITY and self.reader.compat and not self.pairs:
            problem = None  # as published
        if problem:
            self.left_out.add(name, problem)
        else:
            self.usable.append(row)
        self.entities.add(entities if self.pairs and not problem else [])


class Rows(ABC):
    """Captions with their images, by row. It can be pickled, and forks share its arrays."""

    usable: np.ndarray
    """(N,) int64 rows whose caption can be used, ascending."""
    left_out: LeftOut
    """The others."""
    index: EntityIndex
    """The entities of every row, if there are to be pairs."""

    @abstractmethod
    def caption(self, row: int) -> str:
        """The caption of a row."""

    @abstractmethod
    def source(self, row: int) -> ImageSource:
        """The image of a row, not yet read."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What messages call the image of a row."""

    def partner(self, row: int, random: np.random.Generator) -> tuple[int, str]:
        """A row that shares an entity with this one, drawn uniformly, and the entity."""
        if not self.index.names:
            raise RuntimeError("the captions were opened without pairs")
        codes, rows = self.index.draw(random, np.array([row]), 1)
        return int(rows[0, 0]), self.index.names[codes[0, 0]]

    def finish(self, usable: array[int], left_out: LeftOut, what: str) -> None:
        """Set what was found, and say what was left out.

        Raises:
            ValueError: nothing is left.
        """
        self.usable, self.left_out = np.asarray(usable, np.int64), left_out
        if not len(self.usable):
            why = str(left_out) or "no rows"
            raise ValueError(f"{what} holds no caption that can be used ({why})")
        if left_out.reasons:
            logger.warning(
                "%s: left out %d captions: %s. The first: %s",
                *(what, left_out.reasons.total(), left_out, "; ".join(left_out.examples)),
            )


class CocoRows(Rows):
    """The annotations of a captions file, in its order."""

    def __init__(self, path: Path, images: Path, reader: CaptionReader, pairs: bool) -> None:
        features = read_coco(path)
        check_records(features, path, need_ids=False)
        self._captions = [text["caption"].strip() for text in features.annotations]
        self._rows = features.caption_rows.numpy()
        self._sources = [image_source(image, images) for image in features.images]
        self._names = [image.get("file_name") or image["coco_url"] for image in features.images]
        if address := next((source.places[0] for source in self._sources if source.is_url), None):
            raise ValueError(f"{path}: {_NO_FILE.format(address)}")
        looked = Looked(reader, pairs)
        for row, caption in enumerate(self._captions):
            looked.add(row, caption, f"caption {row} ({self.name(row)})")
        self.index = looked.entities.index()
        self.finish(looked.usable, looked.left_out, str(path))
        check_any_exists([self.source(int(row)) for row in self.usable[:100]])

    def caption(self, row: int) -> str:
        return self._captions[row]

    def source(self, row: int) -> ImageSource:
        return self._sources[self._rows[row]]

    def name(self, row: int) -> str:
        return self._names[self._rows[row]]


class TableRows(Rows):
    """The rows of a metafile; in memory are 20 bytes per row, the rest stays in the file.

    Its pairs are those that it lists.
    """

    def __init__(self, table: Table, images: Path, reader: CaptionReader, pairs: bool) -> None:
        self.table, self.images = table, images
        if not images.is_dir():
            raise FileNotFoundError(f"{images}: no such folder; it is to hold the images")
        if pairs and PAIR_ROWS not in table.columns:
            raise ValueError(
                f"{table.path} has no column {PAIR_ROWS!r}. Stage 2 needs pairs: python -m "
                f"talk2dino prepare-captions makepair --metafile {table.path}"
            )
        names = (IMAGE, CAPTION, *((PAIR_ROWS, PAIR_ENTITIES) if pairs else ()))
        self._columns = {name: table.column(name) for name in names}
        places, looked = array("q"), Looked(reader, False)
        highest: tuple[int, int, list[str]] = (-1, 0, [])  # a partner, and the row that has it
        for row, (place, fields) in enumerate(table.records()):
            table.check(row, fields)
            places.append(place)
            name = fields[self._columns[IMAGE]].strip()
            if not name:
                table.fail(row, IMAGE, "is empty")
            if image_source({"file_name": name}, images).is_url:
                table.fail(row, IMAGE, _NO_FILE.format(name))
            if pairs:
                highest = max(highest, (max(self._pairs(row, fields))[0], row, fields))
            looked.add(row, fields[self._columns[CAPTION]], f"row {row} ({name})")
        self._places = np.asarray(places, np.int64)
        if highest[0] >= len(places):
            self._fail_pairs(*highest[1:])
        self.finish(looked.usable, looked.left_out, str(table.path))
        check_any_exists([self.source(int(row)) for row in self.usable[:100]])

    def caption(self, row: int) -> str:
        return self._fields(row)[self._columns[CAPTION]].strip()

    def source(self, row: int) -> ImageSource:
        return image_source({"file_name": self.name(row)}, self.images)

    def name(self, row: int) -> str:
        return self._fields(row)[self._columns[IMAGE]].strip()

    def partner(self, row: int, random: np.random.Generator) -> tuple[int, str]:
        """One of the row's pairs, drawn uniformly."""
        pairs = self._pairs(row, self._fields(row))
        return pairs[int(random.integers(len(pairs)))]

    def _fields(self, row: int) -> list[str]:
        return next(self.table.records(int(self._places[row])))[1]

    def _pairs(self, row: int, fields: list[str]) -> list[tuple[int, str]]:
        """(partner, shared entity) of a row, from two literals of Python."""
        texts = (fields[self._columns[name]] for name in (PAIR_ROWS, PAIR_ENTITIES))
        try:
            rows, entities = map(_literal, texts)
            pairs = list(zip(rows, entities, strict=True))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pairs = []
        if not pairs or any(type(r) is not int or r < 0 or type(e) is not str for r, e in pairs):
            self._fail_pairs(row, fields)
        return pairs

    def _fail_pairs(self, row: int, fields: list[str]) -> NoReturn:
        rows, entities = (fields[self._columns[name]][:80] for name in (PAIR_ROWS, PAIR_ENTITIES))
        raise ValueError(
            f"{self.table.path}: row {row}: {PAIR_ROWS} {rows!r} and {PAIR_ENTITIES} {entities!r} "
            "are no rows of this file with a word for each. Pairs belong to the file they were "
            "made for: make them again"
        )


def _literal(text: str) -> Any:
    """A Python literal; json reads the usual lists ten times as fast."""
    try:
        return json.loads(text.replace("'", '"'))
    except ValueError:
        return ast.literal_eval(text)
