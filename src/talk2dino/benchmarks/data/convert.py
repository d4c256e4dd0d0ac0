"""Convert published label files to the ones the benchmarks read: in parallel, one file at a time.

A file is written beside its final name and renamed, so what exists is complete: a conversion that
was interrupted goes on where it stopped when it is started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from talk2dino.benchmarks.data.labels import (
    LabelRules,
    cityscapes_rules,
    coco_object_rules,
    coco_stuff_rules,
    read_labels,
)
from talk2dino.benchmarks.metrics import IGNORED
from talk2dino.config import check_at_least
from talk2dino.files import atomic_path, listed, remove_leftovers
from talk2dino.progress import Progress, silent

COCO_SPLITS = ("train2017", "val2017")
CITYSCAPES_SPLITS = ("train", "val")

OBJECT_SUFFIX = "_instanceTrainIds"
STUFF_SUFFIX = "_labelTrainIds"
CITYSCAPES_RAW = "_gtFine_labelIds.png"
CITYSCAPES_CONVERTED = "_gtFine_labelTrainIds.png"

_LEFTOVER_SECONDS = 60

_COCO = {
    OBJECT_SUFFIX: (coco_object_rules(), 81, 0),
    STUFF_SUFFIX: (coco_stuff_rules(), 171, IGNORED),
}
"""Ending -> what the raw values mean, the number of classes, and the label of all other values."""


@dataclass(frozen=True)
class Conversion:
    """One label file to write."""

    source: Path
    """What it is made from, for messages."""
    target: Path
    """The file to write."""
    convert: Callable[[], tuple[np.ndarray, Sequence[object]]]
    """Reads and converts: (H, W) uint8 or uint16, and values that were not understood."""


@dataclass
class Outcome:
    """What a run of conversions did."""

    written: int = 0
    """Files made now."""
    present: int = 0
    """Files that were there already and were left alone."""
    failures: list[str] = field(default_factory=list)
    """One line per file that could not be converted."""
    unknown: list[str] = field(default_factory=list)
    """One line per file with values that the data set does not define."""


def plan_coco(coco: str | Path, out: str | Path, suffix: str) -> list[Conversion]:
    """Every raw COCO-Stuff label below `<coco>/annotations`, and where its conversion goes.

    Args:
        coco: folder with `annotations/train2017` and/or `annotations/val2017`.
        out: folder that receives the same tree; usually `coco` itself.
        suffix: OBJECT_SUFFIX (81 classes) or STUFF_SUFFIX (171 classes).

    Raises:
        FileNotFoundError: no split is there, or it holds no raw label.
    """
    annotations = Path(coco) / "annotations"
    splits = [split for split in COCO_SPLITS if (annotations / split).is_dir()]
    if not splits:
        raise FileNotFoundError(
            f"{annotations} holds neither {' nor '.join(COCO_SPLITS)}. Unpack "
            "stuffthingmaps_trainval2017.zip there (https://github.com/nightrome/cocostuff)."
        )
    plan = []
    for split in splits:
        for source in listed(annotations / split, "*.png"):
            if source.stem.endswith("TrainIds"):
                continue
            target = Path(out) / "annotations" / split / f"{source.stem}{suffix}.png"
            plan.append(Conversion(source, target, partial(_renumber, source, *_COCO[suffix])))
    if not plan:
        raise FileNotFoundError(
            f"{annotations} holds no raw label files in {' or '.join(splits)} "
            "(000000000139.png, ...). Unpack stuffthingmaps_trainval2017.zip there."
        )
    return plan


def plan_cityscapes(cityscapes: str | Path) -> list[Conversion]:
    """Every `*_gtFine_labelIds.png` of train and val, converted beside itself.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(cityscapes) / "gtFine"
    meaning = cityscapes_rules(), 19, IGNORED
    plan = []
    for split in CITYSCAPES_SPLITS:
        for source in listed(folder / split, f"*/*{CITYSCAPES_RAW}"):
            name = source.name.removesuffix(CITYSCAPES_RAW) + CITYSCAPES_CONVERTED
            target = source.with_name(name)
            plan.append(Conversion(source, target, partial(_renumber, source, *meaning)))
    if not plan:
        raise FileNotFoundError(
            f"{folder} holds no <split>/<city>/*{CITYSCAPES_RAW}. Unpack gtFine_trainvaltest.zip "
            f"in {folder.parent} (https://www.cityscapes-dataset.com/downloads/)."
        )
    return plan


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
    todo = list(plan) if overwrite else _missing(plan)
    outcome = Outcome(present=len(plan) - len(todo))
    with progress(len(plan), outcome.present) as bar, ThreadPoolExecutor(workers) as pool:
        try:
            for conversion, result in zip(todo, pool.map(_run_one, todo), strict=True):
                _count(conversion, result, outcome)
                bar.update(1)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return outcome


def _missing(plan: Sequence[Conversion]) -> list[Conversion]:
    """Conversions whose file is absent; one listing per folder, as there are 120,000 in COCO."""
    present: dict[Path, set[str]] = {}
    for folder in {conversion.target.parent for conversion in plan}:
        remove_leftovers(folder)
        present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    return [c for c in plan if c.target.name not in present[c.target.parent]]


def _run_one(conversion: Conversion) -> Sequence[object] | ValueError:
    """Write one file; returns the values that were not understood, or why it failed."""
    try:
        labels, unknown = conversion.convert()
    except (ValueError, FileNotFoundError) as error:
        return ValueError(str(error))
    save_labels(labels, conversion.target)
    return unknown


def save_labels(labels: np.ndarray, path: Path) -> None:
    """Write (H, W) uint8 or uint16 labels as a grey PNG, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG")


def _count(conversion: Conversion, result: Sequence[object] | ValueError, outcome: Outcome) -> None:
    if isinstance(result, ValueError):
        outcome.failures.append(str(result))
        return
    outcome.written += 1
    if result:
        values = ", ".join(map(str, result))
        outcome.unknown.append(f"{conversion.source}: {values}")


def _renumber(
    source: Path, rules: LabelRules, num_classes: int, other: int
) -> tuple[np.ndarray, list[int]]:
    raw = read_labels(source)
    labels, unknown = rules.class_ids(raw, num_classes)
    labels[unknown] = other
    return labels, np.unique(raw[unknown]).tolist()


def summarise(values: Iterable[str], shown: int = 5) -> str:
    """The first few lines, indented, and how many more there are."""
    lines = list(values)
    text = [f"  {line}" for line in lines[:shown]]
    if len(lines) > shown:
        text.append(f"  ... and {len(lines) - shown} more")
    return "\n".join(text)
