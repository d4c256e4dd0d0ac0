"""What a run writes: counts and label maps of an image as it is done, at the end its result.

A result is one JSON file, and the counts of all images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import re
import resource
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypedDict

import cv2
import numpy as np
import torch
from PIL import Image

import talk2dino
from talk2dino.benchmarks.data.labels import IGNORED, LabelRules, ignored_label
from talk2dino.benchmarks.metrics import (
    MOST_CONFUSED,
    ImageCounts,
    area_scores,
    border_scores,
    interval_of,
    percent,
    resampled_mious,
    stacked_areas,
)
from talk2dino.config import build
from talk2dino.files import atomic_path, check_folder_writable, listed, write_text
from talk2dino.pictures.drawing import indexed_mask
from talk2dino.textfiles import read_json

if TYPE_CHECKING:
    from talk2dino.benchmarks.job import Run

FORMAT = 1
OWNER = ".talk2dino-run"
"""A file in a folder of label maps that names the run they belong to."""

_DRAWS = 1000  # of images, for the interval of a mean
_VOID_COLOUR = (224, 224, 192)  # Pascal VOC's


@dataclass(frozen=True)
class PictureFolders:
    """Where label maps go; None for those not wanted."""

    predictions: Path | None = None
    """Folder that gets class ids, one PNG per image."""
    coloured: Path | None = None
    """Folder that gets predictions in the colours of the data set."""
    truth: Path | None = None
    """Folder that gets the ground truth in the colours of the data set."""

    def wanted(self) -> list[Path]:
        return [path for path in vars(self).values() if path is not None]

    def below(self, name: str) -> PictureFolders:
        """The same folders, with one subfolder per benchmark."""
        return PictureFolders(*(path and path / name for path in vars(self).values()))

    def complete(self, name: str) -> bool:
        return all((folder / f"{name}.png").is_file() for folder in self.wanted())

    def check(self, run: str) -> None:
        """Raise unless the folders are new, or hold pictures of this very run.

        Raises:
            FileExistsError: a folder holds PNGs of something else.
        """
        if len(set(self.wanted())) != len(self.wanted()):
            raise ValueError("predictions and ground truth need different folders, found one.")
        for folder in self.wanted():
            check_folder_writable(folder)
            owner = folder / OWNER
            known = owner.read_text(encoding="utf-8").strip() if owner.is_file() else None
            if known != run and folder.is_dir() and any(folder.rglob("*.png")):
                raise FileExistsError(
                    f"{folder} holds label maps of {known or 'something else'}, not of {run}. "
                    "Choose another folder; nothing is overwritten."
                )

    def claim(self, run: str) -> None:
        """Make the folders and note whose they are."""
        for folder in self.wanted():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / OWNER, f"{run}\n")

    def write(
        self, name: str, predicted: np.ndarray, target: np.ndarray, palette: np.ndarray
    ) -> None:
        """Write the wanted pictures of one image.

        Args:
            name: theirs, with the sub-folders of the image.
            predicted, target: (H, W) class ids; uint16 makes a 16-bit PNG of the prediction.
            palette: (C, 3) uint8.
        """
        if self.predictions is not None:
            save_png(Image.fromarray(predicted), self.predictions / f"{name}.png")
        for folder, labels in ((self.coloured, predicted), (self.truth, target)):
            if folder is not None:
                save_png(palette_picture(labels, palette), folder / f"{name}.png")


def palette_picture(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Class ids (H, W) in the colours (C, 3) of their data set.

    As a palette where that has places for them, else as plain colours.
    """
    count, ignored = len(palette), ignored_label(len(palette))
    colours = np.zeros((ignored + 1, 3), np.uint8)
    colours[:count] = palette
    colours[ignored] = _VOID_COLOUR
    if ignored != IGNORED:
        return Image.fromarray(colours[labels])
    return indexed_mask(labels, colours)


def save_png(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def open_counts(output: Path, run: Run, more: Mapping[str, Any]) -> Path:
    """The folder in which the counts of a run are kept while it goes on.

    Args:
        output: of results.
        run: whose settings decide the counts, and
        more: settings that do so, too.

    Raises:
        ValueError: what is there was made with other settings.
    """
    folder = output / "counts" / run.name
    path, text = folder / "settings.json", json.dumps({**run.settings, **more}, sort_keys=True)
    if not path.exists():
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{folder} was made with other settings, --batch_size or pictures. "
            "Choose another --output, or delete it to evaluate anew."
        )
    return folder


def keep_counts(folder: Path, index: int, counts: ImageCounts) -> None:
    """Write the counts of an image; a kill leaves all of them, or none."""
    known = {name: value for name, value in vars(counts).items() if value is not None}
    with atomic_path(folder / f"{index}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **known)


def kept_counts(folder: Path) -> dict[int, ImageCounts]:
    """All images counted so far, by whichever job, by their index."""
    found = {}
    for path in listed(folder, "*.npz"):
        with contextlib.suppress(zipfile.BadZipFile, EOFError, OSError, ValueError):  # a power cut
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                parts: dict[str, Any] = dict(arrays)
            if "uniform" in parts:
                parts["uniform"] = int(parts["uniform"])
            found[int(path.stem)] = ImageCounts(**parts)
    return found


class Timing(TypedDict, total=False):
    """What one invocation took, once the models were loaded and the classes embedded."""

    images: int
    """Evaluated now, in all processes."""
    seconds: float
    images_per_second: float
    shared_with: list[str]
    """Keys of the benchmarks in the same pass of the backbone, this one included."""
    device: str
    processes: int
    peak_memory_mib: float
    peak_gpu_memory_mib: float | None


class Settings(TypedDict, total=False):
    """What decides the counts; see `job.run_settings`."""

    segmenter: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The fields of a result; what an earlier version did not write is None.

    Results come from other people's machines, and reach pages, plots and file names.
    """

    benchmark: str
    title: str
    model: str
    pamr: bool
    bg_thresh: float | None
    num_images: int
    mIoU: float | None
    mAcc: float | None
    aAcc: float | None
    mIoU_interval: tuple[float | None, float | None]
    published: float | None
    per_class: dict[str, float | None]
    data_root: str
    readme_name: str | None = None
    published_source: str | None = None
    uniform_windows: int | None = None
    with_bg_clean: bool | None = None
    per_class_accuracy: dict[str, float | None] | None = None
    boundary_mIoU: float | None = None
    per_class_boundary_iou: dict[str, float | None] | None = None
    seam_error: float | None = None
    seam_pairs: int | None = None
    classes: list[str] | None = None
    palette: list[tuple[int, int, int]] | None = None
    has_background: bool | None = None
    label_rules: LabelRules | None = None
    reduce_zero_label: bool | None = None
    unlabelled_background: bool | None = None
    counts: str | None = None
    counted_with: dict[str, Any] | None = None
    predictions: str | None = None
    settings: Settings | None = None
    versions: dict[str, str] | None = None
    timing: Timing | None = None
    command: list[str] | None = None
    finished: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.benchmark, re.ASCII):
            raise ValueError(f"benchmark must be a name, no path, got {self.benchmark!r:.80}")
        colours = [value for colour in self.palette or () for value in colour]
        if len(colours) > 3 * 65535 or not all(0 <= value <= 255 for value in colours):
            raise ValueError("palette must be at most 65535 colours of numbers from 0 to 255")


def peak_memory_mib() -> float:
    """The most memory this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak_memory(device: torch.device) -> None:
    """Start to look for the peak again; of the process only where Linux lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def make_result(
    run: Run, counts: Mapping[int, ImageCounts], timing: Timing | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON content and the arrays of a finished run; see docs/evaluation.md."""
    dataset, benchmark = run.dataset, run.dataset.benchmark
    names: list[str] = run.settings["classes"]
    images = [counts[index] for index in range(len(dataset.samples))]
    areas = stacked_areas([image.pairs for image in images], len(names))
    iou, accuracy, all_accuracy = area_scores(areas)
    draws = resampled_mious([(areas["intersect"], areas["union"])], _DRAWS)
    settings, (published, source) = run.settings, run.published
    borders, at_borders = border_scores(images, names) if settings.get("boundary") else ({}, {})
    told = [image.uniform for image in counts.values() if image.uniform is not None]
    content = {
        "format": FORMAT,
        "benchmark": benchmark.key,
        "readme_name": benchmark.readme_name,
        "title": benchmark.title,
        "model": run.model,
        "pamr": bool(settings["segmenter"].get("pamr")),
        "with_bg_clean": bool(settings["segmenter"].get("clean_background")),
        "bg_thresh": settings["bg_thresh"],
        "num_images": len(dataset.samples),
        "uniform_windows": sum(told) if len(told) == len(counts) else None,
        "mIoU": percent(iou.nanmean()),
        "mAcc": percent(accuracy.nanmean()),
        "aAcc": percent(all_accuracy),
        "mIoU_interval": list(map(percent, interval_of(draws[:, 0]))),
        "published": published,
        "published_source": source,
        "per_class": dict(zip(names, map(percent, iou), strict=True)),
        "per_class_accuracy": dict(zip(names, map(percent, accuracy), strict=True)),
        **borders,
        "classes": names,
        "palette": dataset.palette.tolist(),
        "has_background": benchmark.background,
        "label_rules": dataclasses.asdict(benchmark.rules),
        "data_root": str(dataset.data_root.absolute()),
        "counts": f"{run.name}.npz",
        "predictions": run.folders.predictions and str(run.folders.predictions.absolute()),
        "settings": settings,
        "versions": {
            "talk2dino": talk2dino.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            **dataset.versions,
        },
        "timing": timing,
        "command": sys.argv,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    files = {
        "images": np.array([sample.image for sample in dataset.samples]),
        "labels": np.array([sample.label for sample in dataset.samples]),
    }
    return content, files | areas | at_borders


def write_result(
    output: Path, name: str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Write both files, the counts first: a JSON always has its counts. Returns the JSON's path."""
    plain: Any = dict(arrays)
    with atomic_path(output / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **plain)
    path = output / f"{name}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def tell_label_maps(output: Path, run: Run, result: dict[str, Any]) -> None:
    """Say in a run's result where its label maps are, if all of them were made after it."""
    if run.folders.predictions is None:
        return
    place = str(run.folders.predictions.absolute())
    made = all(run.folders.complete(sample.name) for sample in run.dataset.samples)
    if made and result["predictions"] != place:
        path = output / f"{run.name}.json"
        content = read_json(path, "Delete it and evaluate again.") | {"predictions": place}
        write_text(path, json.dumps(content, indent=1) + "\n")
        result["predictions"] = place


class NoResult(ValueError):
    """A JSON file of something else."""


class WrongField(ValueError):
    """A result that holds something else than a result may."""


def read_result(path: str | Path) -> dict[str, Any]:
    """The fields of a result JSON; see `Result`.

    Raises:
        NoResult: it is something else.
        WrongField: a field is missing or has another type.
        ValueError: it is damaged.
    """
    content = read_json(path, "Delete it and evaluate again.")
    if not isinstance(content, dict) or not {"format", "benchmark", "mIoU"} <= content.keys():
        raise NoResult(f"{path} is no result of an evaluation.")
    if content["format"] != FORMAT:
        raise NoResult(f"{path} has format {content['format']!r}; this version reads {FORMAT}.")
    known = {field.name for field in fields(Result)} & content.keys()
    try:
        return vars(build(Result, {name: content[name] for name in known}, str(path), exact=True))
    except ValueError as error:
        raise WrongField(f"{error}. Delete it and evaluate again.") from error


def read_counts(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays that belong to a result; `path` is the JSON's or the NPZ's."""
    with np.load(Path(path).with_suffix(".npz"), allow_pickle=False) as arrays:
        counts = {name: arrays[name] for name in arrays.files}
    for name in [name.removesuffix(".shape") for name in counts if name.endswith(".shape")]:
        parts = ("rows", "columns", "values", "shape")  # of earlier versions: what is not 0
        rows, columns, values, shape = (counts.pop(f"{name}.{part}") for part in parts)
        if name != "confusion":
            counts[name] = np.zeros(shape, np.int64)
            counts[name][rows, columns] = values
    return counts


def check_counts(counts: Mapping[str, np.ndarray], result: Mapping[str, Any]) -> None:
    """Raise ValueError unless the arrays beside a result have its images and classes."""
    images, classes = result["num_images"], len(result["per_class"])
    shapes = {
        **dict.fromkeys(("images", "labels"), ((images,), "U")),
        **dict.fromkeys(("intersect", "union", "label_area"), ((images, classes), "iu")),
    }
    if classes <= MOST_CONFUSED:
        shapes["confusion"] = ((classes, classes), "iu")
    optional = {f"boundary_{name}": shapes["union"] for name in ("intersect", "union")}
    shapes |= {name: shape for name, shape in optional.items() if name in counts}
    for name, (shape, kinds) in shapes.items():
        found = counts.get(name)
        if found is None or found.shape != shape or found.dtype.kind not in kinds:
            what = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"{name} must have the shape {shape}, as in the JSON; it is {what}")
    for path in map(str, (*counts["images"], *counts["labels"])):
        parts = PureWindowsPath(path).parts
        if ".." in parts or PureWindowsPath(path).drive or PurePosixPath(path).is_absolute():
            raise ValueError(f"{path!r} is no path below the data root")
