"""Feature shards: tars with one `<annotation id>.pth` per caption, for the webdataset library.

A member is a flat dict: the annotation's record (`id`, `image_id`, `caption`, ...), its image's
record under `image`, what made the features under `settings`, and every feature of the caption and
of its image under the key's name.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from talk2dino.features.keys import CAPTION_KEYS, IMAGE_KEYS, first_few
from talk2dino.features.published import Record, stacked
from talk2dino.features.store import FeatureFile, check_id
from talk2dino.features.tars import read_members
from talk2dino.files import atomic_path, check_archive


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
                info = tarfile.TarInfo(_member_name(features.annotations[row]["id"]))
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
    for member in (member for tar in tars for member in _read_members(tar)):
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


def _member_name(annotation_id: Any) -> str:
    """`<annotation id>.pth`; readers end a sample's name at the first dot, so the id has none."""
    return str(annotation_id).replace("%", "%25").replace(".", "%2E") + ".pth"


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


def _read_members(tar: Path) -> Iterator[Record]:
    with tar.open("rb") as file:
        for member in read_members(tar):
            file.seek(member.offset)
            yield _load(file.read(member.size), f"{member.name} of {tar}")


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
