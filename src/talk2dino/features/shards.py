"""Feature shards: tars with one `<annotation id>.pth` per caption, for the webdataset library.

A member is a flat dict: the annotation's record (`id`, `image_id`, `caption`, ...), its image's
record under `image`, what made the features under `settings`, and every feature of the caption and
of its image under the key's name.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.features.keys import CAPTION_KEYS, IMAGE_KEYS, first_few
from talk2dino.features.published import check_tensor
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
    members = [member for tar in tars for member in _read_members(tar)]
    if not members:
        raise ValueError(f"{first_few(tars)}: the shards hold no captions")
    tensors = {key for key, value in members[0].items() if isinstance(value, Tensor)}
    for member in members:
        if {key for key, value in member.items() if isinstance(value, Tensor)} != tensors:
            raise ValueError(
                f"{first_few(tars)}: the shards differ in their features: caption "
                f"{members[0]['id']} holds {first_few(sorted(tensors), 9)}, caption "
                f"{member['id']} does not"
            )
    first_of_image: dict[Any, dict[str, Any]] = {}
    for member in members:
        first_of_image.setdefault(member["image_id"], member)
    owners = list(first_of_image.values())
    image_keys = sorted(tensors & IMAGE_KEYS.keys())
    return FeatureFile(
        [member["image"] for member in owners],
        [
            {k: v for k, v in member.items() if k not in tensors and k not in ("image", "settings")}
            for member in members
        ],
        {key: _stack(owners, key, tars) for key in image_keys},
        {key: _stack(members, key, tars) for key in sorted(tensors - IMAGE_KEYS.keys())},
        members[0].get("settings"),
    )


def _member_name(annotation_id: Any) -> str:
    """`<annotation id>.pth`; readers end a sample's name at the first dot, so the id has none."""
    return str(annotation_id).replace("%", "%25").replace(".", "%2E") + ".pth"


def _member(features: FeatureFile, row: int) -> bytes:
    image_row = int(features.caption_rows[row])
    member: dict[str, Any] = {**features.annotations[row], "image": features.images[image_row]}
    member["settings"] = features.settings
    for columns, place in ((features.image_features, image_row), (features.caption_features, row)):
        for key in sorted(columns):
            member[key] = columns[key][place].clone()  # a view would take its whole column along
    buffer = io.BytesIO()
    torch.save(member, buffer)
    return buffer.getvalue()


def _read_members(tar: Path) -> list[dict[str, Any]]:
    found = []
    with tar.open("rb") as file:
        for member in read_members(tar):
            file.seek(member.offset)
            found.append(_load(file.read(member.size), f"{member.name} of {tar}"))
    return found


def _load(data: bytes, name: str) -> dict[str, Any]:
    try:
        check_archive(io.BytesIO(data))
        member = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises a dozen kinds on rubbish
        raise ValueError(f"{name} is damaged or holds more than tensors and plain data") from error
    if not isinstance(member, dict):
        raise ValueError(f"{name} is not a caption of a feature shard, but no dict")
    missing = [k for k in ("id", "image_id", "caption", "image") if k not in member]
    if missing:
        raise ValueError(f"{name} is not a caption of a feature shard: it has no {missing[0]!r}")
    if not isinstance(member["image"], dict):
        raise ValueError(f"{name}: its 'image' is a {type(member['image']).__name__}, not a record")
    check_id(member["image_id"], f"{name} has the 'image_id'")
    for key, value in member.items():
        if isinstance(value, Tensor) or key in IMAGE_KEYS or key in CAPTION_KEYS:
            check_tensor(value, f"{name}: {key!r}")
    return member


def _stack(members: list[dict[str, Any]], key: str, tars: Sequence[Path]) -> Tensor:
    shapes = Counter(tuple(member[key].shape) for member in members)
    if len(shapes) > 1:
        where = first_few(tars)
        raise ValueError(f"{where}: the shards differ in the shape of {key!r}: {first_few(shapes)}")
    return torch.stack([member[key] for member in members])
