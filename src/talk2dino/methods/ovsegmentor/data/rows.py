"""What training samples come from: captions with their images, by row."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from talk2dino.features.captions import read_coco
from talk2dino.features.sources import ImageSource, check_any_exists, image_source
from talk2dino.features.store import check_records
from talk2dino.methods.ovsegmentor.data.words import CaptionReader


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


logger = logging.getLogger(__name__)

SHOWN = 5
"""Captions left out that are named."""
NO_FILE = (
    "{} is an address, not a file. Download the images; tars as img2dataset writes them can be "
    "used directly"
)


@dataclass(frozen=True)
class Partner:
    """An image that shares an entity with another."""

    row: int
    """Its row."""
    entity: str
    """The shared word, as the caption's entity list has it."""


@dataclass
class Refused:
    """Captions that were left out."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Why -> how many."""
    examples: list[str] = field(default_factory=list)
    """The first few, by name."""

    def add(self, name: str, reason: str) -> None:
        """Count one."""
        self.reasons[reason] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(f"{name} is {reason}")


class Rows(ABC):
    """Captions with their images, by row. It can be pickled, and forks share its arrays."""

    usable: np.ndarray
    """(N,) int64 rows whose caption can be used, ascending."""
    refused: Refused
    """The others."""

    @abstractmethod
    def caption(self, row: int) -> str:
        """The caption of a row."""

    @abstractmethod
    def source(self, row: int) -> ImageSource:
        """The image of a row, not yet read."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What messages call the image of a row."""

    @abstractmethod
    def partner(self, row: int, random: np.random.Generator) -> Partner:
        """One of the row's partners, drawn uniformly. Only for rows opened with pairs."""

    def finish(self, usable: array[int], what: str) -> None:
        """Set `usable`, and say what was refused.

        Raises:
            ValueError: nothing is left.
        """
        self.usable = np.asarray(usable, np.int64)
        reasons = "; ".join(f"{count} {why}" for why, count in self.refused.reasons.items())
        if not len(self.usable):
            raise ValueError(f"{what} holds no caption that can be used ({reasons or 'no rows'})")
        if reasons:
            logger.warning(
                "%s: left out %d captions: %s. The first: %s",
                what,
                self.refused.reasons.total(),
                reasons,
                "; ".join(self.refused.examples),
            )


class IndexedRows(Rows):
    """Rows whose pairs need no preparation: a partner is drawn as `makepair` draws one."""

    index: EntityIndex
    """The entities of every row; of none without pairs."""

    def partner(self, row: int, random: np.random.Generator) -> Partner:
        if not self.index.names:
            raise RuntimeError("the captions were opened without pairs")
        codes, rows = self.index.draw(random, np.array([row]), 1)
        return Partner(int(rows[0, 0]), self.index.names[codes[0, 0]])


def look_at(caption: str, reader: CaptionReader, pairs: bool) -> tuple[str | None, list[str]]:
    """Why a caption cannot be used, or None, and its entities if there are to be pairs."""
    problem = reader.problem(caption, not reader.compat)
    if problem or not pairs:
        return problem, []
    entities = reader.entities(caption)
    return None if entities else "without a partner", entities


class CocoRows(IndexedRows):
    """The annotations of a captions file, in its order.

    Args:
        path: COCO captions, as the extraction reads them.
        images: the folder of the images, or of COCO's `train2017` and the like.
        reader: tells which captions can be used, and their entities for the pairs.
        pairs: whether partners will be asked for.
    """

    def __init__(self, path: Path, images: Path, reader: CaptionReader, pairs: bool) -> None:
        self.refused = Refused()
        features = read_coco(path)
        check_records(features, path, need_ids=False)
        self._captions = [text["caption"].strip() for text in features.annotations]
        self._rows = features.caption_rows.numpy()
        self._sources = [image_source(image, images) for image in features.images]
        self._names = [image.get("file_name") or image["coco_url"] for image in features.images]
        if address := next((source.places[0] for source in self._sources if source.is_url), None):
            raise ValueError(f"{path}: {NO_FILE.format(address)}")
        usable, entities = array("q"), []
        for row, caption in enumerate(self._captions):
            problem, found = look_at(caption, reader, pairs)
            if problem:
                self.refused.add(f"caption {row} ({self.name(row)})", problem)
            else:
                usable.append(row)
            entities.append(found)
        self.index = EntityIndex.build(entities)
        self.finish(usable, str(path))
        check_any_exists([self.source(int(row)) for row in self.usable[:100]])

    def caption(self, row: int) -> str:
        return self._captions[row]

    def source(self, row: int) -> ImageSource:
        return self._sources[self._rows[row]]

    def name(self, row: int) -> str:
        return self._names[self._rows[row]]
