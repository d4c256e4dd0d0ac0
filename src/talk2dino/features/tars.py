"""Tar files in the webdataset manner: members of one sample share the name before the first dot.

Headers are read once; the samples' bytes stay where they are until asked for. Our own tars are
feature shards, with one `<annotation id>.pth` per caption. Such a member is a flat dict: the
annotation's record (`id`, `image_id`, `caption`, ...), its image's record under `image`, what made
the features under `settings`, and every feature of the caption and of its image under its key.
"""

import glob
import io
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import torch

from talk2dino.config import first_few
from talk2dino.features.keys import CAPTION_KEYS, IMAGE_KEYS
from talk2dino.features.store import FeatureFile, Record, check_id, stacked
from talk2dino.files import atomic_path, check_archive, check_file, listed

logger = logging.getLogger(__name__)


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
    name: str
    """With its folders."""
    offset: int
    """Where its bytes begin."""
    size: int
    """How many there are."""

    def read(self, file: BinaryIO) -> bytes:
        file.seek(self.offset)
        return file.read(self.size)

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
    """A file of which no more is read than the headers of a member: a damaged size fills no memory.

    Newer versions of Python read a long name in pieces, so that the pieces are added up.
    """

    taken = 0
    """Bytes since the last member."""

    def read(self, size: int | None = -1, /) -> bytes:
        self.taken += size or 0
        if size is None or size < 0 or self.taken > _LARGEST_EXTENSION:
            raise tarfile.ReadError(f"a name or attributes of more than {_LARGEST_EXTENSION} bytes")
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
                    file.taken = 0
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
        file.seek(position)
        file.taken = 0
        end = file.read(_LONGEST_END + 1)
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
    for sample, members in groupby(read_members(tar), attrgetter("sample")):
        content, problem = dict[str, Member](), None
        try:
            for member in members:
                if sample in seen or member.suffix in content:
                    raise ValueError(
                        f"{tar}: the members of the sample {sample} are not next to each other, or "
                        f"{member.name} is there twice. Pack it again with tar --sort=name"
                    )
                content[member.suffix] = member
        except ValueError as error:
            problem = error
        if content:
            yield sample, content
        if problem is not None:
            raise problem
        seen.add(sample)


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


def shard_paths(folder: str | Path, count: int, first: int = 0) -> list[Path]:
    """`shard00000.tar`, ... : `count` names from number `first` on."""
    return [Path(folder) / f"shard{number:05d}.tar" for number in range(first, first + count)]


def write_shards(features: FeatureFile, paths: Sequence[Path]) -> None:
    """Divide the captions contiguously and evenly over the tars; each is written atomically.

    Args:
        features: what to write. Images without captions have no place in shards.
        paths: the tars; existing ones are replaced. Equal contents give equal bytes.
    """
    captions = len(features.annotations)
    for number, path in enumerate(paths):
        start, stop = captions * number // len(paths), captions * (number + 1) // len(paths)
        with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
            for row in range(start, stop):
                data = _member(features, row)
                # Readers end a sample's name at the first dot, so the id has none.
                name = str(features.annotations[row]["id"]).replace("%", "%25")
                info = tarfile.TarInfo(f"{name.replace('.', '%2E')}.pth")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read_shards(tars: Sequence[Path]) -> FeatureFile:
    """Read feature shards back into columns, in memory.

    Raises:
        ValueError: a tar or member is damaged, holds code, or the members do not fit together.
    """
    where = first_few(tars)
    images: dict[Any, Record] = {}
    annotations: list[Record] = []
    settings: dict[str, Any] = {}
    for tar in tars:
        with tar.open("rb") as file:
            for part in read_members(tar):
                member = _load(part.read(file), f"{part.name} of {tar}")
                of_image = {key: member.pop(key) for key in IMAGE_KEYS if key in member}
                images.setdefault(member["image_id"], {**member.pop("image"), **of_image})
                settings = member.pop("settings", None) or settings
                annotations.append(member)
    if not annotations:
        raise ValueError(f"{where}: the shards hold no captions")
    plain_images, of_images, lost = stacked(list(images.values()), IMAGE_KEYS, f"{where}: image")
    plain, of_captions, unread = stacked(annotations, CAPTION_KEYS, f"{where}: caption")
    if lost or unread:
        raise ValueError(f"{where}: the shards differ in their features: some have none")
    return FeatureFile(plain_images, plain, of_images, of_captions, settings)


def _member(features: FeatureFile, row: int) -> bytes:
    image_row = int(features.caption_rows[row])
    member: Record = {**features.annotations[row], "image": features.images[image_row]}
    member["settings"] = features.settings
    for columns, place in ((features.image_features, image_row), (features.caption_features, row)):
        for key in sorted(columns):
            member[key] = columns[key][place].clone()  # a view would take its whole column along
    buffer = io.BytesIO()
    torch.save(member, buffer)
    return buffer.getvalue()


def _load(data: bytes, name: str) -> Record:
    try:
        check_archive(io.BytesIO(data))
        member = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises a dozen kinds on rubbish
        raise ValueError(f"{name} is damaged or holds more than tensors and plain data") from error
    if not isinstance(member, dict) or not isinstance(member.get("image"), dict):
        raise ValueError(f"{name} is not a caption of a feature shard: it has no 'image' record")
    check_id(member.get("image_id"), f"{name} has the 'image_id'")
    return member
