"""Segmentations for annotation tools: COCO, Label Studio, or one mask per class."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from talk2dino.files import atomic_path, write_text

if TYPE_CHECKING:
    from talk2dino.pictures.segmentation import Segmentation

KINDS = {"coco": "coco.json", "labelstudio": "labelstudio.json", "masks": "masks"}
"""What can be written, with the name of the file, or of the folder."""
_RUN_BITS = 16
_LONGEST_RUN = 1 << _RUN_BITS


@dataclass(eq=False)
class Export:
    """Collects the classes of pictures, without the background, and writes them for another tool.

    Masks are written as they come, the one file of the other kinds by `write`.
    """

    kind: str
    """One of KINDS."""
    path: Path
    """The JSON file, or the folder of masks."""
    root: Path
    """The folder to which the names of pictures are relative."""
    _pictures: list[dict[str, Any]] = field(default_factory=list)
    _marks: list[dict[str, Any]] = field(default_factory=list)
    _names: tuple[str, ...] = ()

    def add(self, found: Segmentation, source: Path) -> None:
        """One more picture; the classes of all are the same.

        Raises:
            OSError: a mask cannot be written.
        """
        name = Path(os.path.relpath(source.resolve(), self.root)).as_posix()
        self._names = found.names if found.background is None else found.names[1:]
        first = len(found.names) - len(self._names)
        labels = found.labels.numpy()
        masks = ((n, labels == n + first) for n in range(len(self._names)))
        occurring = [(number, mask) for number, mask in masks if mask.any()]
        if self.kind == "masks":
            with atomic_path(self.path / name) as folder:
                folder.mkdir()
                for number, mask in occurring:
                    shown = re.sub(r"[^\w-]+", "_", self._names[number])[:40]
                    picture = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
                    picture.save(folder / f"{number:03d}_{shown}.png")
        elif self.kind == "coco":
            height, width = labels.shape
            entry = {"id": len(self._pictures) + 1, "file_name": name}
            self._pictures.append({**entry, "height": height, "width": width})
            for number, mask in occurring:
                mark = {"id": len(self._marks) + 1, "image_id": entry["id"], "iscrowd": 0}
                self._marks.append({**mark, "category_id": number + 1, **coco_mask(mask)})
        else:
            marks = [self._brush(number, mask) for number, mask in occurring]
            self._pictures.append({"data": {"image": name}, "predictions": [{"result": marks}]})

    def _brush(self, number: int, mask: np.ndarray) -> dict[str, Any]:
        height, width = mask.shape
        value = {"format": "rle", "rle": brush_rle(mask), "brushlabels": [self._names[number]]}
        where = {"from_name": "tag", "to_name": "image", "type": "brushlabels"}
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        return {"id": f"class{number}", **where, **size, "value": value}

    def write(self) -> Path:
        """Write what was collected; returns where it is."""
        if self.kind != "masks":
            content: Any = self._pictures
            if self.kind == "coco":
                categories = [{"id": n, "name": name} for n, name in enumerate(self._names, 1)]
                content = {
                    "images": self._pictures,
                    "annotations": self._marks,
                    "categories": categories,
                }
            write_text(self.path, json.dumps(content))
        return self.path


def coco_mask(mask: np.ndarray) -> dict[str, Any]:
    """`segmentation`, `area` and `bbox` (x, y, width, height) of a mask (H, W) with pixels.

    The segmentation is COCO's uncompressed run lengths, column by column, the outside first.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    values, counts = _runs(mask.ravel(order="F"))
    lengths = [*([0] if values[0] else []), *counts.tolist()]
    return {
        "segmentation": {"size": list(mask.shape), "counts": lengths},
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
    }


def brush_rle(mask: np.ndarray) -> list[int]:
    """The bytes of a mask (H, W) as a brush of Label Studio: runs of the values of RGBA pixels.

    The bits are the number of values (32), the bits of a value less 1 (5) and those of four kinds
    of run lengths (4 each); then, per run, 1, the kind (2), its length less 1 and its value.
    """
    values, counts = _runs(np.repeat(mask.ravel(), 4))
    parts = -(-counts // _LONGEST_RUN)
    lengths = np.full(int(parts.sum()), _LONGEST_RUN)
    lengths[np.cumsum(parts) - 1] = counts - (parts - 1) * _LONGEST_RUN
    shown = np.where(np.repeat(values, parts), 255, 0)
    runs = (((7 << _RUN_BITS) | (lengths - 1)) << 8) | shown  # 7: a run of the last kind
    head = f"{4 * mask.size:032b}{7:05b}{2:04b}{3:04b}{7:04b}{_RUN_BITS - 1:04b}"
    bits = ((runs[:, None] >> np.arange(26, -1, -1)) & 1).astype(np.uint8)  # the highest first
    first = np.array([*map(int, head)], np.uint8)
    packed: list[int] = np.packbits(np.concatenate([first, bits.ravel()])).tolist()
    return packed


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of runs of equal ones, and how long these are."""
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    return values[starts], np.diff(starts, append=len(values))
