"""What training samples come from: captions with their images, by row.

Opening looks at every caption once. Those that cannot be used are left out, counted and named; what
makes the whole file unusable raises with its row and column.
"""

import ast
import hashlib
import json
import logging
import zipfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from talk2dino.config import environment_number
from talk2dino.features.captions import (
    IMAGE_MEMBERS,
    ImageSource,
    check_exist,
    image_source,
    read_coco,
)
from talk2dino.features.store import check_records
from talk2dino.features.tars import Member, list_tars, read_samples
from talk2dino.files import atomic_path, user_cache
from talk2dino.methods.ovsegmentor.data.table import (
    CAPTION,
    IMAGE,
    PAIR_ENTITIES,
    PAIR_ROWS,
    EntityIndex,
    LeftOut,
    Table,
)
from talk2dino.methods.ovsegmentor.data.words import NO_ENTITY, CaptionReader
from talk2dino.textfiles import decode_text, parse_json

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
        self.reader, self.pairs, self.rows = reader, pairs, 0
        self.usable, self.places = array("q"), array("q")
        self.left_out, self.entities = LeftOut(), EntityIndex()

    def add(self, place: Sequence[int], caption: str, name: str, missing: str = "") -> None:
        """Look at the caption of the next row, or note why there is none."""
        problem, entities = (missing, []) if missing else self.reader.look_at(caption)
        if problem == NO_ENTITY and self.reader.compat and not self.pairs:
            problem = None  # as published
        if problem:
            self.left_out.add(name, problem)
        else:
            self.usable.append(self.rows)
        if self.pairs:
            self.entities.add([] if problem else entities)
        self.places.extend(place)
        self.rows += 1


class Rows(ABC):
    """Captions with their images, by row. It can be pickled, and forks share its arrays.

    Args:
        looked: what was found in all captions, and where they are.
        what: what messages call them.

    Raises:
        ValueError: none of them can be used.
        FileNotFoundError: none of the first images exists.
    """

    def __init__(self, looked: Looked, what: str) -> None:
        self.usable = np.asarray(looked.usable, np.int64)
        """(N,) rows whose caption can be used, ascending."""
        self.left_out = left_out = looked.left_out
        """The others."""
        if not len(self.usable):
            why = str(left_out) or "no rows"
            raise ValueError(f"{what} holds no caption that can be used ({why})")
        self.places = np.asarray(looked.places, np.int64).reshape(looked.rows, -1)
        """(rows, n) numbers that tell where caption and image are."""
        self.index = looked.entities.sort()
        """The entities of every row, if there are to be pairs."""
        if left_out.reasons:
            logger.warning(
                "%s: left out %d captions: %s. The first: %s",
                *(what, left_out.reasons.total(), left_out, "; ".join(left_out.examples)),
            )
        check_exist([self.image(row)[1] for row in self.usable[:100].tolist()])

    @abstractmethod
    def caption(self, row: int) -> str:
        """The caption of a row."""

    @abstractmethod
    def image(self, row: int) -> tuple[str, ImageSource]:
        """What messages call the image of a row, and the image, not yet read."""

    def partner(self, row: int, random: np.random.Generator) -> tuple[int, str]:
        """A row that shares an entity with this one, drawn uniformly, and the entity."""
        codes, rows = self.index.draw(random, np.array([row]), 1)
        return int(rows[0, 0]), list(self.index.names)[codes[0, 0]]


class CocoRows(Rows):
    """The annotations of a captions file, in its order."""

    def __init__(self, path: Path, images: Path, reader: CaptionReader, pairs: bool) -> None:
        features, looked = read_coco(path), Looked(reader, pairs)
        check_records(features, path, need_ids=False)
        self._captions = [text["caption"].strip() for text in features.annotations]
        self._images = [
            (image.get("file_name") or image.get("coco_url"), image_source(image, images))
            for image in features.images
        ]
        for _, source in self._images:
            if source.is_url:
                raise ValueError(f"{path}: {_NO_FILE.format(source.places[0])}")
        for row, image in enumerate(features.caption_rows.tolist()):
            name, _ = self._images[image]
            looked.add((image,), self._captions[row], f"caption {row} ({name})")
        super().__init__(looked, str(path))

    def caption(self, row: int) -> str:
        return self._captions[row]

    def image(self, row: int) -> tuple[str, ImageSource]:
        return self._images[self.places[row, 0]]


class TableRows(Rows):
    """The rows of a metafile; in memory are 20 bytes per row, the rest stays in the file.

    Its pairs are those that it lists.
    """

    def __init__(self, table: Table, images: Path, reader: CaptionReader, pairs: bool) -> None:
        self.table, self.images, looked = table, images, Looked(reader, False)
        if not images.is_dir():
            raise FileNotFoundError(f"{images}: no such folder; it is to hold the images")
        if pairs and PAIR_ROWS not in table.columns:
            raise ValueError(
                f"{table.path} has no column {PAIR_ROWS!r}. Stage 2 needs pairs: python -m "
                f"talk2dino prepare-captions makepair --metafile {table.path}"
            )
        if pairs:
            table.need(PAIR_ENTITIES)
        highest: tuple[int, int, dict[str, str]] = (-1, 0, {})  # a partner, and who has it
        for row, (place, fields) in enumerate(table.rows()):
            name = fields[IMAGE].strip()
            if not name:
                table.fail(row, IMAGE, "is empty")
            if image_source({"file_name": name}, images).is_url:
                table.fail(row, IMAGE, _NO_FILE.format(name))
            if pairs:
                highest = max(highest, (max(self._pairs(row, fields))[0], row, fields))
            looked.add((place,), fields[CAPTION], f"row {row} ({name})")
        if highest[0] >= looked.rows:
            self._fail_pairs(*highest[1:])
        super().__init__(looked, str(table.path))

    def caption(self, row: int) -> str:
        return self._fields(row)[CAPTION].strip()

    def image(self, row: int) -> tuple[str, ImageSource]:
        name = self._fields(row)[IMAGE].strip()
        return name, image_source({"file_name": name}, self.images)

    def partner(self, row: int, random: np.random.Generator) -> tuple[int, str]:
        """One of the row's pairs, drawn uniformly."""
        pairs = self._pairs(row, self._fields(row))
        return pairs[int(random.integers(len(pairs)))]

    def _fields(self, row: int) -> dict[str, str]:
        return self.table.named(next(self.table.records(int(self.places[row, 0])))[1])

    def _pairs(self, row: int, fields: dict[str, str]) -> list[tuple[int, str]]:
        """(partner, shared entity) of a row, from two literals of Python."""
        try:
            rows, entities = _literal(fields[PAIR_ROWS]), _literal(fields[PAIR_ENTITIES])
            pairs = list(zip(rows, entities, strict=True))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pairs = []
        if not pairs or any(type(r) is not int or r < 0 or type(e) is not str for r, e in pairs):
            self._fail_pairs(row, fields)
        return pairs

    def _fail_pairs(self, row: int, fields: dict[str, str]) -> NoReturn:
        rows, entities = fields[PAIR_ROWS][:80], fields[PAIR_ENTITIES][:80]
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


_TEXTS = ("json", "txt", "text")
_ABSENT = Member("", -1, 0)
_MAX_CAPTION = 2**20  # bytes
_LARGE = 2**24  # bytes of a tar that is worth a place in the cache
_VERSION = 2  # of what is kept there

TarIndex = dict[str, Any]
"""What one tar with n samples holds:

places (n, 5) int64: offset and size of the image and of the text of every sample, and whether the
    text is JSON;
usable: see `Looked`; counts, codes, names: see `EntityIndex`;
left_out: JSON text of the reasons and the examples of `LeftOut`.
"""


class TarRows(Rows):
    """The samples of all tars, numbered in their order."""

    def __init__(self, path: str | Path, reader: CaptionReader, pairs: bool) -> None:
        self.tars, looked = list_tars(path), Looked(reader, pairs)
        count = len(self.tars)
        world = environment_number("WORLD_SIZE", 1, least=1)
        first = environment_number("RANK", 0) % world * count // world
        order = (*range(first, count), *range(first))
        found = {number: indexed(self.tars[number], reader, pairs) for number in order}
        self._starts = np.zeros(count, np.int64)
        for number in range(count):
            part, self._starts[number] = found.pop(number), looked.rows
            looked.usable.frombytes((part["usable"] + looked.rows).tobytes())
            looked.places.frombytes(part["places"].tobytes())
            looked.entities.join(part["names"].tolist(), part["counts"], part["codes"])
            looked.left_out.join(*json.loads(str(part["left_out"])))
            looked.rows += len(part["places"])
        super().__init__(looked, str(path))

    def caption(self, row: int) -> str:
        with self._tar(row).open("rb") as file:
            return _read_caption(file, *self.places[row, 2:].tolist())

    def image(self, row: int) -> tuple[str, ImageSource]:
        tar, (offset, size) = self._tar(row), self.places[row, :2].tolist()
        return f"{tar} (image at byte {offset})", ImageSource((str(tar),), member=(offset, size))

    def _tar(self, row: int) -> Path:
        return self.tars[int(np.searchsorted(self._starts, row, side="right")) - 1]


def indexed(tar: Path, reader: CaptionReader, pairs: bool) -> TarIndex:
    """What a tar holds: from the cache, or looked through, and kept there if it is large."""
    kept = cache_place(tar, reader, pairs)
    rubbish = (ValueError, TypeError, EOFError, zipfile.BadZipFile)
    with suppress(OSError, *rubbish), kept.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)
    index = _look_through(tar, reader, pairs)
    if tar.stat().st_size >= _LARGE:
        with suppress(OSError):
            keep(index, kept)
    return index


def keep(index: TarIndex, path: Path) -> None:
    """Write an index to its place in the cache."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **index)


def cache_place(tar: Path, reader: CaptionReader, pairs: bool) -> Path:
    """Where the index of a tar, in its present state and as `reader` reads it, is kept."""
    state = tar.stat()
    decisive = [
        *(_VERSION, str(tar.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns),
        *(pairs, reader.compat, reader.lemma.__module__, reader.lemma.__qualname__),
        sorted(reader.table.items()),
    ]
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    return user_cache() / "tars" / f"{digest[:32]}.npz"


def _look_through(tar: Path, reader: CaptionReader, pairs: bool) -> TarIndex:
    """Read the headers and captions of a tar."""
    looked = Looked(reader, pairs)
    with tar.open("rb") as file:
        for name, content in read_samples(tar):
            image, text = (
                next((content[suffix] for suffix in suffixes if suffix in content), _ABSENT)
                for suffixes in (IMAGE_MEMBERS, _TEXTS)
            )
            of_text = (text.offset, text.size, text.suffix == "json")
            caption, missing = "", "without an image" if image is _ABSENT else ""
            if text is _ABSENT:
                missing = missing or "without a caption"
            elif not missing:
                try:
                    caption = _read_caption(file, *of_text)
                except ValueError:
                    missing = "without a readable caption"
            place = (image.offset, image.size, *of_text)
            looked.add(place, caption, f"sample {name} of {tar}", missing)
    return {
        "places": np.array(looked.places, np.int64).reshape(-1, 5),
        "usable": np.array(looked.usable, np.int64),
        "counts": np.array(looked.entities.counts),
        "codes": np.array(looked.entities.codes),
        "names": np.array(list(looked.entities.names), np.str_),
        "left_out": np.array(json.dumps([looked.left_out.reasons, looked.left_out.examples])),
    }


def _read_caption(file: BinaryIO, offset: int, size: int, is_json: bool) -> str:
    """Raises ValueError for what is no text, or no JSON object with a `caption`."""
    if size > _MAX_CAPTION:
        raise ValueError(f"a caption of {size} bytes")
    file.seek(offset)
    data = file.read(size)
    if not is_json:
        return decode_text(data).strip()
    described = parse_json(data, "a caption")
    caption = described.get("caption") if isinstance(described, dict) else None
    if not isinstance(caption, str):
        raise ValueError("no caption in it")
    return caption.strip()
