"""Convert published label files to the ones the benchmarks read: in parallel, one file at a time.

A file is written beside its final name and renamed, so what exists is complete: a conversion that
was interrupted goes on where it stopped when it is started again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from talk2dino.benchmarks.data.labels import IGNORED, read_labels
from talk2dino.config import check_at_least, optional_module
from talk2dino.files import atomic_path, listed, read_ahead, remove_leftovers, write_text
from talk2dino.progress import Progress, silent
from talk2dino.textfiles import check_once, read_json, read_names

Labels = tuple[np.ndarray, Sequence[Any]]
"""(H, W) uint8 or uint16, and values that were not understood."""

COCO_SPLITS = ("train2017", "val2017")
COCO_STUFF_IDS = tuple(sorted({*range(182)} - {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}))
"""The 171 raw pixel values of COCO-Stuff: 80 objects up to 89, then 91 kinds of stuff."""
COCO_OBJECT_IDS = tuple(value for value in COCO_STUFF_IDS if value < 90)
OBJECT_SUFFIX = "_instanceTrainIds"
STUFF_SUFFIX = "_labelTrainIds"

CITYSCAPES_SPLITS = ("train", "val")
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Official ids of the 19 evaluated Cityscapes classes, road to bicycle, in order."""
CITYSCAPES_RAW = "_gtFine_labelIds.png"
CITYSCAPES_CONVERTED = "_gtFine_labelTrainIds.png"

# fmt: off
CONTEXT_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324,
    326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on
"""Ids of the 59 classes of Context among its 459 labels, in the order of
configs/datasets/context59_classes.txt; 0 is the background. Both are alphabetical."""

CONTEXT_JSON = "trainval_merged.json"
"""The annotation of the "PASCAL in Detail" challenge, of which MMSegmentation's masks are made too
(there through the `detail` package): run-length coded segments with ids of the 459 labels."""
_CLASS_OF = {category: index for index, category in enumerate(CONTEXT_IDS, start=1)}


@dataclass(frozen=True)
class Conversion:
    """One label file to write."""

    source: Path
    """What it is made from, for messages."""
    target: Path
    convert: Callable[[], Labels]


@dataclass
class Outcome:
    """What a run of conversions did."""

    written: int = 0
    present: int = 0
    """Files that were there already and were left alone."""
    failures: list[str] = field(default_factory=list)
    """One line per file that could not be converted."""
    unknown: list[str] = field(default_factory=list)
    """One line per file with values that the data set does not define."""


def run_conversions(
    plan: Sequence[Conversion],
    workers: int,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Write every file of the plan that is not there yet.

    Args:
        plan: what to write.
        workers: files converted at the same time. Threads: decoding, lookup and PNG compression
            all run outside of Python's lock.
        overwrite: convert files again that are there.

    Returns:
        Counts; a file that fails does not stop the others.

    Raises:
        OSError: nothing can be written (a full disk, no permission).
    """
    check_at_least(1, workers=workers)
    for folder in {conversion.target.parent for conversion in plan}:
        remove_leftovers(folder)
    todo = [c for c in plan if overwrite or not c.target.exists()]
    outcome = Outcome(present=len(plan) - len(todo))
    with progress(len(plan), outcome.present) as bar:
        for conversion, found in zip(
            todo, read_ahead((partial(_write, c) for c in todo), workers), strict=True
        ):
            if isinstance(found, ValueError):
                outcome.failures.append(str(found))
            else:
                outcome.written += 1
                if len(found):
                    outcome.unknown.append(f"{conversion.source}: {', '.join(map(str, found))}")
            bar.update(1)
    return outcome


def _write(conversion: Conversion) -> Sequence[Any] | ValueError:
    """Write one file; returns the values that were not understood, or why it failed."""
    try:
        labels, unknown = conversion.convert()
    except (ValueError, FileNotFoundError) as error:
        return ValueError(str(error))
    with atomic_path(conversion.target) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG")
    return unknown


def plan_coco(coco: str | Path, out: str | Path, suffix: str) -> list[Conversion]:
    """Every raw COCO-Stuff label below `<coco>/annotations`, and where its conversion goes.

    Args:
        coco: folder with `annotations/train2017` and/or `annotations/val2017`.
        out: folder that receives the same tree; usually `coco` itself.
        suffix: OBJECT_SUFFIX (0 background, stuff and unlabelled pixels too, objects 1 to 80) or
            STUFF_SUFFIX (171 classes from 0; anything else is ignored).

    Raises:
        FileNotFoundError: there is no raw label.
    """
    ids, first, other = (
        (COCO_OBJECT_IDS, 1, 0) if suffix == OBJECT_SUFFIX else (COCO_STUFF_IDS, 0, IGNORED)
    )
    annotations = Path(coco) / "annotations"
    known = {*COCO_STUFF_IDS, IGNORED}
    plan = []
    for split in COCO_SPLITS:
        for source in listed(annotations / split, "*.png"):
            if not source.stem.endswith("TrainIds"):
                target = Path(out) / "annotations" / split / f"{source.stem}{suffix}.png"
                convert = partial(_renumber, source, ids, first, other, known)
                plan.append(Conversion(source, target, convert))
    if not plan:
        raise FileNotFoundError(
            f"{annotations} holds no raw label files in {' or '.join(COCO_SPLITS)} "
            "(000000000139.png, ...). Unpack stuffthingmaps_trainval2017.zip there "
            "(https://github.com/nightrome/cocostuff)."
        )
    return plan


def plan_cityscapes(cityscapes: str | Path) -> list[Conversion]:
    """Every `*_gtFine_labelIds.png` of train and val, converted beside itself.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(cityscapes) / "gtFine"
    known = {*range(34), IGNORED}
    plan = []
    for split in CITYSCAPES_SPLITS:
        for source in listed(folder / split, f"*/*{CITYSCAPES_RAW}"):
            name = source.name.removesuffix(CITYSCAPES_RAW) + CITYSCAPES_CONVERTED
            convert = partial(_renumber, source, CITYSCAPES_IDS, 0, IGNORED, known)
            plan.append(Conversion(source, source.with_name(name), convert))
    if not plan:
        raise FileNotFoundError(
            f"{folder} holds no <split>/<city>/*{CITYSCAPES_RAW}. Unpack gtFine_trainvaltest.zip "
            f"in {folder.parent} (https://www.cityscapes-dataset.com/downloads/)."
        )
    return plan


def _renumber(source: Path, ids: Sequence[int], first: int, other: int, known: set[int]) -> Labels:
    """The raw values `ids` become labels from `first` on, all others `other`."""
    table = np.full(1 << 16, other, np.uint8)
    table[list(ids)] = np.arange(first, first + len(ids))
    raw = read_labels(source)
    return table[raw], [value for value in np.unique(raw).tolist() if value not in known]


def find_context_json(voc2010: str | Path) -> Path | None:
    """`trainval_merged.json` in the VOC2010 folder or one of the two above it."""
    folder = Path(voc2010)
    places = [place / CONTEXT_JSON for place in (folder, folder.parent, folder.parents[1])]
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
    segments: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    plan, lists = [], {split: list[str]() for split in ("train", "val")}
    try:
        for name in ("file_name", "image_id"):
            check_once([image[name] for image in content["images"]], f"{annotations}: {name}")
        for segment in content["annos_segmentation"]:
            label = _CLASS_OF.get(category := segment["category_id"])
            if label is None:
                raise ValueError(
                    f"{annotations}: category {category} is none of the 59 classes. Is it the "
                    "annotation with all 459 labels?"
                )
            segments[segment["image_id"]].append((label, segment["segmentation"]))
        for image in content["images"]:
            if image["phase"] in lists:
                stem = Path(image["file_name"]).stem
                lists[image["phase"]].append(stem)
                target = Path(voc2010) / "SegmentationClassContext" / f"{stem}.png"
                size_hw = int(image["height"]), int(image["width"])
                convert = partial(draw_segments, stem, size_hw, segments[image["image_id"]])
                plan.append(Conversion(Path(stem), target, convert))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations} is not the {CONTEXT_JSON} of PASCAL in Detail: {error} is missing in "
            "'images' (phase, file_name, image_id, height, width) or 'annos_segmentation' "
            "(image_id, category_id, segmentation)."
        ) from error
    if not plan:
        raise ValueError(f"{annotations} lists no images of the phases {' or '.join(lists)}.")
    return plan, lists


def write_lists(voc2010: str | Path, lists: Mapping[str, Sequence[str]], overwrite: bool) -> None:
    """Write `ImageSets/SegmentationContext/<split>.txt`; a list that is there stays.

    Raises:
        FileExistsError: another list is there and `overwrite` is false.
    """
    for split, stems in lists.items():
        path = Path(voc2010) / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        if path.is_file() and not overwrite:
            if read_names(path) == list(stems):
                continue
            raise FileExistsError(
                f"{path} lists other images than the annotations do. Remove it or pass --overwrite."
            )
        write_text(path, "".join(f"{stem}\n" for stem in stems))


def draw_segments(
    where: str, size_hw: tuple[int, int], segments: Iterable[tuple[int, Any]], wide: bool = False
) -> Labels:
    """A label map of COCO's run lengths (compressed or as a list) or polygons, the last on top."""
    advice = "COCO's segments need pycocotools. Run: pip install pycocotools"
    coco_mask = optional_module("pycocotools.mask", advice)
    labels = np.zeros(size_hw, np.uint16 if wide else np.uint8)
    for label, segment in segments:
        if segment in ([], None):
            continue
        try:
            coded = segment
            if isinstance(segment, list):
                coded = coco_mask.merge(coco_mask.frPyObjects(segment, *size_hw))
            elif isinstance(segment["counts"], list):
                coded = coco_mask.frPyObjects(segment, *size_hw)
            inside = coco_mask.decode(coded).astype(bool)
        except Exception as error:  # the library raises a dozen kinds on rubbish
            raise ValueError(f"{where}: a segmentation cannot be read ({error}).") from error
        if inside.shape != size_hw:
            raise ValueError(f"{where}: a segment of {inside.shape} in an image of {size_hw}.")
        labels[inside] = label
    return labels, []
