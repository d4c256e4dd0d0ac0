"""Training samples from webdataset tars, as img2dataset or the YFCC conversion write them.

A sample is an image and its caption: the `caption` of a `.json`, or a `.txt` or `.text`. In memory
are 41 bytes per sample, and 8 per entity of a sample with pairs. What a large tar holds is kept in
the user's cache: each tar is looked through once, and of several processes each begins with others.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from talk2dino.config import environment_number
from talk2dino.features.sources import ImageSource
from talk2dino.features.tars import IMAGE_MEMBERS, Member, list_tars, read_samples
from talk2dino.files import atomic_path, user_cache
from talk2dino.methods.ovsegmentor.data.rows import (
    SHOWN,
    EntityIndex,
    IndexedRows,
    Refused,
    look_at,
)
from talk2dino.methods.ovsegmentor.data.words import CaptionReader
from talk2dino.textfiles import decode_text, parse_json

_TEXTS = ("json", "txt", "text")
_MAX_CAPTION = 2**20  # bytes
_LARGE = 2**24  # bytes of a tar that is worth a place in the cache
_VERSION = 1  # of what is kept there


TarIndex = dict[str, Any]
"""What one tar with n samples holds:

places (n, 4) int64: offset and size of the image and of the text of every sample;
is_json (n,) int8: whether the text is JSON;
usable (k,) int64: samples whose caption can be used, ascending;
counts (n,) int32: how many entities each has, if pairs are wanted;
codes (m,) int32: the entities, positions in `names`, which are words;
refused: JSON text of the reasons and the examples of `Refused`.
"""


class TarRows(IndexedRows):
    """The samples of all tars, numbered in their order.

    Args:
        path: a tar, a folder, or a pattern of tars.
        reader: tells which captions can be used, and their entities for the pairs.
        pairs: whether partners will be asked for.
    """

    def __init__(self, path: str | Path, reader: CaptionReader, pairs: bool) -> None:
        self.tars, self.refused = list_tars(path), Refused()
        count = len(self.tars)
        world = environment_number("WORLD_SIZE", 1, least=1)
        first = environment_number("RANK", 0) % world * count // world
        found = {
            number: indexed(self.tars[number], reader, pairs)
            for number in (*range(first, count), *range(first))
        }
        parts = [found.pop(number) for number in range(count)]
        self._starts = np.cumsum([0, *(len(part["places"]) for part in parts)])
        self._places = np.concatenate([part["places"] for part in parts])
        self._is_json = np.concatenate([part["is_json"] for part in parts])
        known: dict[str, int] = {}
        codes, usable = [], array("q")
        for part, start in zip(parts, self._starts, strict=False):
            table = [known.setdefault(name, len(known)) for name in part["names"].tolist()]
            codes.append(np.array(table, np.int32)[part["codes"]])
            usable.frombytes((part["usable"] + start).tobytes())
            reasons, examples = json.loads(str(part["refused"]))
            self.refused.reasons.update(reasons)
            self.refused.examples += examples[: SHOWN - len(self.refused.examples)]
        counts = np.concatenate([part["counts"] for part in parts])
        self.index = EntityIndex.of(tuple(known), counts, np.concatenate(codes))
        self.finish(usable, str(path))

    def caption(self, row: int) -> str:
        offset, size = self._places[row, 2:].tolist()
        with self._tar(row).open("rb") as file:
            return _read_caption(file, offset, size, bool(self._is_json[row]))

    def source(self, row: int) -> ImageSource:
        offset, size = self._places[row, :2].tolist()
        return ImageSource((str(self._tar(row)),), member=(offset, size))

    def name(self, row: int) -> str:
        return f"{self._tar(row)} (image at byte {self._places[row, 0]})"

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
    state, table = tar.stat(), reader.table
    decisive = [
        *(_VERSION, str(tar.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns),
        *(pairs, reader.compat, reader.lemma.__module__, reader.lemma.__qualname__),
        *(sorted(table.words.items()), sorted(table.classes.items())),
    ]
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    return user_cache() / "tars" / f"{digest[:32]}.npz"


def _look_through(tar: Path, reader: CaptionReader, pairs: bool) -> TarIndex:
    """Read the headers and captions of a tar; `pairs`: also note the captions' entities."""
    refused, known = Refused(), dict[str, int]()
    places, usable, is_json = array("q"), array("q"), array("b")
    counts, codes = array("i"), array("i")
    with tar.open("rb") as file:
        for name, content in read_samples(tar):
            image = next((content[s] for s in IMAGE_MEMBERS if s in content), None)
            text = next((content[s] for s in _TEXTS if s in content), None)
            is_json.append(text is not None and text.suffix == "json")
            places.extend((*_place(image), *_place(text)))
            caption, missing = _caption(file, image, text, bool(is_json[-1]))
            problem, found = (missing, []) if missing else look_at(caption, reader, pairs)
            if problem:
                refused.add(f"sample {name} of {tar}", problem)
            else:
                usable.append(len(is_json) - 1)
            counts.append(len(found))
            codes.extend(known.setdefault(entity, len(known)) for entity in found)
    return {
        "places": np.array(places, np.int64).reshape(-1, 4),
        "is_json": np.array(is_json, np.int8),
        "usable": np.array(usable, np.int64),
        "counts": np.array(counts, np.int32),
        "codes": np.array(codes, np.int32),
        "names": np.array(list(known), np.str_),
        "refused": np.array(json.dumps([refused.reasons, refused.examples])),
    }


def _place(member: Member | None) -> tuple[int, int]:
    return (member.offset, member.size) if member else (-1, 0)


def _caption(
    file: BinaryIO, image: Member | None, text: Member | None, is_json: bool
) -> tuple[str, str]:
    """The caption, or why there is none."""
    if image is None:
        return "", "without an image"
    if text is None:
        return "", "without a caption"
    try:
        return _read_caption(file, *_place(text), is_json), ""
    except ValueError:
        return "", "without a readable caption"


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
