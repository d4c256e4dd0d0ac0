"""The published layout of a feature file: every image and annotation dict holds its own tensors."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from talk2dino.features.keys import CAPTION_KEYS, IMAGE_KEYS, first_few
from talk2dino.textfiles import parse_json

if TYPE_CHECKING:
    from talk2dino.features.store import FeatureFile

logger = logging.getLogger(__name__)

SETTINGS = "talk2dino_settings"
"""Our one addition at the top level: JSON text, ignored by the published code."""

Record = dict[str, Any]
Columns = dict[str, Tensor]
Unpacked = tuple[list[Record], list[Record], Columns, Columns, dict[str, Any], dict[str, Any]]
"""Images, annotations, features of both, settings, and what else the file holds."""


def unpack(stored: dict[str, Any], path: str | Path) -> Unpacked:
    """Stack the tensors of a published file into columns: the arguments of a `FeatureFile`.

    Images that its writer could not read carry no tensors: they are left out with their captions,
    and counted in a warning.

    Raises:
        ValueError: see `stacked`.
    """
    images, image_features, lost = stacked(stored["images"], IMAGE_KEYS, f"{path}: image")
    annotations = stored["annotations"]
    if lost:
        gone = {stored["images"][row].get("id") for row in lost}
        annotations = [a for a in annotations if a.get("image_id") not in gone]
        logger.warning(
            "%s: %d images carry no features (they could not be read when it was made); "
            "they and their captions are left out",
            path,
            len(lost),
        )
    annotations, caption_features, unread = stacked(
        annotations, CAPTION_KEYS, f"{path}: annotation"
    )
    if unread:
        raise ValueError(
            f"{path}: {len(unread)} of {len(annotations) + len(unread)} annotations carry no "
            f"features while the others do. Run: python text_features_extraction.py "
            f"--ann_path {path}"
        )
    known = ("images", "annotations", SETTINGS)
    extra = {key: value for key, value in stored.items() if key not in known}
    try:
        settings = dict(parse_json(stored.get(SETTINGS, "{}"), f"{path}: {SETTINGS}"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its {SETTINGS!r} are damaged ({error})") from error
    return images, annotations, image_features, caption_features, settings, extra


def check_tensor(value: Any, what: str) -> Tensor:
    """`value`, if it is a tensor of real numbers that are all there.

    A tensor of a few bytes can say to be terabytes (as `expand` makes them): that is seen here,
    not when it is used.

    Raises:
        ValueError: it is not; the message begins with `what`.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} is a {type(value).__name__}, not a tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu"
    if not plain or value.is_nested or value.is_quantized or value.is_complex():
        kind = str(value.dtype).removeprefix("torch.")
        raise ValueError(f"{what} is no plain tensor of real numbers but {kind}, {value.layout}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{what} says to have the shape {tuple(value.shape)} but repeats its data")
    return value


def pack(features: FeatureFile, of_images: Columns, of_captions: Columns) -> dict[str, Any]:
    """The dict to save. Rows are views of their column, so `torch.save` writes each once.

    Args:
        features: the records.
        of_images: its columns, each alone in its storage.
        of_captions: likewise.
    """
    return {
        **features.extra,
        SETTINGS: json.dumps(features.settings),
        "images": _with_rows(features.images, of_images),
        "annotations": _with_rows(features.annotations, of_captions),
    }


def _with_rows(records: list[Record], columns: dict[str, Tensor]) -> list[Record]:
    return [
        {**record, **{key: column[row] for key, column in columns.items()}}
        for row, record in enumerate(records)
    ]


def _as_tensor(value: Any, what: str) -> Tensor:
    try:
        return check_tensor(torch.as_tensor(value), what)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{what} is a {type(value).__name__}, not a tensor") from error


def stacked(
    records: list[Any], known: Iterable[str], where: str
) -> tuple[list[Record], dict[str, Tensor], list[int]]:
    """Take the tensors out of records: (plain records, columns, rows without any tensor).

    Args:
        records: as they were read; whatever has a name that others have as a tensor must be one.
        known: names of tensors.
        where: what a record is, for messages.

    Raises:
        ValueError: a record is no dict, or the tensors differ in shape or in which records hold
            them; the message names the first few.
    """
    wrong = [row for row, record in enumerate(records) if not isinstance(record, dict)]
    if wrong:
        raise ValueError(f"{where} {wrong[0]} is not a record (a dict)")
    keys = {k for r in records for k, v in r.items() if isinstance(v, Tensor) or k in known}
    lost = [row for row, record in enumerate(records) if keys and not keys & record.keys()]
    dropped = set(lost)
    kept = [record for row, record in enumerate(records) if row not in dropped]
    columns = {}
    for key in sorted(keys):
        without = [record.get("id") for record in kept if key not in record]
        if without:
            raise ValueError(f"{where}s without {key!r} while others have it: {first_few(without)}")
        rows = [_as_tensor(record[key], f"{where} {record.get('id')}: {key!r}") for record in kept]
        shapes = Counter(tuple(row.shape) for row in rows)
        if len(shapes) > 1:
            raise ValueError(f"{where}s differ in the shape of {key!r}: {first_few(shapes)}")
        columns[key] = torch.stack(rows)
    plain = [{k: v for k, v in record.items() if k not in keys} for record in kept]
    return plain, columns, lost
