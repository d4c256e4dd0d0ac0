"""PASCAL Context: class masks and image lists from `trainval_merged.json`.

The file is the annotation of the "PASCAL in Detail" challenge, from which MMSegmentation's masks
are made too (there through the `detail` package): run-length coded segments with the ids of
PASCAL Context's 459 labels, of which the 59 frequent ones occur.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from talk2dino.benchmarks.data.convert import Conversion
from talk2dino.files import write_text
from talk2dino.textfiles import check_once, read_json, read_names

# fmt: off
CONTEXT_IDS = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23,
    "bird": 25, "boat": 31, "book": 33, "bottle": 34, "building": 44, "bus": 45,
    "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68, "chair": 72, "cloth": 80,
    "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115,
    "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189,
    "horse": 207, "keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259,
    "mouse": 260, "person": 284, "plate": 295, "platform": 296, "pottedplant": 308,
    "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354, "sign": 355,
    "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416,
    "tree": 420, "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454,
    "wood": 458,
}
# fmt: on
"""Class k = 1 ... 59 -> its id among the 459 labels; 0 is the background. Both are alphabetical."""

JSON_NAME = "trainval_merged.json"
MASKS = "SegmentationClassContext"
LISTS = "ImageSets/SegmentationContext"
SPLITS = ("train", "val")

_CLASS_OF = {category: index for index, category in enumerate(CONTEXT_IDS.values(), start=1)}


def find_context_json(voc2010: str | Path) -> Path | None:
    """`trainval_merged.json` in the VOC2010 folder or one of the two above it."""
    folder = Path(voc2010)
    places = [folder / JSON_NAME, folder.parent / JSON_NAME, folder.parents[1] / JSON_NAME]
    return next((path for path in places if path.is_file()), None)


def plan_context(
    annotations: str | Path, voc2010: str | Path
) -> tuple[list[Conversion], dict[str, list[str]]]:
    """Every mask to write, and the image stems of `train` and `val`.

    Args:
        annotations: `trainval_merged.json`; it is held in memory as long as the plan.
        voc2010: the VOC2010 folder that receives `SegmentationClassContext/<stem>.png`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or not of this layout.
    """
    content = read_json(annotations, "Is it cut short? Download it again.")
    segments: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    plan, lists = [], {split: list[str]() for split in SPLITS}
    try:
        for name in ("file_name", "image_id"):
            check_once([image[name] for image in content["images"]], f"{annotations}: {name}")
        for segment in content["annos_segmentation"]:
            segments[segment["image_id"]].append(segment)
        for image in content["images"]:
            if image["phase"] not in lists:
                continue
            stem = Path(image["file_name"]).stem
            lists[image["phase"]].append(stem)
            target = Path(voc2010) / MASKS / f"{stem}.png"
            size_hw = int(image["height"]), int(image["width"])
            convert = partial(_draw, stem, size_hw, segments[image["image_id"]])
            plan.append(Conversion(Path(stem), target, convert))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations} is not the {JSON_NAME} of PASCAL in Detail: {error} is missing in "
            "'images' (phase, file_name, image_id, height, width) or 'annos_segmentation' "
            "(image_id, category_id, segmentation)."
        ) from error
    if not plan:
        raise ValueError(f"{annotations} lists no images of the phases {' or '.join(SPLITS)}.")
    return plan, lists


def write_lists(voc2010: str | Path, lists: Mapping[str, Sequence[str]], overwrite: bool) -> None:
    """Write `ImageSets/SegmentationContext/<split>.txt`; a list that is there stays.

    Raises:
        FileExistsError: another list is there and `overwrite` is false.
    """
    for split, stems in lists.items():
        path = Path(voc2010) / LISTS / f"{split}.txt"
        if path.is_file() and not overwrite:
            if read_names(path) == list(stems):
                continue
            raise FileExistsError(
                f"{path} lists other images than the annotations do. Remove it or pass --overwrite."
            )
        write_text(path, "".join(f"{stem}\n" for stem in stems))


def _draw(
    stem: str, size_hw: tuple[int, int], segments: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, list[int]]:
    """The mask (H, W) uint8 of one image: 0 background, 1 to 59; later segments lie on top."""
    mask = np.zeros(size_hw, dtype=np.uint8)
    for segment in segments:
        category = segment["category_id"]
        if category not in _CLASS_OF:
            raise ValueError(
                f"{stem}: category {category} is none of the 59 classes of {JSON_NAME}. "
                "Is it the annotation with all 459 labels?"
            )
        inside = decode_segment(segment["segmentation"], size_hw)
        if inside.shape != size_hw:
            raise ValueError(f"{stem}: a segment of size {inside.shape} in an image of {size_hw}.")
        mask[inside] = _CLASS_OF[category]
    return mask, []


def decode_segment(segmentation: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from COCO's run lengths (compressed or as a list) or polygons."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            "COCO's segments need pycocotools. Run: pip install pycocotools"
        ) from error
    coded = segmentation
    if isinstance(segmentation, list):
        coded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))
    elif isinstance(segmentation["counts"], list):
        coded = coco_mask.frPyObjects(segmentation, *size_hw)
    return coco_mask.decode(coded).astype(bool)
