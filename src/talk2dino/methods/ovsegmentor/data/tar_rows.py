"""Training samples from webdataset tars, as img2dataset or the YFCC conversion write them.

A sample is an image and its caption: the `caption` of a `.json`, or a `.txt` or `.text`. In memory
are 56 bytes per sample, and 8 per entity of a sample with pairs. What a large tar holds is kept in
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
from talk2dino.features.captions import IMAGE_MEMBERS, ImageSource
from talk2dino.features.tars import Member, list_tars, read_samples
from talk2dino.files import atomic_path, user_cache
from talk2dino.methods.ovsegmentor.data.entities import EntityIndex, LeftOut
from talk2dino.methods.ovsegmentor.data.rows import Looked, Rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader
from talk2dino.textfiles import decode_text, parse_json

_TEXTS = ("json", "txt", "text")
_MAX_CAPTION = 2**20  # bytes
_LARGE = 2**24  # bytes of a tar that is worth a place in the cache
_VERSION = 2  # of what is kept there

TarIndex = dict[str, Any]
"""What one tar with n samples holds:

places (n, 5) int64: offset and size of the image and of the text of every sample, and whether the
    text is JSON;
usable: see `Looked`; counts, codes, names: see `EntityLists`;
left_out: JSON text of the reasons and the examples of `LeftOut`.
"""


class TarRows(Rows):
    """The samples of all tars, numbered in their order.

    Args:
        path: a tar, a folder, or a pattern of tars.
        reader: tells which captions can be used, and their entities for the pairs.
        pairs: whether partners will be asked for.
    """

    def __init__(self, path: str | Path, reader: CaptionReader, pairs: bool) -> None:
        self.tars = list_tars(path)
        count = len(self.tars)
        world = environment_number("WORLD_SIZE", 1, least=1)
        first = environment_number("RANK", 0) % world * count // world
        order = (*range(first, count), *range(first))
        found = {number: indexed(self.tars[number], reader, pairs) for number in order}
        parts = [found.pop(number) for number in range(count)]
        self._starts = np.cumsum([0, *(len(part["places"]) for part in parts)])
        self._places = np.concatenate([part["places"] for part in parts])
        known, left_out = dict[str, int](), LeftOut()
        codes, usable = [], array("q")
        for part, start in zip(parts, self._starts, strict=False):
            table = [known.setdefault(name, len(known)) for name in part["names"].tolist()]
            codes.append(np.array(table, np.int32)[part["codes"]])
            usable.frombytes((part["usable"] + start).tobytes())
            left_out.join(*json.loads(str(part["left_out"])))
        counts = np.concatenate([part["counts"] for part in parts])
        self.index = EntityIndex.of(list(known), counts, np.concatenate(codes))
        self.finish(usable, left_out, str(path))

    def caption(self, row: int) -> str:
        with self._tar(row).open("rb") as file:
            return _read_caption(file, *self._places[row, 2:].tolist())

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
    looked, places = Looked(reader, pairs), array("q")
    with tar.open("rb") as file:
        for number, (name, content) in enumerate(read_samples(tar)):
            image = next((content[s] for s in IMAGE_MEMBERS if s in content), None)
            text = next((content[s] for s in _TEXTS if s in content), None)
            is_json = text is not None and text.suffix == "json"
            places.extend((*_place(image), *_place(text), is_json))
            caption, missing = "", ""
            if image is None or text is None:
                missing = f"without {'an image' if image is None else 'a caption'}"
            else:
                try:
                    caption = _read_caption(file, *_place(text), is_json)
                except ValueError:
                    missing = "without a readable caption"
            looked.add(number, caption, f"sample {name} of {tar}", missing)
    return {
        "places": np.array(places, np.int64).reshape(-1, 5),
        "usable": np.array(looked.usable, np.int64),
        "counts": np.array(looked.entities.counts, np.int32),
        "codes": np.array(looked.entities.codes, np.int32),
        "names": np.array(list(looked.entities.names), np.str_),
        "left_out": np.array(json.dumps([looked.left_out.reasons, looked.left_out.examples])),
    }


def _place(member: Member | None) -> tuple[int, int]:
    return (member.offset, member.size) if member else (-1, 0)


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
