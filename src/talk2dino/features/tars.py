"""Tar files of samples in the webdataset manner: members of one sample share the name before the
first dot. Headers are read once; the samples' bytes stay where they are until asked for."""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talk2dino.features.sources import ImageSource

IDS_PER_TAR = 1_000_000
"""Ids given to web samples: position of their tar among the tars x this + position in the tar."""

_IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_tar_input(path: str | Path) -> bool:
    """Whether `path` names tars: a folder, a `.tar`, or a pattern of them."""
    return Path(path).is_dir() or str(path).endswith(".tar")


def list_tars(path: str | Path) -> list[Path]:
    """The tars of a folder, of a name, or of a pattern.

    Args:
        path: a folder, `dir/a.tar`, `dir/shard{00000..00003}.tar` or a glob such as `dir/*.tar`.

    Raises:
        FileNotFoundError: nothing matches, or a numbered tar of the range is missing.
    """
    if Path(path).is_dir():
        tars = sorted(Path(path).glob("*.tar"))
        if not tars:
            raise FileNotFoundError(f"the folder {path} holds no .tar files")
        return tars
    names = list(_expand(str(path)))
    tars = []
    for name in names:
        matches = [name] if Path(name).is_file() else sorted(glob.glob(name))
        if not matches:
            raise FileNotFoundError(f"no such tar: {name}")
        tars.extend(map(Path, matches))
    return tars


def hold_features(tars: Sequence[Path]) -> bool:
    """Whether tars are our feature shards rather than web samples, by their first member.

    Empty tars say nothing: there are some wherever there are more shards than captions.
    """
    suffixes = (suffix for tar in tars for _, suffix, _ in _members(tar))
    return next(suffixes, "") == "pth"


@dataclass
class WebSamples:
    """The samples of some tars as COCO records, with the place of every image."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    sources: list[ImageSource] = field(default_factory=list)


def read_web_samples(tars: list[tuple[int, Path]]) -> WebSamples:
    """Index tars of `jpg` + `json{key,caption,url,height,width}` samples (CC3M, CC12M).

    A sample without image or caption is kept as an image that cannot be read, so that it is
    counted and named with the others.

    Args:
        tars: (number, path); ids depend on the number and on the place in the tar only.

    Raises:
        ValueError: a tar is damaged.
    """
    samples = WebSamples()
    for number, tar in tars:
        with tar.open("rb") as file:
            grouped = itertools.groupby(_members(tar), key=lambda member: member[0])
            for position, (name, members) in enumerate(grouped):
                content = {suffix: info for _, suffix, info in members}
                record, source = _web_sample(file, tar, name, content)
                record["id"] = number * IDS_PER_TAR + position
                caption = record.pop("caption", None)
                samples.images.append(record)
                samples.sources.append(source)
                if source.problem is None:
                    samples.annotations.append(
                        {"id": record["id"], "image_id": record["id"], "caption": caption}
                    )
    return samples


def _web_sample(
    file: Any, tar: Path, name: str, content: dict[str, tarfile.TarInfo]
) -> tuple[dict[str, Any], ImageSource]:
    """(record with `caption`, source) of one sample."""
    record: dict[str, Any] = {"file_name": f"{tar.name}/{name}", "key": Path(name).name}
    image = next((content[s] for s in _IMAGE_MEMBERS if s in content), None)
    try:
        if image is None:
            raise ValueError(f"has no image ({', '.join(_IMAGE_MEMBERS)})")
        record["file_name"] = f"{tar.name}/{image.name}"
        record |= _description(file, content)
    except ValueError as error:
        return record, ImageSource((str(tar),), problem=f"sample {name} of {tar} {error}")
    return record, ImageSource((str(tar),), member=(image.offset_data, image.size))


def _description(file: Any, content: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    if "json" not in content:
        raise ValueError("has no json")
    file.seek(content["json"].offset_data)
    try:
        described = json.loads(file.read(content["json"].size))
        caption = described["caption"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("has no json with a 'caption'") from None
    if not isinstance(caption, str):
        raise ValueError(f"has the caption {caption!r}")
    kept = ("key", "caption", "url", "height", "width")
    return {key: described[key] for key in kept if described.get(key) is not None}


def _members(tar: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(sample name, lower-case suffix, header) of every file in a tar."""
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isfile():
                    folder, _, name = info.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    yield f"{folder}/{stem}" if folder else stem, suffix.lower(), info
    except tarfile.TarError as error:
        raise ValueError(f"{tar} is damaged or is not an uncompressed tar ({error})") from error


def _expand(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if not found:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(
            pattern[: found.start()] + f"{number:0{len(first)}d}" + pattern[found.end() :]
        )
