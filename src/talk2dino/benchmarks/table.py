"""The eight benchmarks: one row each, and the published numbers to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from talk2dino.config import check_name, split_names
from talk2dino.inference import Protocol


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

    def threshold(self, large: bool) -> float | None:
        """The published background threshold; `large` for ViT-L (width 1024)."""
        if not self.background:
            return None
        return 0.54 if large else 0.55


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
"""COCO-Stuff where unlabelled pixels are a class, as OVSegmentor is published; the same files."""

_IN_ORDER = {
    "vitb": (61.5, 35.1, 41.0, 87.1, 39.8, 28.1, 36.6, 21.1),
    "vitb_pamr": (65.8, 37.7, 45.1, 88.5, 42.4, 30.2, 38.1, 22.5),
    "vitl": (60.1, 34.2, 37.6, 87.1, 39.1, 27.0, 35.8, 21.1),
    "vitl_pamr": (66.1, 37.3, 42.3, 89.8, 42.7, 29.6, 38.4, 22.9),
}
# mIoU in percent, in the order of BENCHMARKS.

_PUBLISHED: dict[str, dict[str, float]] = {
    **{name: dict(zip(BENCHMARKS, row, strict=True)) for name, row in _IN_ORDER.items()},
    # OVSegmentor's README; it has no number for COCO-Stuff. VOC also selected the checkpoint.
    "ovsegmentor_vitb": {"voc": 53.8, "context": 20.4, "coco_object": 25.1, "ade20k": 5.6},
    "ovsegmentor_vits": {"voc": 44.5, "context": 18.3, "coco_object": 19.0, "ade20k": 4.3},
}

MODELS = {
    "vitb": "configs/vitb_mlp_infonce.yaml",
    "vitl": "configs/vitl_mlp_infonce.yaml",
    "dinov3_vitb": "configs/dinov3_vitb_mlp_infonce.yaml",
    "dinov3_vitl": "configs/dinov3_vitl_mlp_infonce.yaml",
    "toy": "configs/toy.yaml",
}
"""Name of a Talk2DINO -> its recipe; talk2dino.methods knows the models of all methods."""


def published_miou(benchmark: Benchmark, model: str, pamr: bool) -> float | None:
    """The authors' mIoU in percent, or None where there is none."""
    return _PUBLISHED.get(f"{model}_pamr" if pamr else model, {}).get(benchmark.key)


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
