"""Training samples from COCO captions; one row per caption, all of them in memory."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from talk2dino.features.sources import ImageSource, check_any_exists
from talk2dino.features.store import caption_rows
from talk2dino.files import check_file
from talk2dino.methods.ovsegmentor.data.entity_index import EntityIndex
from talk2dino.methods.ovsegmentor.data.sources import Partner, Refused, Rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader


class CocoRows(Rows):
    """The annotations of a captions file, in its order.

    Pairs need no preparation: a partner is drawn as `prepare-captions makepair` draws one.

    Args:
        path: JSON with `images` (id, file_name) and `annotations` (image_id, caption).
        images: the folder that the file names are relative to.
        reader: tells which captions can be used, and their entities for the pairs.
        pairs: whether partners will be asked for.
    """

    def __init__(self, path: Path, images: Path, reader: CaptionReader, pairs: bool) -> None:
        self.images, self.refused = images, Refused()
        self._captions, self._names = _read(path)
        usable, entities = array("q"), []
        for row, caption in enumerate(self._captions):
            problem = reader.problem(caption, not reader.compat)
            found = reader.entities(caption) if pairs and not problem else []
            if pairs and not problem and not found:
                problem = "without a partner"
            if problem:
                self.refused.add(f"caption {row} ({self._names[row]})", problem)
            else:
                usable.append(row)
            entities.append(found)
        self._index = EntityIndex.build(entities)
        self.finish(usable, str(path))
        check_any_exists([self.source(int(row)) for row in self.usable[:100]], images)

    def caption(self, row: int) -> str:
        return self._captions[row]

    def source(self, row: int) -> ImageSource:
        return ImageSource((str(self.images / self._names[row]),))

    def name(self, row: int) -> str:
        return self._names[row]

    def partner(self, row: int, random: np.random.Generator) -> Partner:
        if not self._index.names:
            raise RuntimeError("the captions were opened without pairs")
        codes, rows = self._index.draw(random, np.array([row]), 1)
        return Partner(int(rows[0, 0]), self._index.names[codes[0, 0]])


def _read(path: Path) -> tuple[list[str], list[str]]:
    """The caption and the image file of every annotation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no COCO captions.
    """
    check_file(path, "file of captions")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = [str(image["file_name"]) for image in content["images"]]
        annotations: list[dict[str, Any]] = content["annotations"]
        rows = caption_rows(content["images"], annotations)
        captions = [str(annotation["caption"]).strip() for annotation in annotations]
        return captions, [names[row] for row in rows.tolist()]
    except (ValueError, KeyError, TypeError) as error:
        missing = "no " if isinstance(error, KeyError) else ""
        raise ValueError(
            f"{path} holds no COCO captions ({missing}{error}); it needs images "
            "with id and file_name, and annotations with image_id and caption"
        ) from error
