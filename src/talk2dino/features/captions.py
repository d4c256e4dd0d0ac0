"""What is to be extracted: images with their captions, from every kind of input we accept.

* a COCO captions JSON;
* a feature file, ours or the published layout (its features are carried along);
* a folder or pattern of web tars: `jpg` + `json` members (CC3M, CC12M);
* a folder or pattern of our own feature shards.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from talk2dino.features.keys import first_few
from talk2dino.features.shards import read_shards
from talk2dino.features.sources import ImageSource, image_source
from talk2dino.features.store import FeatureFile, check_finite, check_records, read_features
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

    def _checked(self, features: FeatureFile) -> FeatureFile:
        check_records(features, self.path)
        for key, column in {**features.image_features, **features.caption_features}.items():
            check_finite(column, key, self.path)
        return features

    def _rows(self, number: int, count: int) -> tuple[FeatureFile, None]:
        if self._whole is None:
            self._whole = self._checked(_read_file(self.path))
        whole = self._whole
        start, stop = _bounds(number, count, whole.num_images, f"images of {self.path}")
        return whole.select(torch.arange(start, stop)) if count > 1 else whole, None

    def _tars(self, number: int, count: int) -> tuple[FeatureFile, list[ImageSource] | None]:
        start, stop = _bounds(number, count, len(self.tars), f"tars of {self.path}")
        if hold_features(self.tars):
            return self._checked(read_shards(self.tars[start:stop])), None
        tars = list(enumerate(self.tars))[start:stop]
        images, annotations, sources = read_web_samples(tars, whole=not self.need_images)
        if not images:
            raise ValueError(f"{self.path}: the tars hold no samples")
        problems = [source.problem for source in sources if source.problem]
        if problems and not self.need_images:  # else each is an image that could not be read
            logger.warning("samples left out: %s", first_few(problems))
        return FeatureFile(images, annotations), sources


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
