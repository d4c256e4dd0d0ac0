"""Training samples from COCO captions; one row per caption, all of them in memory."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from talk2dino.features.captions import check_captions, read_coco
from talk2dino.features.sources import ImageSource, check_any_exists, image_source
from talk2dino.methods.ovsegmentor.data.entity_index import EntityIndex
from talk2dino.methods.ovsegmentor.data.rows import NO_FILE, Partner, Refused, Rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader


class CocoRows(Rows):
    """The annotations of a captions file, in its order.

    Pairs need no preparation: a partner is drawn as `prepare-captions makepair` draws one.

    Args:
        path: COCO captions, as the extraction reads them.
        images: the folder of the images, or of COCO's `train2017` and the like.
        reader: tells which captions can be used, and their entities for the pairs.
        pairs: whether partners will be asked for.
    """

    def __init__(self, path: Path, images: Path, reader: CaptionReader, pairs: bool) -> None:
        self.refused = Refused()
        features = read_coco(path)
        check_captions(features, path, need_ids=False)
        self._captions = [text["caption"].strip() for text in features.annotations]
        self._rows = features.caption_rows.numpy()
        self._sources = [image_source(image, images) for image in features.images]
        self._names = [image.get("file_name") or image["coco_url"] for image in features.images]
        if address := next((source.places[0] for source in self._sources if source.is_url), None):
            raise ValueError(f"{path}: {NO_FILE.format(address)}")
        usable, entities = array("q"), []
        for row, caption in enumerate(self._captions):
            problem = reader.problem(caption, not reader.compat)
            found = reader.entities(caption) if pairs and not problem else []
            if pairs and not problem and not found:
                problem = "without a partner"
            if problem:
                self.refused.add(f"caption {row} ({self.name(row)})", problem)
            else:
                usable.append(row)
            entities.append(found)
        self._index = EntityIndex.build(entities)
        self.finish(usable, str(path))
        check_any_exists([self.source(int(row)) for row in self.usable[:100]], images)

    def caption(self, row: int) -> str:
        return self._captions[row]

    def source(self, row: int) -> ImageSource:
        return self._sources[self._rows[row]]

    def name(self, row: int) -> str:
        return self._names[self._rows[row]]

    def partner(self, row: int, random: np.random.Generator) -> Partner:
        if not self._index.names:
            raise RuntimeError("the captions were opened without pairs")
        codes, rows = self._index.draw(random, np.array([row]), 1)
        return Partner(int(rows[0, 0]), self._index.names[codes[0, 0]])
