"""Images, ground truth and class names of the benchmarks, through MMSegmentation's dataset classes.

MMSegmentation reads BGR; `EvaluationSet.read_image` is the one place where it becomes RGB.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from talk2dino.benchmarks.data.labels import read_labels
from talk2dino.benchmarks.data.sources import check_data_root
from talk2dino.benchmarks.metrics import IGNORED
from talk2dino.benchmarks.mmseg import load_openmmlab
from talk2dino.benchmarks.table import Benchmark
from talk2dino.pictures.drawing import class_colours
from talk2dino.pictures.images import check_whole
from talk2dino.textfiles import read_names

BACKGROUND = "background"
_ONE_LESS = np.array([IGNORED, *range(IGNORED - 1), IGNORED], np.uint8)
_ONE_MORE = np.array([*range(1, IGNORED), IGNORED, 0], np.uint8)


@dataclass(frozen=True)
class Sample:
    """One image of a benchmark, not read yet."""

    image: str
    """Path below the data root."""
    label: str
    """Path below the data root."""

    @property
    def stem(self) -> str:
        """The image's file name without its suffix."""
        return Path(self.image).stem


class EvaluationSet:
    """One benchmark's files, read as MMSegmentation reads them.

    Args:
        benchmark: its row.
        data_root: the folder that all benchmarks are below.

    Raises:
        ImportError: mmcv or mmseg is missing.
        FileNotFoundError: a folder or the split file is not there.
        ValueError: there are no images.
    """

    def __init__(self, benchmark: Benchmark, data_root: str | Path) -> None:
        self.benchmark = benchmark
        self.data_root = Path(data_root)
        _check_layout(benchmark, self.data_root)
        pipelines = load_openmmlab().pipelines
        self._dataset = _build_dataset(benchmark, self.data_root)
        self._load_image = pipelines.LoadImageFromFile()
        protocol = benchmark.protocol
        scale = (protocol.long_side, protocol.short_side)
        self._resize = pipelines.Resize(img_scale=scale, keep_ratio=True)
        self.samples = [
            Sample(
                os.path.join(benchmark.images, info["filename"]),
                os.path.join(benchmark.labels, info["ann"]["seg_map"]),
            )
            for info in self._dataset.img_infos
        ]
        if not self.samples:
            where = benchmark.split or f"{benchmark.images}, files *{benchmark.image_suffix}"
            raise ValueError(f"{benchmark.key}: no images in {self.data_root / where}")

    @property
    def classes(self) -> list[str]:
        """Names by id, MMSegmentation's own; the background, if any, is the first."""
        return list(self._dataset.CLASSES)

    @property
    def prompted_classes(self) -> list[str]:
        """The classes that are embedded as text: all but the background."""
        return self.classes[1:] if self.benchmark.background else self.classes

    @property
    def palette(self) -> np.ndarray:
        """(C, 3) uint8 RGB, by id."""
        return np.asarray(self._dataset.PALETTE, dtype=np.uint8)

    def read_image(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The resized image (h, w, 3) uint8 RGB, and the original (height, width).

        Raises:
            ValueError: the file is no image that OpenCV can read.
        """
        results: dict[str, Any] = {"img_info": self._dataset.img_infos[index]}
        self._dataset.pre_pipeline(results)
        path = self.data_root / self.samples[index].image
        check_whole(path)
        try:
            results = self._load_image(results)
        except AttributeError as error:  # OpenCV's None for a file it cannot read
            raise ValueError(f"{path} is no image that OpenCV can read. Save it anew.") from error
        original = results["ori_shape"]
        resized = self._resize(results)["img"]
        return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), (original[0], original[1])

    def read_label(self, index: int) -> np.ndarray:
        """Class ids (H, W) uint8; 255 does not count.

        Raises:
            ValueError: not one label per pixel, or a label that is no class.
        """
        return self.class_ids(index, self.read_label_file(index))

    def read_label_file(self, index: int) -> np.ndarray:
        """The values (H, W) uint8 of a label file, which benchmarks may share.

        Raises:
            ValueError: not one label per pixel.
        """
        return read_labels(self.data_root / self.samples[index].label)

    def class_ids(self, index: int, values: np.ndarray) -> np.ndarray:
        """What the values (H, W) of an image's label file mean for this benchmark, as `read_label`.

        Raises:
            ValueError: a label that is no class.
        """
        _check_labels(values, self.benchmark, self.data_root / self.samples[index].label)
        if self.benchmark.reduce_zero_label:  # 255 and 0 are ignored; there is no class 254
            return _ONE_LESS[values]
        return _ONE_MORE[values] if self.benchmark.unlabelled_background else values


def _check_layout(benchmark: Benchmark, root: Path) -> None:
    advice = "`python -m talk2dino data check` says what belongs where."
    check_data_root(root)
    for folder in (benchmark.images, benchmark.labels):
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"{benchmark.key}: no folder {root / folder}. {advice}")
    if benchmark.split is not None and not (root / benchmark.split).is_file():
        raise FileNotFoundError(
            f"{benchmark.key}: no file {root / benchmark.split}, which lists the images. {advice}"
        )


def _check_labels(labels: np.ndarray, benchmark: Benchmark, path: Path) -> None:
    """Raise for values of a label file that stand for no class; 0 and 255 always mean something."""
    first = int(benchmark.reduce_zero_label)
    last = benchmark.num_classes - 1 + first - int(benchmark.unlabelled_background)
    wrong = labels[(labels > last) & (labels != IGNORED)]
    if not wrong.size:
        return
    values = ", ".join(map(str, np.unique(wrong)[:5].tolist()))
    raise ValueError(
        f"{path}: {wrong.size} pixels with label {values}; {benchmark.key} has the labels "
        f"{first} to {last}. Were the labels converted to TrainIds? "
        "`python -m talk2dino data check` names the mistake."
    )


def _build_dataset(benchmark: Benchmark, root: Path) -> Any:
    """The MMSegmentation dataset of a row, own classes included; it reads no image yet."""
    own = _own_datasets()
    datasets = load_openmmlab().datasets
    cls = own.get(benchmark.dataset) or getattr(datasets, benchmark.dataset)
    options: dict[str, Any] = {
        "pipeline": [],
        "data_root": str(root),
        "img_dir": benchmark.images,
        "ann_dir": benchmark.labels,
        "test_mode": True,
    }
    names = None
    if benchmark.split is not None:
        names = read_names(root / benchmark.split)
        options["split"] = os.devnull  # MMSegmentation's reader keeps marks and repeated names
    if benchmark.dataset == "DrawnWorldDataset":
        listing = (root / str(benchmark.split)).parents[2] / "class_names.txt"
        classes = read_names(listing, numbered=True)
        options |= {"classes": classes, "palette": class_colours(len(classes)).tolist()}
    dataset = cls(**options)
    for name in names or []:
        labels = {"seg_map": name + dataset.seg_map_suffix}
        dataset.img_infos.append({"filename": name + dataset.img_suffix, "ann": labels})
    return dataset


@lru_cache(maxsize=1)
def _own_datasets() -> dict[str, type]:
    """The classes that MMSegmentation 0.30 does not have."""
    datasets = load_openmmlab().datasets
    voc, stuff = datasets.PascalVOCDataset, datasets.COCOStuffDataset
    custom = datasets.CustomDataset

    class PascalVOC20Dataset(custom):  # type: ignore[misc, valid-type]
        """Pascal VOC without its background."""

        CLASSES = voc.CLASSES[1:]
        PALETTE = voc.PALETTE[1:]

        def __init__(self, **options: Any) -> None:
            super().__init__(reduce_zero_label=True, **options)

    class COCOObjectDataset(custom):  # type: ignore[misc, valid-type]
        """Background and the 80 COCO things, which are the first 80 classes of COCO-Stuff."""

        CLASSES = (BACKGROUND, *stuff.CLASSES[:80])
        PALETTE = class_colours(81, background=True).tolist()

        def __init__(self, **options: Any) -> None:
            super().__init__(seg_map_suffix="_instanceTrainIds.png", **options)

    class COCOStuffBackgroundDataset(custom):  # type: ignore[misc, valid-type]
        """COCO-Stuff after a background; its label files are COCO-Stuff's."""

        CLASSES = (BACKGROUND, *stuff.CLASSES)
        PALETTE = class_colours(172, background=True).tolist()

        def __init__(self, **options: Any) -> None:
            super().__init__(seg_map_suffix="_labelTrainIds.png", **options)

    class DrawnWorldDataset(custom):  # type: ignore[misc, valid-type]
        """The drawn world, whose classes come with it."""

    own = (PascalVOC20Dataset, COCOObjectDataset, COCOStuffBackgroundDataset, DrawnWorldDataset)
    return {cls.__name__: cls for cls in own}
