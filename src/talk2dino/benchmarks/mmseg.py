"""MMSegmentation's own data sets: the reference, chosen by `--reader mmseg`.

The one place where mmcv and mmseg are imported: what to install, and their noise at import.
"""

import logging
import os
import warnings
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.benchmarks.table import Benchmark
from talk2dino.config import check_name
from talk2dino.pictures.images import check_whole
from talk2dino.textfiles import read_names

READERS = ("own", "mmseg")

INSTALL = (
    "Install them with: pip install 'setuptools<81' && PYTHONPATH=build_support pip install "
    "--no-build-isolation --no-deps -r requirements-benchmark.txt"
)


@lru_cache(maxsize=1)
def load_openmmlab() -> tuple[ModuleType, ModuleType, dict[str, str]]:
    """Import mmcv and mmseg, quietly; neither needs a compiled operation.

    Returns:
        mmseg.datasets, mmseg.datasets.pipelines, and the versions of both libraries.

    Raises:
        ImportError: one is missing or of a version that does not work; says what to install.
    """
    torch_logger = logging.getLogger("torch.utils.cpp_extension")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)  # "No CUDA runtime is found": nothing is compiled here
    levels = {handler: handler.level for handler in logging.root.handlers}
    try:
        with warnings.catch_warnings():
            # mmcv announces its version 2; libraries of 2022 use names deprecated since.
            warnings.simplefilter("ignore")
            mmcv = import_module("mmcv")
            # mmseg logs "Loaded N images" to stderr unless its logger is made before.
            import_module("mmcv.utils").get_logger("mmseg", log_level=logging.WARNING)
            mmseg = import_module("mmseg")
            datasets = import_module("mmseg.datasets")
            pipelines = import_module("mmseg.datasets.pipelines")
    except ImportError as error:
        missing = str(error).partition("\n")[0]  # mmcv 2 lacks modules which mmcv 1 has
        raise ImportError(
            f"--reader mmseg needs mmcv 1.7 and mmsegmentation 0.30 ({missing}). {INSTALL}"
        ) from error
    except AssertionError as error:  # mmseg's own check of mmcv's version
        raise ImportError(f"mmcv and mmsegmentation do not fit: {error}. {INSTALL}") from error
    finally:
        torch_logger.setLevel(level)
        for handler, level in levels.items():  # mmcv silences the warnings of all others
            handler.setLevel(level)
    return datasets, pipelines, {"mmcv": mmcv.__version__, "mmseg": mmseg.__version__}


class MMSegSet(EvaluationSet):
    """A data set whose files, names and pictures come from MMSegmentation's data set and pipeline.

    Its readers do BGR; `read_image` is the one place where it becomes RGB.
    """

    def __init__(self, benchmark: Benchmark, data_root: str | Path) -> None:
        _, pipelines, versions = load_openmmlab()
        super().__init__(benchmark, data_root)
        self.versions = versions
        self._load_image = pipelines.LoadImageFromFile()
        protocol = benchmark.protocol
        scale = (protocol.long_side, protocol.short_side)
        self._resize = pipelines.Resize(img_scale=scale, keep_ratio=True)

    def _pairs(self, images: Path, labels: Path, split: Path | None) -> list[tuple[Path, Path]]:
        row, datasets = self.benchmark, load_openmmlab()[0]
        options: dict[str, Any] = {
            "pipeline": [],
            "img_dir": str(images),
            "ann_dir": str(labels),
            "test_mode": True,
        }
        cls = getattr(datasets, row.type, None)
        if cls is None:
            cls = datasets.CustomDataset
            options |= {"classes": row.classes, "palette": self.palette.tolist()}
            options |= {"img_suffix": row.image_suffixes[0], "seg_map_suffix": row.label_suffix}
            options["reduce_zero_label"] = row.rules.shift < 0
        names = None
        if split is not None:
            names = read_names(split)
            options["split"] = os.devnull  # MMSegmentation's reader keeps marks and repeated names
        self._dataset = cls(**options)
        for name in names or []:
            seg_map = {"seg_map": name + self._dataset.seg_map_suffix}
            info = {"filename": name + self._dataset.img_suffix, "ann": seg_map}
            self._dataset.img_infos.append(info)
        palette = tuple(map(tuple, self._dataset.PALETTE))
        self.benchmark = replace(row, classes=tuple(self._dataset.CLASSES), palette=palette)
        infos = self._dataset.img_infos
        return [(images / info["filename"], labels / info["ann"]["seg_map"]) for info in infos]

    def read_image(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """See `EvaluationSet`."""
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


def open_dataset(row: Benchmark, data_root: str | Path, reader: str = "own") -> EvaluationSet:
    """The files of a data set, by one of READERS.

    Raises:
        ValueError: no such reader; there are no images.
        ImportError: mmcv or mmseg is missing where they are the reader.
        FileNotFoundError: a folder or the split file is not there.
    """
    mmseg = check_name("reader", reader, READERS) == "mmseg"
    return MMSegSet(row, data_root) if mmseg else EvaluationSet(row, data_root)
