"""Numbers of a run as files: one JSON, the counts per image, and the table beside the paper's."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
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


def published_sources(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who printed the numbers that results stand beside: a line per source, with its models."""
    models: dict[str, dict[str, None]] = {}
    for result in results:
        if (source := result.get("published_source")) is not None:
            models.setdefault(source, {})[result["model"]] = None
    return [f"{', '.join(names)}: {source}" for source, names in models.items()]


COLUMNS = ("benchmark", "mIoU", "95 %", "paper", "difference", "mAcc", "aAcc", "images", "images/s")

BORDER_COLUMNS = ("boundary mIoU", "seam error")


def at_borders(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of them was evaluated at borders too."""
    return any(result.get("seam_pairs") is not None for result in results)


def protocol_of(settings: Mapping[str, Any] | None) -> str | None:
    """The protocol in the settings of a result; None for the method's own."""
    found = ((settings or {}).get("segmenter") or {}).get("protocol")
    return None if found is None else str(found)


def options_of(settings: Mapping[str, Any] | None) -> list[str]:
    """In words, what no publication has: the protocol, sizes and refinements of a result."""
    segmenter = (settings or {}).get("segmenter") or {}
    sizes = segmenter.get("sizes") or {}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in sizes.items()]
    words += [name for name in ("smoothing", "propagation") if segmenter.get(name)]
    words += ["over the image"] if segmenter.get("propagation_graph") == "image" else []
    protocol = protocol_of(settings)
    return words if protocol is None else [protocol, *words]


def table_columns(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The heads of the table: COLUMNS, the options, and the model where there are several."""
    options = _shared_options(results)
    columns = tuple(", ".join([n, *options]) if n == "mIoU" else n for n in COLUMNS)
    columns += BORDER_COLUMNS if at_borders(results) else ()
    return ("model", *columns) if len(_models(results)) > 1 else columns


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row of text per result, and per model their mean where there are several.

    An option that only some models have stands behind their names.
    """
    models, borders = _models(results), at_borders(results)
    if len(models) == 1:
        return _rows(results, borders)
    shared = _shared_options(results)
    rows = []
    for model in models:
        of_model = [result for result in results if result["model"] == model]
        own = [word for word in options_of(of_model[0].get("settings")) if word not in shared]
        rows += [(", ".join([model, *own]), *row) for row in _rows(of_model, borders)]
    return rows


def _shared_options(results: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [options_of(result.get("settings")) for result in results]
    return [word for word in found[0] if all(word in words for words in found)] if found else []


def _models(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(result["model"] for result in results))


def _rows(results: Sequence[Mapping[str, Any]], borders: bool) -> list[tuple[str, ...]]:
    rows = [_row(result, borders) for result in results]
    pairs = [(r["mIoU"], r["published"]) for r in results]
    once = len({result["benchmark"] for result in results}) == len(results)
    if len(results) > 1 and once and all(ours is not None for ours, _ in pairs):
        mean = sum(ours for ours, _ in pairs) / len(pairs)
        papers = [paper for _, paper in pairs if paper is not None]
        paper = sum(papers) / len(papers) if len(papers) == len(pairs) else None
        total = str(sum(result["num_images"] for result in results))
        difference = None if paper is None else mean - paper
        cells = (_number(mean), "", _number(paper), _number(difference, "+.2f"), "", "", total, "")
        rows.append(("mean", *cells, *("" for _ in BORDER_COLUMNS if borders)))
    return rows


def markdown_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown, aligned so that it also reads as text; without a paper's numbers,
    without the columns for them."""
    table = [table_columns(results), *table_rows(results)]
    kept = [
        place
        for place, (name, *cells) in enumerate(zip(*table, strict=True))
        if name not in ("paper", "difference") or any(cells)
    ]
    rows = [tuple(row[place] for place in kept) for row in table]
    columns = rows[0]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    words = columns.index("benchmark") + 1  # columns of words stand left
    rule = tuple(
        "-" * width if column < words else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    )
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def csv_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([table_columns(results), *table_rows(results)])
    return text.getvalue()


def _row(result: Mapping[str, Any], borders: bool) -> tuple[str, ...]:
    ours, paper = result["mIoU"], result["published"]
    difference = None if ours is None or paper is None else ours - paper
    interval = "-".join(_number(value, ".1f") for value in result["mIoU_interval"])
    speed = (result["timing"] or {}).get("images_per_second")
    return (
        result["benchmark"],
        _number(ours),
        interval,
        _number(paper),
        _number(difference, "+.2f"),
        _number(result["mAcc"]),
        _number(result["aAcc"]),
        str(result["num_images"]),
        _number(speed),
        *(_number(result.get(key)) for key in ("boundary_mIoU", "seam_error") if borders),
    )


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)
