"""The benchmarks: one row each. A further row is all that another one needs here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from talk2dino.config import check_name, split_names
from talk2dino.sizes import Protocol


@dataclass(frozen=True)
class Benchmark:
    """One row: what is evaluated and where its files are."""

    key: str
    """Our name, and the published code's task name."""
    readme_name: str
    """What the published README and its configs folder call it."""
    title: str
    """For tables."""
    dataset: str
    """Class of MMSegmentation, or of talk2dino.benchmarks.datasets."""
    num_classes: int
    """The background included."""
    images: str
    """Folder of the images below the data root."""
    labels: str
    """Folder of the labels below the data root."""
    split: str | None = None
    """File that lists the images by stem, or None for all in the folder."""
    image_suffix: str = ".jpg"
    """What an image's file name ends with ..."""
    label_suffix: str = ".png"
    """... and by what it is replaced in its label's."""
    reduce_zero_label: bool = False
    """Label 0 is ignored and label k is class k - 1."""
    unlabelled_background: bool = False
    """Label 255 is class 0, the background, and label k is class k + 1."""
    background: bool = False
    """Class 0 is the background, found by threshold."""
    clean_background: bool = False
    """Background cleaning is part of the published protocol."""
    protocol: Protocol = field(default_factory=Protocol)
    """Sizes."""


_VOC: dict[str, Any] = {
    "images": "VOCdevkit/VOC2012/JPEGImages",
    "labels": "VOCdevkit/VOC2012/SegmentationClass",
    "split": "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
}
_CONTEXT: dict[str, Any] = {
    "images": "VOCdevkit/VOC2010/JPEGImages",
    "labels": "VOCdevkit/VOC2010/SegmentationClassContext",
    "split": "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
}
_COCO: dict[str, Any] = {
    "images": "coco_stuff164k/images/val2017",
    "labels": "coco_stuff164k/annotations/val2017",
}

BENCHMARKS: dict[str, Benchmark] = {
    row.key: row
    for row in (
        Benchmark(
            key="voc",
            readme_name="voc_bg",
            title="VOC",
            dataset="PascalVOCDataset",
            num_classes=21,
            background=True,
            clean_background=True,
            **_VOC,
        ),
        Benchmark(
            key="context",
            readme_name="context_bg",
            title="Context",
            dataset="PascalContextDataset",
            num_classes=60,
            background=True,
            **_CONTEXT,
        ),
        Benchmark(
            key="coco_object",
            readme_name="coco_object",
            title="COCO-Object",
            dataset="COCOObjectDataset",
            num_classes=81,
            label_suffix="_instanceTrainIds.png",
            background=True,
            clean_background=True,
            **_COCO,
        ),
        Benchmark(
            key="voc20",
            readme_name="voc",
            title="VOC20",
            dataset="PascalVOC20Dataset",
            num_classes=20,
            reduce_zero_label=True,
            **_VOC,
        ),
        Benchmark(
            key="context59",
            readme_name="context",
            title="Context59",
            dataset="PascalContextDataset59",
            num_classes=59,
            reduce_zero_label=True,
            **_CONTEXT,
        ),
        Benchmark(
            key="coco_stuff",
            readme_name="stuff",
            title="COCO-Stuff",
            dataset="COCOStuffDataset",
            num_classes=171,
            label_suffix="_labelTrainIds.png",
            **_COCO,
        ),
        Benchmark(
            key="cityscapes",
            readme_name="cityscapes",
            title="Cityscapes",
            dataset="CityscapesDataset",
            num_classes=19,
            images="cityscapes/leftImg8bit/val",
            labels="cityscapes/gtFine/val",
            image_suffix="_leftImg8bit.png",
            label_suffix="_gtFine_labelTrainIds.png",
        ),
        Benchmark(
            key="ade20k",
            readme_name="ade",
            title="ADE20K",
            dataset="ADE20KDataset",
            num_classes=150,
            images="ade/ADEChallengeData2016/images/validation",
            labels="ade/ADEChallengeData2016/annotations/validation",
            reduce_zero_label=True,
        ),
    )
}
"""Key -> row, in the order of the paper's table."""

DRAWN_WORLD = Benchmark(
    key="toy",
    readme_name="toy",
    title="drawn world",
    dataset="DrawnWorldDataset",
    num_classes=11,
    protocol=Protocol(short_side=224, window=224, stride=112),
    **_VOC,
)
"""The quickstart's own data, in VOC layout; no part of `all`."""

STUFF_BACKGROUND = Benchmark(
    key="coco_stuff_bg",
    readme_name="stuff_bg",
    title="COCO-Stuff 172",
    dataset="COCOStuffBackgroundDataset",
    num_classes=172,
    label_suffix="_labelTrainIds.png",
    background=True,
    unlabelled_background=True,
    **_COCO,
)
"""COCO-Stuff where unlabelled pixels are a class; the same files."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a key, a README name or a dataset class.

    Keys come first: `voc` and `context` are the ones with background, which the README calls
    `voc_bg` and `context_bg`.

    Raises:
        ValueError: no benchmark has this name.
    """
    rows = [*BENCHMARKS.values(), STUFF_BACKGROUND, DRAWN_WORLD]
    names = {row.dataset: row for row in rows}
    names |= {row.readme_name: row for row in rows}
    names |= {row.key: row for row in rows}
    if name not in names:
        keys = [row.key for row in rows]
        others = [row.readme_name for row in rows if row.readme_name not in keys]
        check_name("benchmark", name, [*keys, *others])
    return names[name]


def find_benchmarks(names: str | Sequence[str]) -> list[Benchmark]:
    """The benchmarks of a comma-separated list or of `all`, each once.

    Raises:
        ValueError: an unknown name, or no name at all.
    """
    words = split_names(names) if isinstance(names, str) else names
    found: dict[str, Benchmark] = {}
    for word in (word.strip() for word in words):
        if word == "all":
            found |= BENCHMARKS
        elif word:
            row = find_benchmark(word)
            found[row.key] = row
    if not found:
        raise ValueError(f"no benchmark named. Known: all, {', '.join(BENCHMARKS)}.")
    return list(found.values())
