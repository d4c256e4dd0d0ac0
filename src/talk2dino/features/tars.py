"""Tar files of samples in the webdataset manner: members of one sample share the name before the
first dot. Headers are read once; the samples' bytes stay where they are until asked for."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from talk2dino.features.sources import ImageSource
from talk2dino.files import check_file, listed
from talk2dino.textfiles import parse_json

logger = logging.getLogger(__name__)

IDS_PER_TAR = 1_000_000
"""Ids given to web samples: position of their tar among the tars x this + position in the tar."""

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
"""Suffixes of a sample's image."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAMES: Any = {"encoding": "utf-8", "errors": "surrogateescape"}
_END, _LONGEST_END = 2 * 512, 22 * 512  # bytes; up to 20 blocks more fill the last record
_LARGEST_EXTENSION = 2**20  # bytes of a long name or of extended attributes


def is_tar_input(path: str | Path) -> bool:
    """Whether `path` names tars: a folder, a `.tar`, or a pattern of them."""
    return Path(path).is_dir() or str(path).endswith(".tar")


def list_tars(path: str | Path) -> list[Path]:
    """The tars of a folder, of a name, or of a pattern.

    Args:
        path: a folder, `dir/a.tar`, `dir/shard{00000..00003}.tar` or a glob such as `dir/*.tar`.

    Raises:
        FileNotFoundError: nothing matches, or a numbered tar of the range is missing.
        ValueError: one of them is no file, but a folder, a named pipe or a device.
    """
    tars = []
    if Path(path).is_dir():
        tars = listed(path, "*.tar")
        if not tars:
            raise FileNotFoundError(f"the folder {path} holds no .tar files")
    else:
        for name in _expand(str(path)):  # as it goes: a range may have any number of digits
            matches = [name] if Path(name).exists() else sorted(glob.glob(name))
            if not matches:
                raise FileNotFoundError(f"no such tar: {name}")
            tars.extend(map(Path, matches))
        if not tars:
            raise FileNotFoundError(f"{path}: the range is empty; write the lower number first")
    for tar in tars:
        check_file(tar)
    return tars


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    """With its folders."""
    offset: int
    """Where its bytes begin."""
    size: int
    """How many there are."""

    @property
    def sample(self) -> str:
        """The name of its sample: all before the first dot behind the folders."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def suffix(self) -> str:
        """All behind that dot, in lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


class _Headers(io.BufferedReader):
    """A file of which no more than a header is read at once: a damaged size fills no memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_EXTENSION:
            raise tarfile.ReadError(f"a name or attributes of {size} bytes")
        return super().read(size)


def read_members(tar: Path) -> Iterator[Member]:
    """The files of a tar, in order. Hidden ones, such as macOS's `._<name>`, are passed over.

    Whatever the bytes are, no more than 1 MiB is read at once.

    Raises:
        ValueError: it is no tar, a header is damaged, or what follows the last member is not the
            end mark, all of it and alone. The members before that have been given out.
    """
    with _Headers(tar.open("rb", buffering=0)) as file:
        total, position = os.fstat(file.fileno()).st_size, 0
        try:
            with tarfile.open(fileobj=file, mode="r:", **_NAMES) as archive:
                while info := archive.next():
                    archive.members.clear()  # type: ignore[attr-defined]  # there may be millions
                    if info.size < 0 or not position < archive.offset <= total:
                        raise tarfile.ReadError(f"unexpected end of data in {info.name}")
                    position = archive.offset
                    if info.issparse():
                        raise tarfile.ReadError(f"{info.name} is sparse: pack it without --sparse")
                    if info.isreg() and not info.name.rpartition("/")[2].startswith("."):
                        yield Member(info.name, info.offset_data, info.size)
                    elif not (info.isreg() or info.isdir()):
                        text = "%s: %s is no file (a link or a device) and is left out"
                        logger.warning(text, tar, info.name)
        # Beside its own errors the library lets through those of numbers, places and texts.
        except (tarfile.TarError, ValueError, OverflowError, OSError, RecursionError) as error:
            raise _damaged(tar, str(error)) from error
        end = _read(file, position, _LONGEST_END + 1)
    if len(end) < _END:
        raise _damaged(tar, "unexpected end: it is cut short, without its end mark")
    if any(end) or len(end) > _LONGEST_END:
        what = "other data" if any(end) else "zeros"
        raise _damaged(tar, f"{what} in place of a member, or behind the end, at {position}")


def read_samples(tar: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """(name, members by suffix) of every sample of a tar.

    Raises:
        ValueError: the tar is damaged, or holds a sample in several places. The samples before
            that have been given out.
    """
    seen: set[str] = set()
    sample, content = "", dict[str, Member]()
    try:
        for member in read_members(tar):
            if content and member.sample != sample:
                yield sample, content
                seen.add(sample)
                content = {}
            sample = member.sample
            if sample in seen or member.suffix in content:
                raise ValueError(
                    f"{tar}: the members of the sample {sample} are not next to each other, or "
                    f"{member.name} is there twice. Pack it again with tar --sort=name"
                )
            content[member.suffix] = member
    except ValueError:
        if content:
            yield sample, content
        raise
    if content:
        yield sample, content


def hold_features(tars: Sequence[Path]) -> bool:
    """Whether tars are our feature shards rather than web samples, by their first member.

    Empty tars say nothing: there are some wherever there are more shards than captions. Neither
    do damaged ones, which are named when they are read.
    """
    for tar in tars:
        with suppress(ValueError):
            for member in read_members(tar):
                return member.suffix == "pth"
    return False


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
    tar = os.path.basename(place[0])
    record: dict[str, Any] = {"file_name": f"{tar}/{name}", "key": os.path.basename(name)}
    image = next((content[s] for s in IMAGE_MEMBERS if s in content), None)
    try:
        if image is None:
            raise ValueError(f"has no image ({', '.join(IMAGE_MEMBERS)})")
        record["file_name"] = f"{tar}/{image.name}"
        record |= _description(file, content)
    except ValueError as error:
        return record, ImageSource(place, problem=f"sample {name} of {place[0]} {error}")
    return record, ImageSource(place, member=(image.offset, image.size))


def _description(file: BinaryIO, content: dict[str, Member]) -> dict[str, Any]:
    if "json" not in content:
        raise ValueError("has no json")
    try:
        place = content["json"]
        described = parse_json(_read(file, place.offset, place.size), "its json")
        caption = described["caption"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("has no json with a 'caption'") from None
    if not isinstance(caption, str):
        raise ValueError(f"has the caption {caption!r}")
    kept = ("key", "caption", "url", "height", "width")
    return {key: described[key] for key in kept if described.get(key) is not None}


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _damaged(tar: Path, what: str) -> ValueError:
    return ValueError(f"{tar} is damaged or is not an uncompressed tar ({what})")


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
