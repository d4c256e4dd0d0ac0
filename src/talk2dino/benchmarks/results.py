"""Numbers of a run as files: one JSON, and the counts per image."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import talk2dino
from talk2dino.benchmarks.bootstrap import bootstrap_interval
from talk2dino.benchmarks.borders import border_scores
from talk2dino.benchmarks.counts import ImageCounts, Matrix, SparseRows, stacked_areas
from talk2dino.benchmarks.evaluate import Run
from talk2dino.benchmarks.metrics import area_scores, percent
from talk2dino.benchmarks.result_schema import TimingFields, check_fields
from talk2dino.files import atomic_path, write_text
from talk2dino.textfiles import read_json

FORMAT = 1


def timing_fields(
    images: int, seconds: float, shared_with: Sequence[str], device: torch.device, processes: int
) -> TimingFields | None:
    """What one invocation took, for the result; None if nothing was evaluated.

    Args:
        images: evaluated now, in all processes.
        seconds: wall time they took, once the models were loaded and the classes embedded.
        shared_with: keys of the benchmarks in the same pass of the backbone, this one included.
        device: where the models ran.
        processes: how many shared the work.
    """
    if not images:
        return None
    gpu = device.type == "cuda"
    return {
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 3),
        "shared_with": list(shared_with),
        "device": torch.cuda.get_device_name(device) if gpu else device.type,
        "processes": processes,
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "peak_gpu_memory_mib": (
            round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if gpu else None
        ),
    }


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
    run: Run, counts: Mapping[int, ImageCounts], timing: TimingFields | None
) -> tuple[dict[str, Any], dict[str, Matrix]]:
    """The JSON content and the arrays of a finished run; see docs/evaluation.md."""
    dataset, benchmark = run.dataset, run.dataset.benchmark
    names: list[str] = run.settings["classes"]
    images = [counts[index] for index in range(len(dataset.samples))]
    regions = (image.between(0, len(names)) for image in images) if run.at_borders else images
    areas = stacked_areas(regions, len(names))
    sums = (areas[name].sum(axis=0) for name in ("intersect", "label_area", "pred_area"))
    scores = area_scores(*map(torch.from_numpy, sums))
    low, high = bootstrap_interval(areas["intersect"], areas["union"])
    borders, at_borders = border_scores(images, names) if run.at_borders else ({}, {})
    told = [image.uniform for image in counts.values() if image.uniform is not None]
    settings = run.settings
    pamr = bool(settings["segmenter"].get("pamr"))
    content = {
        "format": FORMAT,
        "benchmark": benchmark.key,
        "readme_name": benchmark.readme_name,
        "title": benchmark.title,
        "model": run.model,
        "pamr": pamr,
        "with_bg_clean": bool(settings["segmenter"].get("clean_background")),
        "bg_thresh": settings["bg_thresh"],
        "num_images": len(dataset.samples),
        "uniform_windows": sum(told) if len(told) == len(counts) else None,
        "mIoU": percent(scores.mean_iou),
        "mAcc": percent(scores.mean_accuracy),
        "aAcc": percent(scores.all_accuracy),
        "mIoU_interval": [percent(low), percent(high)],
        "published": run.published,
        "published_source": run.published_source,
        "per_class": dict(zip(names, map(percent, scores.iou.tolist()), strict=True)),
        "per_class_accuracy": dict(zip(names, map(percent, scores.accuracy.tolist()), strict=True)),
        **borders,
        "classes": names,
        "palette": dataset.palette.tolist(),
        "has_background": benchmark.background,
        "label_rules": dataclasses.asdict(benchmark.rules),
        "data_root": str(dataset.data_root.absolute()),
        "counts": f"{run.name}.npz",
        "predictions": run.folders.predictions and str(run.folders.predictions.absolute()),
        "settings": settings,
        "versions": versions() | dataset.versions,
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
    output: Path, name: str, content: Mapping[str, Any], arrays: Mapping[str, Matrix]
) -> Path:
    """Write both files, the counts first: a JSON always has its counts. Returns the JSON's path."""
    plain: dict[str, Any] = {}
    for key, value in arrays.items():
        if isinstance(value, SparseRows):
            plain |= {f"{key}.{part}": getattr(value, part) for part in _SPARSE}
        else:
            plain[key] = value
    with atomic_path(output / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **plain)
    path = output / f"{name}.json"
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


class NoResult(ValueError):
    """A JSON file of something else."""


def read_result(path: str | Path) -> dict[str, Any]:
    """The content of a result JSON, in the types of `result_schema.Result`.

    Raises:
        NoResult: it is something else.
        WrongField: a field is missing or has another type.
        ValueError: it is damaged.
    """
    path = Path(path)
    content = read_json(path, "Delete it and evaluate again.")
    if not isinstance(content, dict) or not {"format", "benchmark", "mIoU"} <= content.keys():
        raise NoResult(f"{path} is no result of an evaluation.")
    if content["format"] != FORMAT:
        raise NoResult(f"{path} has format {content['format']!r}; this version reads {FORMAT}.")
    return check_fields(content, str(path))


_SPARSE = ("rows", "columns", "values", "shape")


def read_counts(path: str | Path) -> dict[str, Any]:
    """The arrays that belong to a result; `path` is the JSON's or the NPZ's.

    Those of very many classes are `SparseRows`, see `stacked_areas`.
    """
    with np.load(Path(path).with_suffix(".npz"), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    for name in [name.removesuffix(".shape") for name in found if name.endswith(".shape")]:
        rows, columns, values, shape = (found.pop(f"{name}.{part}") for part in _SPARSE)
        found[name] = SparseRows(rows, columns, values, tuple(shape.tolist()))
    return found


def versions() -> dict[str, str]:
    """Of everything that can move a number."""
    import cv2

    return {
        "talk2dino": talk2dino.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
