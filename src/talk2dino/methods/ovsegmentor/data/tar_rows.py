"""Training samples from webdataset tars, as img2dataset or the YFCC conversion write them.

A sample is an image and its caption: the `caption` of a `.json`, or a `.txt` or `.text`. Headers
are read once; in memory are 61 bytes per sample, and 8 per entity of a sample with pairs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from talk2dino.features.sources import ImageSource
from talk2dino.features.tars import IMAGE_MEMBERS, Member, list_tars, read_samples
from talk2dino.methods.ovsegmentor.data.rows import EntityIndex, Partner, Refused, Rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader
from talk2dino.textfiles import decode_text, parse_json

_TEXTS = ("json", "txt", "text")
_MAX_CAPTION = 2**20  # bytes


class TarRows(Rows):
    """The samples of all tars, numbered in their order.

    Pairs need no preparation: a partner is drawn as `prepare-captions makepair` draws one.

    Args:
        path: a tar, a folder, or a pattern of tars.
        reader: tells which captions can be used, and their entities for the pairs.
        pairs: whether partners will be asked for.
    """

    def __init__(self, path: str | Path, reader: CaptionReader, pairs: bool) -> None:
        self.tars, self.refused = list_tars(path), Refused()
        self._is_json = array("b")
        places, usable = array("q"), array("q")
        entities = self._scan(reader, pairs, places, usable)
        self._index = EntityIndex.build(entities)
        self._places = np.asarray(places, np.int64).reshape(-1, 5)
        self.finish(usable, str(path))

    def _scan(
        self, reader: CaptionReader, pairs: bool, places: array[int], usable: array[int]
    ) -> Iterator[list[str]]:
        """Note every sample; yields the entities of its caption if pairs are wanted."""
        for number, tar in enumerate(self.tars):
            with tar.open("rb") as file:
                for name, content in read_samples(tar):
                    image = next((content[s] for s in IMAGE_MEMBERS if s in content), None)
                    text = next((content[s] for s in _TEXTS if s in content), None)
                    is_json = text is not None and text.suffix == "json"
                    places.extend((number, *_place(image), *_place(text)))
                    self._is_json.append(is_json)
                    caption, missing = _caption(file, image, text, is_json)
                    problem = missing or reader.problem(caption, not reader.compat)
                    found = reader.entities(caption) if pairs and not problem else []
                    if pairs and not problem and not found:
                        problem = "without a partner"
                    if problem:
                        self.refused.add(f"sample {name} of {tar}", problem)
                    else:
                        usable.append(len(self._is_json) - 1)
                    yield found

    def caption(self, row: int) -> str:
        number, _, _, offset, size = self._places[row].tolist()
        with self.tars[number].open("rb") as file:
            return _read_caption(file, offset, size, bool(self._is_json[row]))

    def source(self, row: int) -> ImageSource:
        number, offset, size = self._places[row, :3].tolist()
        return ImageSource((str(self.tars[number]),), member=(offset, size))

    def name(self, row: int) -> str:
        number, offset = self._places[row, :2].tolist()
        return f"{self.tars[number]} (image at byte {offset})"

    def partner(self, row: int, random: np.random.Generator) -> Partner:
        if not self._index.names:
            raise RuntimeError("the tars were opened without pairs")
        codes, rows = self._index.draw(random, np.array([row]), 1)
        return Partner(int(rows[0, 0]), self._index.names[codes[0, 0]])


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
