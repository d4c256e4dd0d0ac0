"""What is to be extracted: images with their captions, from every kind of input we accept.

* a COCO captions JSON;
* a feature file, ours or the published layout (its features are carried along);
* a folder or pattern of web tars: `jpg` + `json` members (CC3M, CC12M);
* a folder or pattern of our own feature shards.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino.features.keys import first_few
from talk2dino.features.shards import read_shards
from talk2dino.features.sources import ImageSource, image_source
from talk2dino.features.store import FeatureFile, check_finite, check_id, read_features
from talk2dino.features.tars import hold_features, is_tar_input, list_tars, read_web_samples
from talk2dino.files import check_file
from talk2dino.textfiles import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """Images and captions to work on."""

    features: FeatureFile
    """The records, with the features the input holds already."""
    sources: list[ImageSource]
    """Where each image is, in the order of `features.images`; empty for captions only."""


class CaptionInput:
    """An input that can be taken as a whole or in splits.

    Files are split by image, tars by tar; both contiguously.

    Args:
        path: see the module's list.
        data_dir: folder of the images that records name.
        need_images: whether the images themselves will be read.

    Raises:
        FileNotFoundError: nothing is there.
    """

    def __init__(
        self, path: str | Path, data_dir: str | Path = "", need_images: bool = True
    ) -> None:
        self.path, self.data_dir, self.need_images = Path(path), data_dir, need_images
        self.tars = list_tars(path) if is_tar_input(path) else []
        self._whole: FeatureFile | None = None
        if not self.tars:
            check_file(path, "file or folder")

    def is_path(self, path: Path) -> bool:
        """Whether the input is this file."""
        return self.path.resolve() == path.resolve()

    def split(self, number: int, count: int) -> Collection:
        """Split `number` of `count`; (0, 1) is everything.

        Raises:
            ValueError: the input is damaged, empty or contradicts itself.
        """
        features, sources = (self._tars if self.tars else self._rows)(number, count)
        lone = features.num_images - len(features.caption_rows.unique())
        lone -= sum(source.problem is not None for source in sources or [])  # named elsewhere
        if lone:
            logger.warning(
                "%s: %d of %d images have no caption", self.path, lone, features.num_images
            )
        if sources is None and self.need_images:
            sources = [image_source(image, self.data_dir) for image in features.images]
        return Collection(features, sources or [])

    def _rows(self, number: int, count: int) -> tuple[FeatureFile, None]:
        if self._whole is None:
            self._whole = _read_file(self.path)
            check_captions(self._whole, self.path)
        whole = self._whole
        start, stop = _bounds(number, count, whole.num_images, f"images of {self.path}")
        return whole.select(torch.arange(start, stop)) if count > 1 else whole, None

    def _tars(self, number: int, count: int) -> tuple[FeatureFile, list[ImageSource] | None]:
        start, stop = _bounds(number, count, len(self.tars), f"tars of {self.path}")
        if hold_features(self.tars):
            shards = read_shards(self.tars[start:stop])
            check_captions(shards, self.path)
            return shards, None
        samples = read_web_samples(list(enumerate(self.tars))[start:stop])
        if not samples.images:
            raise ValueError(f"{self.path}: the tars hold no samples")
        problems = [source.problem for source in samples.sources if source.problem]
        if samples.damaged and not self.need_images:
            raise ValueError(first_few(samples.damaged))
        if problems and not self.need_images:  # else each is an image that could not be read
            logger.warning("samples left out: %s", first_few(problems))
        return FeatureFile(samples.images, samples.annotations), samples.sources


def read_coco(path: str | Path) -> FeatureFile:
    """Read a COCO captions file; everything beside images and annotations is kept as `extra`.

    Raises:
        ValueError: it is not JSON, or is no COCO captions file.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no COCO captions file: it holds a {type(content).__name__}")
    for name in ("images", "annotations"):
        if not isinstance(content.get(name), list):
            found = first_few(content, 8) or "nothing"
            raise ValueError(
                f"{path} is no COCO captions file: it has no list {name!r} (found: {found})"
            )
        if not content[name]:
            raise ValueError(f"{path} lists no {name}")
    return FeatureFile(content.pop("images"), content.pop("annotations"), extra=content)


def _read_file(path: Path) -> FeatureFile:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or start[:1] == b"\x80" or path.suffix in (".pth", ".pt"):
        return read_features(path)
    return read_coco(path)


def _bounds(number: int, count: int, total: int, what: str) -> tuple[int, int]:
    if count > total:
        raise ValueError(f"--n_in_splits {count} is more than the {total} {what}")
    return total * number // count, total * (number + 1) // count


def check_captions(features: FeatureFile, path: Path, need_ids: bool = True) -> None:
    """Every record usable, every annotation with its image; lone images are counted.

    Args:
        features: what was read.
        path: its file, for messages.
        need_ids: whether annotations have ids; otherwise all of them or none.

    Raises:
        ValueError: names the first record that is not usable.
    """
    try:
        images, texts = features.images, features.annotations
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_records(images, ("id",), f"{path}: image")
    need_ids = need_ids or any("id" in text for text in texts if isinstance(text, dict))
    keys = ("id", "image_id", "caption") if need_ids else ("image_id", "caption")
    _check_records(texts, keys, f"{path}: annotation")
    ids = Counter(text["id"] for text in texts) if need_ids else Counter()
    twice = first_few(name for name, count in ids.items() if count > 1)
    if twice:
        raise ValueError(f"{path}: annotation ids that occur more than once: {twice}")
    for row, annotation in enumerate(texts):
        if not isinstance(annotation["caption"], str):
            raise ValueError(
                f"{path}: the caption of annotation {annotation.get('id', row)} is "
                f"{annotation['caption']!r}, not text"
            )
    try:
        features.check_rows()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, column in {**features.image_features, **features.caption_features}.items():
        check_finite(column, key, path)


def _check_records(records: list[Any], keys: tuple[str, ...], where: str) -> None:
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{where} {row} is not a record but {record!r}")
        for key in keys:
            if key not in record:
                hint = " Is this a captions file?" if key == "caption" else ""
                raise ValueError(f"{where} {record.get('id', row)} has no {key!r}.{hint}")
            if key != "caption":
                check_id(record[key], f"{where} {row} has the {key!r}")
