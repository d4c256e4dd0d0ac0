"""The feature file: COCO records, and one tensor per key for all images or all captions.

On disk (`torch.save`) it is a dict of tensors and short names only, so that it opens mapped from
disk through the weights-only loader. Records are JSON bytes in one uint8 tensor each: 414,113
captions as separate Python objects take 4 s through that loader, as JSON 0.4 s, and nothing before
they are asked for.

    format, version      "talk2dino-features", 1
    images, annotations  JSON lists of the COCO records (no tensors inside)
    extra, settings      JSON dicts: other top-level COCO entries; what made the features
    num_images           N
    caption_rows         (M,) int64, the position in `images` of each annotation's image
    image_features       key -> tensor (N, ...)
    caption_features     key -> tensor (M, ...)

The published layout (tensors inside every image and annotation dict) is read and written too.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.config import check_name, first_few, naming
from talk2dino.features.keys import CAPTION_KEYS, IMAGE_KEYS, LAYOUTS, adding_command
from talk2dino.files import load_torch, save_torch
from talk2dino.textfiles import check_once, parse_json

logger = logging.getLogger(__name__)

FORMAT = "talk2dino-features"
VERSION = 1
SETTINGS = "talk2dino_settings"
"""Our one addition at the top level of the published layout: JSON text, which it ignores."""

_CHECKED_BYTES = 2**24

Record = dict[str, Any]


class _Records:
    """A field of records: given as a list of dicts, or as JSON bytes that are parsed when used."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __set__(self, file: object, value: Sequence[Record] | Tensor) -> None:
        setattr(file, self.name, value)

    def __get__(self, file: object, owner: type) -> list[Record]:
        value = getattr(file, self.name)  # of the class: an AttributeError, so there is no default
        setattr(file, self.name, records := _records(value))
        return records


@dataclass(eq=False)
class FeatureFile:
    """Images, captions and their features; rows of a column follow the order of the records."""

    images: _Records = _Records()
    """COCO image records."""
    annotations: _Records = _Records()
    """COCO annotation records; each has `id`, `image_id` and `caption`."""
    image_features: dict[str, Tensor] = field(default_factory=dict)
    """Key -> (N, ...), one row per image."""
    caption_features: dict[str, Tensor] = field(default_factory=dict)
    """Key -> (M, ...), one row per annotation."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What made the features: {"vision": {...}, "text": {...}}, each part optional."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other top-level entries of the COCO file (info, licenses, ...)."""
    layout: str | None = None
    """The layout it was read from, or None."""
    mapped_from: Path | None = field(default=None, init=False)
    """The file that the columns are left in, or None if they are in memory."""

    @cached_property
    def caption_rows(self) -> Tensor:
        """(M,) int64: the row in `images` of each annotation's image."""
        return caption_rows(self.images, self.annotations)

    @cached_property
    def num_images(self) -> int:
        """N, known without parsing the records."""
        return len(self.images)

    def require(self, key: str, path: str | Path) -> Tensor:
        """The column `key` of images or captions.

        Raises:
            ValueError: the file holds no such key; the message names the command that adds it.
        """
        for columns in (self.image_features, self.caption_features):
            if key in columns:
                return columns[key]
        held = ", ".join([*self.image_features, *self.caption_features]) or "no features"
        command = adding_command(key, Path(path))
        raise ValueError(f"{path} holds no {key!r} (it holds {held}). {command}")

    def select(self, image_rows: Tensor) -> FeatureFile:
        """Some of the images, in the given order, with their captions and features.

        Args:
            image_rows: (n,) int64 rows of `images`, each at most once.
        """
        if torch.equal(image_rows, torch.arange(self.num_images)):
            return self
        place = torch.full((self.num_images,), -1)
        place[image_rows] = torch.arange(len(image_rows))
        new_rows = place[self.caption_rows]
        kept = (new_rows >= 0).nonzero().flatten()
        return replace(
            self,
            images=[self.images[row] for row in image_rows.tolist()],
            annotations=[self.annotations[row] for row in kept.tolist()],
            image_features={key: c[image_rows] for key, c in self.image_features.items()},
            caption_features={key: c[kept] for key, c in self.caption_features.items()},
        )


def read_features(path: str | Path, mmap: bool = True) -> FeatureFile:
    """Open a feature file of either layout.

    Args:
        path: a `.pth` file.
        mmap: leave the columns on disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, is no feature file, or contradicts itself.
    """
    stored = load_torch(path, mmap=mmap)
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is not a feature file: it holds a {type(stored).__name__}")
    if "format" in stored:
        features = _read_columnar(stored, path)
        if mmap and zipfile.is_zipfile(path):  # an older format of torch cannot be mapped
            features.mapped_from = Path(path)
    elif isinstance(stored.get("images"), list) and isinstance(stored.get("annotations"), list):
        features = _read_published(stored, path)
    else:
        raise ValueError(
            f"{path} is not a feature file: it has no 'images' and 'annotations' "
            f"(found: {first_few(stored, 5) or 'nothing'})"
        )
    _check(features, path)
    return features


def write_features(features: FeatureFile, path: str | Path, layout: str = "columnar") -> None:
    """Write a feature file, atomically; equal contents give equal bytes.

    Columns are streamed from wherever they are: a mapped column is never loaded as a whole.

    Args:
        features: what to write; checked first.
        path: the file; replaced if it exists.
        layout: `columnar`, or `coco` for the published one.

    Raises:
        ValueError: the columns or the records contradict each other.
        OSError: nothing could be written.
    """
    check_name("layout", layout, LAYOUTS)
    _check(features, path)
    of_images = _storable(features.image_features)
    of_captions = _storable(features.caption_features)
    if layout == "coco":
        stored = {
            **features.extra,
            SETTINGS: json.dumps(features.settings),
            "images": _with_rows(features.images, of_images),
            "annotations": _with_rows(features.annotations, of_captions),
        }
    else:
        stored = {
            "format": FORMAT,
            "version": VERSION,
            "images": json_bytes(features.images),
            "annotations": json_bytes(features.annotations),
            "extra": json_bytes(features.extra),
            "settings": json_bytes(features.settings),
            "num_images": features.num_images,
            "caption_rows": features.caption_rows.clone(),
            "image_features": of_images,
            "caption_features": of_captions,
        }
    save_torch(stored, path)


def json_bytes(value: Any) -> Tensor:
    """(n,) uint8: `value` as JSON."""
    try:
        text = json.dumps(value, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"a record cannot be written as JSON: {error}") from error
    return torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8)


def check_id(value: Any, what: str) -> None:
    """Raise ValueError, beginning with `what`, unless `value` can be an id."""
    usable = isinstance(value, int | float | str) and not isinstance(value, bool)
    if not usable or value != value:  # a bool counts as 0 or 1, and NaN is never found again
        raise ValueError(f"{what} {value!r}, not a number or text")


def check_records(features: FeatureFile, path: str | Path, need_ids: bool = True) -> None:
    """Every record usable, every annotation with its image, and the rows those of the records.

    Records that are still JSON are parsed for it, and not kept.

    Args:
        features: what was read.
        path: its file, for messages.
        need_ids: whether annotations have ids; otherwise all of them or none.

    Raises:
        ValueError: names the first record that is not usable.
    """
    with naming(str(path)):
        images, texts = (_records(vars(features)[name]) for name in ("_images", "_annotations"))
        need_ids = need_ids or any("id" in text for text in texts if isinstance(text, dict))
        for what, records, keys in (
            ("image", images, ("id",)),
            ("annotation", texts, (*["id"] * need_ids, "image_id", "caption")),
        ):
            for row, record in enumerate(records):
                if not isinstance(record, dict):
                    raise ValueError(f"{what} {row} is not a record but {record!r}")
                own = f"{what} {record.get('id', row)}"
                for key in keys:
                    if key not in record:
                        hint = " Is this a captions file?" if key == "caption" else ""
                        raise ValueError(f"{own} has no {key!r}.{hint}")
                    if key != "caption":
                        check_id(record[key], f"{what} {row} has the {key!r}")
                    elif not isinstance(record[key], str):
                        raise ValueError(f"the caption of {own} is {record[key]!r}, not text")
        if need_ids:
            check_once((text["id"] for text in texts), "'annotations', by id,")
        rows = caption_rows(images, texts)
        if len(images) != features.num_images or not torch.equal(rows, features.caption_rows):
            raise ValueError(
                "'num_images' or 'caption_rows' contradict the records: captions would be used "
                "with images that they do not describe. Extract the features again."
            )


def check_finite(column: Tensor, key: str, path: str | Path) -> None:
    """Raise ValueError, naming file and column, if one of the numbers is none.

    Args:
        column: all rows of it, or some.
        key: its name.
        path: its file.
    """
    rows = max(1, _CHECKED_BYTES // max(1, column[:1].nbytes))
    if column.is_floating_point() and not all(p.isfinite().all() for p in column.split(rows)):
        raise ValueError(f"{path}: {key!r} holds numbers that are not finite. Extract it again.")


def _records(value: Sequence[Record] | Tensor) -> list[Record]:
    records = _parse(value) if isinstance(value, Tensor) else value
    if not isinstance(records, list):
        raise ValueError(f"the records are no list but a {type(records).__name__}")
    return records


def caption_rows(images: Sequence[Record], annotations: Sequence[Record]) -> Tensor:
    """(M,) int64: the row in `images` of each annotation's image.

    Raises:
        ValueError: an image id occurs twice, or an annotation names none of them.
    """
    row_of = {image["id"]: row for row, image in enumerate(images)}
    if len(row_of) < len(images):
        check_once((image["id"] for image in images), "'images', by id,")
    dangling = [a["image_id"] for a in annotations if a["image_id"] not in row_of]
    if dangling:
        alike = next((name for name in row_of if str(name) == str(dangling[0])), None)
        problem = (
            f"{len(dangling)} of {len(annotations)} annotations name images that are not listed "
            f"(image_id {first_few(dict.fromkeys(dangling))})"
        )
        if alike is not None:
            problem += (
                f". Some ids are text and others numbers: an image has the id {alike!r}, an "
                f"annotation the image_id {dangling[0]!r}. Write all in one way."
            )
        raise ValueError(problem)
    return torch.tensor([row_of[a["image_id"]] for a in annotations], dtype=torch.int64)


def _check(features: FeatureFile, path: str | Path) -> None:
    """Rows and columns that fit the numbers of images and captions."""
    with naming(str(path)):
        try:
            rows = features.caption_rows
        except KeyError as error:
            raise ValueError(f"a record has no {error}") from error
        except TypeError as error:
            raise ValueError(str(error)) from error
        if rows.dtype != torch.int64 or rows.ndim != 1:
            raise ValueError(f"'caption_rows' are {rows.dtype}, {rows.ndim}-D, not 1-D int64")
        if len(rows) and (rows.min() < 0 or rows.max() >= features.num_images):
            raise ValueError(f"captions name images beyond the {features.num_images} listed")
        for columns, count, kind in (
            (features.image_features, features.num_images, "images"),
            (features.caption_features, len(rows), "captions"),
        ):
            for key, column in columns.items():
                shape = tuple(check_tensor(column, repr(key)).shape)
                if not shape or shape[0] != count:
                    raise ValueError(
                        f"{key!r} has shape {shape}, which does not fit {count} {kind}"
                    )


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


def _storable(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sorted by key, each alone in its storage: `torch.save` writes whole storages."""
    found = {}
    for key in sorted(columns):
        column = columns[key].detach().contiguous()
        alone = column.untyped_storage().nbytes() == column.nbytes
        found[key] = column if alone else column.clone()
    return found


def _read_columnar(stored: dict[str, Any], path: str | Path) -> FeatureFile:
    if stored["format"] != FORMAT:
        raise ValueError(f"{path} is not a feature file: its format is {stored['format']!r}")
    if stored.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {stored.get('version')} of the feature file; this program "
            f"reads version {VERSION}. Use the release that wrote it, or extract again."
        )
    try:
        features = FeatureFile(
            _json(stored, "images"),
            _json(stored, "annotations"),
            dict(stored["image_features"]),
            dict(stored["caption_features"]),
            _parse(_json(stored, "settings")),
            _parse(_json(stored, "extra")),
            "columnar",
        )
        features.num_images = int(stored["num_images"])
        features.caption_rows = check_tensor(stored["caption_rows"], "'caption_rows'")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        found = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} is an incomplete or damaged feature file: {found}") from error
    for key, column in {**features.image_features, **features.caption_features}.items():
        if not check_tensor(column, f"{path}: {key!r}").is_contiguous():
            raise ValueError(f"{path}: {key!r} is not stored row by row. Extract it again.")
    return features


def _json(stored: dict[str, Any], name: str) -> Tensor:
    text = check_tensor(stored[name], repr(name))
    if text.dtype != torch.uint8 or text.ndim != 1:
        raise ValueError(f"{name!r} is {text.dtype}, {text.ndim}-D; a row of bytes is needed")
    return text


def _parse(value: Tensor) -> Any:
    return parse_json(value.numpy().tobytes(), "an entry")


def _read_published(stored: dict[str, Any], path: str | Path) -> FeatureFile:
    """The published layout, its tensors stacked into columns.

    Images that its writer could not read carry no tensors: they are left out with their captions,
    and counted in a warning.
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
    columns = (image_features, caption_features)
    return FeatureFile(images, annotations, *columns, settings, extra, "coco")


def _with_rows(records: list[Record], columns: dict[str, Tensor]) -> list[Record]:
    """Rows are views of their column, so `torch.save` writes each once."""
    return [
        {**record, **{key: column[row] for key, column in columns.items()}}
        for row, record in enumerate(records)
    ]


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


def _as_tensor(value: Any, what: str) -> Tensor:
    try:
        return check_tensor(torch.as_tensor(value), what)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{what} is a {type(value).__name__}, not a tensor") from error
