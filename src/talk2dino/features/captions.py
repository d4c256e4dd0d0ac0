"""What is to be extracted: images with their captions, from every kind of input we accept.

* a COCO captions JSON;
* a feature file, ours or the published layout (its features are carried along);
* a folder or pattern of web tars: `jpg` + `json` members (CC3M, CC12M);
* a folder or pattern of our own feature shards.

Where the pixels of an image come from is an `ImageSource`: a file, a member of a tar, or the
network.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit, urlunsplit

import torch
from PIL import Image

from talk2dino.config import first_few
from talk2dino.features.store import FeatureFile, check_finite, check_records, read_features
from talk2dino.features.tars import (
    Member,
    hold_features,
    is_tar_input,
    list_tars,
    read_samples,
    read_shards,
)
from talk2dino.files import check_file
from talk2dino.pictures.images import decode_rgb, read_rgb
from talk2dino.textfiles import parse_json, read_json

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
        if not self.tars:
            check_file(path, "file or folder")

    @property
    def holds_features(self) -> bool:
        """Whether it is a feature file, or our shards."""
        if self.tars:
            return hold_features(self.tars)
        with self.path.open("rb") as file:
            start = file.read(2)
        return start == b"PK" or start[:1] == b"\x80" or self.path.suffix in (".pth", ".pt")

    @cached_property
    def _whole(self) -> FeatureFile:
        """A file, which is read once for all splits."""
        return self._checked((read_features if self.holds_features else read_coco)(self.path))

    def _checked(self, features: FeatureFile) -> FeatureFile:
        check_records(features, self.path)
        for key, column in {**features.image_features, **features.caption_features}.items():
            check_finite(column, key, self.path)
        return features

    def split(self, number: int, count: int) -> Collection:
        """Split `number` of `count`; (0, 1) is everything.

        Raises:
            ValueError: the input is damaged, empty or contradicts itself.
        """
        return self._everything if count == 1 else self._part(number, count)

    @cached_property
    def _everything(self) -> Collection:
        return self._part(0, 1)

    def _part(self, number: int, count: int) -> Collection:
        unit, total = ("tars", len(self.tars)) if self.tars else ("images", self._whole.num_images)
        if count > total:
            raise ValueError(
                f"--n_in_splits {count} is more than the {total} {unit} of {self.path}"
            )
        start, stop = total * number // count, total * (number + 1) // count
        sources = list[ImageSource]()
        if not self.tars:
            features = self._whole.select(torch.arange(start, stop))
        elif self.holds_features:
            features = self._checked(read_shards(self.tars[start:stop]))
        else:
            tars = list(enumerate(self.tars))[start:stop]
            images, annotations, sources = read_web_samples(tars, whole=not self.need_images)
            features = FeatureFile(images, annotations)
            if not images:
                raise ValueError(f"{self.path}: the tars hold no samples")
        problems = [source.problem for source in sources if source.problem]
        if not self.need_images:
            if problems:  # else each is an image that could not be read
                logger.warning("samples left out: %s", first_few(problems))
            return Collection(features, sources)
        lone = features.num_images - len(features.caption_rows.unique()) - len(problems)
        if lone:
            logger.warning(
                "%s: %d of %d images have no caption", self.path, lone, features.num_images
            )
        if not sources:
            sources = [image_source(image, self.data_dir) for image in features.images]
        return Collection(features, sources)


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


IDS_PER_TAR = 1_000_000
"""Ids given to web samples: position of their tar among the tars x this + position in the tar."""

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
"""Suffixes of a sample's image."""


def read_web_samples(
    tars: Sequence[tuple[int, Path]], whole: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[ImageSource]]:
    """Index tars of `jpg` + `json{key,caption,url,height,width}` samples (CC3M, CC12M).

    A sample without image or caption is kept as an image that cannot be read, so that it is
    counted and named with the others; and so is what is missing of a damaged tar, under its name.

    Args:
        tars: (number, path); ids depend on the number and on the place in the tar only.
        whole: refuse damaged tars.

    Returns:
        Images and annotations as COCO records, and the place of every image.

    Raises:
        ValueError: a tar is damaged and `whole` is asked for.
    """
    images, annotations, sources = list[dict[str, Any]](), list[dict[str, Any]](), []
    for number, tar in tars:
        found, place = [], (str(tar),)  # one for all: there are millions of samples
        try:
            with tar.open("rb") as file:
                for name, content in read_samples(tar):
                    found.append(_web_sample(file, place, name, content))
        except ValueError as error:
            if whole:
                raise
            found.append(({"file_name": tar.name}, ImageSource(place, problem=str(error))))
        for position, (record, source) in enumerate(found):
            record["id"] = own = number * IDS_PER_TAR + position
            caption = record.pop("caption", None)
            images.append(record)
            sources.append(source)
            if source.problem is None:
                annotations.append({"id": own, "image_id": own, "caption": caption})
    return images, annotations, sources


def _web_sample(
    file: BinaryIO, place: tuple[str], name: str, content: dict[str, Member]
) -> tuple[dict[str, Any], ImageSource]:
    """(record with `caption`, source) of one sample of the tar at `place`."""
    image = next((content[s] for s in IMAGE_MEMBERS if s in content), None)
    file_name = f"{os.path.basename(place[0])}/{image.name if image else name}"
    record: dict[str, Any] = {"file_name": file_name, "key": os.path.basename(name)}
    described, problem = dict[str, Any](), ""
    if image is None:
        problem = f"has no image ({', '.join(IMAGE_MEMBERS)})"
    elif "json" not in content:
        problem = "has no json"
    else:
        try:
            described = parse_json(content["json"].read(file), "its json")
            if not isinstance(described["caption"], str):
                problem = f"has the caption {described['caption']!r}"
        except (ValueError, KeyError, TypeError):
            problem = "has no json with a 'caption'"
    if image is None or problem:
        return record, ImageSource(place, problem=f"sample {name} of {place[0]} {problem}")
    kept = ("key", "caption", "url", "height", "width")
    record |= {key: described[key] for key in kept if described.get(key) is not None}
    return record, ImageSource(place, member=(image.offset, image.size))


TIMEOUT = 20.0
"""Seconds without an answer after which a download counts as failed."""
ATTEMPTS = 2
"""Downloads are tried this often."""
MAX_DOWNLOAD = 256 * 2**20
"""Bytes after which a download is given up."""

_SPLIT_AND_YEAR = re.compile(r"(train|val|test)(2014|2017)")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image, not yet read. Exactly one of the fields beside `places` may be set."""

    places: tuple[str, ...]
    """Paths in the order they are tried, or one http(s) address."""
    member: tuple[int, int] | None = None
    """Offset and size in bytes inside the only place, a tar."""
    problem: str | None = None
    """Why there is no image, known before reading."""

    @property
    def is_url(self) -> bool:
        return _is_url(self.places[0])

    def _place(self) -> str | None:
        """The first place where something is; addresses are believed."""
        return next((p for p in self.places if _is_url(p) or os.path.isfile(p)), None)

    def exists(self) -> bool:
        """Whether there is something to read."""
        return not self.problem and self._place() is not None

    def state(self) -> tuple[int, ...]:
        """What changes when the file does: size and time, and the place within it."""
        place = self._place()
        if place is None or _is_url(place):
            return ()
        found = os.stat(place)
        return found.st_size, found.st_mtime_ns, *(self.member or ())

    def read(self, least: int = 0) -> Image.Image:
        """Read and decode as RGB; for `least` see `read_rgb`.

        Raises:
            ValueError, OSError: missing, not reachable or not an image; the message says which.
        """
        if self.problem:
            raise ValueError(self.problem)
        place = self._place()
        if place is None:
            raise FileNotFoundError(f"not found; looked for {' and '.join(self.places)}")
        if _is_url(place):
            return decode_rgb(download(place), place, least)
        if self.member is None:
            return read_rgb(place, least)
        with open(place, "rb") as file:
            file.seek(self.member[0])
            return decode_rgb(file.read(self.member[1]), place, least)


def image_source(record: dict[str, Any], data_dir: str | Path) -> ImageSource:
    """Where the image of a COCO record is looked for.

    `data_dir/f` for the `file_name` f, then `data_dir/<split><year>/f` with split and year taken
    from f or from `coco_url`. An http(s) name is downloaded.

    Raises:
        ValueError: the record names no file.
    """
    for key in ("file_name", "coco_url"):
        if not isinstance(record.get(key) or "", str):
            raise ValueError(f"image {record.get('id')} has the {key!r} {record[key]!r}, not text")
    url = record.get("coco_url") or ""
    name = record.get("file_name") or PurePosixPath(urlsplit(url).path).name
    if not name:
        raise ValueError(f"image {record.get('id')} has neither a 'file_name' nor a 'coco_url'")
    if _is_url(name):
        return ImageSource((name,))
    places = [os.path.join(data_dir, name)]
    if found := _SPLIT_AND_YEAR.search(name) or _SPLIT_AND_YEAR.search(url):
        places.append(os.path.join(data_dir, "".join(found.groups()), name))
    return ImageSource(tuple(places))


def check_exist(sources: Sequence[ImageSource], every: bool = False) -> None:
    """Raise FileNotFoundError unless one image is there, or `every` one; says where it looked."""
    if not every and any(source.exists() for source in sources):
        return
    missing = [source for source in sources if not source.exists()]
    if not missing:
        return
    problems = [source.problem for source in missing if source.problem]
    places = " and ".join(missing[0].places)
    why = f"the first was looked for at {places}. Is --data_dir the folder with the images?"
    why = f"{problems[-1]}." if problems else why  # what is wrong with a whole tar comes last
    advice = " dino_extraction_v2.py leaves such images out." if every else ""
    raise FileNotFoundError(f"{len(missing)} of {len(sources)} images are missing: {why}{advice}")


def download(url: str, timeout: float = TIMEOUT, attempts: int = ATTEMPTS) -> bytes:
    """Fetch `url`; network trouble is retried, an answer such as 404 is not.

    Raises:
        OSError: not reachable, refused, too slow or too large.
    """
    problem: Exception | None = None
    for _ in range(attempts):
        try:
            request = urllib.request.Request(_encoded(url), headers={"User-Agent": "talk2dino"})
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                data = answer.read(MAX_DOWNLOAD + 1)
        except urllib.error.HTTPError as error:
            problem = error
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = error
        else:
            if len(data) > MAX_DOWNLOAD:
                raise OSError(f"{url} is larger than {MAX_DOWNLOAD} bytes")
            return data
    raise OSError(f"{url} could not be downloaded ({problem})") from problem


def _is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _encoded(url: str) -> str:
    """The address with percent codes for what an address cannot hold; codes that are there stay."""
    parts = urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    url = re.sub("%(?![0-9A-Fa-f]{2})", "%25", urlunsplit(parts._replace(netloc=host)))
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")
