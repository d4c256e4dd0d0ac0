"""Evaluation of the miniature benchmarks that come with the tests, with the toy models.

Both sides read the image files, segment, and count; models and class embeddings are made before.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speed.case import LITERAL, SHIPPED, Case, Prepare, Step

ROOT = Path(__file__).resolve().parents[1]
MINIATURES = ROOT / "tests" / "parity" / "data" / "seg" / "data"
ALL = ("voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k")
WINDOWS = 8
THRESHOLD = 0.52  # as in the recordings: sigmoid(cosine) of seeded weights never reaches 0.55


@dataclass(frozen=True)
class Work:
    """What is evaluated."""

    keys: Sequence[str]
    """Benchmarks, each with its own background rule."""
    pamr: bool = False
    """Refine the scores."""
    data: str = ""
    """Folder below the case's inputs, or else the miniatures as they are."""


def _evaluations(work: Work, folder: Path, device: str) -> list[tuple[Any, Any]]:
    """A run and its task per benchmark."""
    from talk2dino.benchmarks.datasets import EvaluationSet
    from talk2dino.benchmarks.job import Evaluation, Run
    from talk2dino.benchmarks.scoring import Task
    from talk2dino.benchmarks.table import BENCHMARKS
    from talk2dino.methods.registry import find_method
    from talk2dino.methods.talk2dino.config import read_segmenter_config
    from talk2dino.methods.talk2dino.segmenter import build_segmenter
    from talk2dino.segmenter import ClassQuery

    recipe = ROOT / "configs" / "toy.yaml"
    base = build_segmenter(read_segmenter_config(recipe, projection_weights="seeded:0"), device)
    root = folder / work.data if work.data else MINIATURES
    found = []
    for key in work.keys:
        row = BENCHMARKS[key]
        segmenter = base.variant(pamr=work.pamr, clean_background=row.clean_background)
        evaluation = Evaluation(row, find_method("toy"), _threshold(row))
        run = Run(key, {"benchmark": key}, EvaluationSet(row, root), evaluation)
        classes = segmenter.embed_classes(run.dataset.prompted_classes)
        found.append((run, Task(segmenter, ClassQuery.of_rows(classes, _threshold(row)))))
    return found


def _threshold(row: Any) -> float | None:
    return THRESHOLD if row.background else None


def _shipped(work: Work) -> Prepare:
    def prepare(device: str, folder: Path) -> Step:
        from talk2dino.benchmarks.job import Job, evaluate_group, group_runs
        from talk2dino.benchmarks.scoring import Batching

        pairs = _evaluations(work, folder, device)
        tasks = {run.name: task for run, task in pairs}
        gpu = device == "cuda"
        batching = Batching(32 if gpu else 4, across_images=gpu)

        def step() -> list[torch.Tensor]:
            output = Path(tempfile.mkdtemp(dir=folder))
            counts: dict[str, Any] = {}
            for group in group_runs([run for run, _ in pairs]):
                job = Job(folder, output, torch.device(device), batching)
                counts |= evaluate_group(job, group, lambda runs: [tasks[r.name] for r in runs])[0]
            shutil.rmtree(output)
            return [_areas(run, counts[run.name]) for run, _ in pairs]

        return step

    return prepare


def _areas(run: Any, counts: dict[int, Any]) -> torch.Tensor:
    """Shares (N, 4, C) of each image's labelled pixels: as `_shares` of the literal version."""
    from talk2dino.benchmarks.metrics import stacked_areas

    found = stacked_areas([counts[i].pairs for i in sorted(counts)], len(run.dataset.classes))
    names = ("intersect", "union", "pred_area", "label_area")
    return _shares(torch.stack([torch.from_numpy(found[name]) for name in names], dim=1))


def _shares(areas: torch.Tensor) -> torch.Tensor:
    return areas.double() / areas[:, 3:].sum(dim=2, keepdim=True)


def _literal(work: Work) -> Prepare:
    def prepare(device: str, folder: Path) -> Step:
        from tests.literal.evaluation import evaluate, window_scores

        pairs = _evaluations(work, folder, "cpu")

        def one(run: Any, task: Any) -> torch.Tensor:
            config = task.segmenter.config
            root, row = run.dataset.data_root, run.dataset.benchmark
            files = [(root / s.image, root / s.label) for s in run.dataset.samples]

            def score(window: torch.Tensor) -> torch.Tensor:
                return window_scores(
                    task.segmenter.vision.model,
                    window,
                    task.query.classes,
                    task.query.background,
                    config.clean_background,
                    config.pamr,
                )

            return _shares(evaluate(files, score, len(run.dataset.classes), row.rules.shift < 0))

        return lambda: [one(run, task) for run, task in pairs]

    return prepare


def _pascal(names: Sequence[str], listed: Sequence[str]) -> Any:
    """Makes inputs: Pascal VOC with `listed` images, copies of those in `names` in turns."""

    def inputs(folder: Path) -> None:
        source = MINIATURES / "VOCdevkit" / "VOC2012"
        target = folder / "data" / "VOCdevkit" / "VOC2012"
        for part, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
            (target / part).mkdir(parents=True)
            for index, name in enumerate(listed):
                original = source / part / f"{names[index % len(names)]}{suffix}"
                shutil.copyfile(original, target / part / f"{name}{suffix}")
        split = target / "ImageSets" / "Segmentation" / "val.txt"
        split.parent.mkdir(parents=True)
        split.write_text("".join(f"{name}\n" for name in listed))

    return inputs


def _first(count: int, prepare: Work) -> Prepare:
    """The same evaluation of the first images only."""

    def of_first(device: str, folder: Path) -> Step:
        part = folder / f"first{count}"
        shutil.copytree(folder / "data", part / "data")
        split = part / "data/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
        split.write_text("".join(split.read_text().splitlines(keepends=True)[:count]))
        return _shipped(prepare)(device, part)

    return of_first


def _windows(device: str, folder: Path) -> Step:
    """Windows that are on the device already, to scores; all weights are seeded."""
    from talk2dino.methods.talk2dino.config import read_segmenter_config
    from talk2dino.methods.talk2dino.segmenter import build_segmenter

    seeded = dict.fromkeys(("projection_weights", "vision_weights", "text_weights"), "seeded:0")
    recipe = ROOT / "configs" / "vitb_mlp_infonce.yaml"
    segmenter = build_segmenter(read_segmenter_config(recipe, pamr=True, **seeded), device)
    from talk2dino.segmenter import ClassQuery

    classes = segmenter.embed_classes([f"class {number}" for number in range(21)])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(WINDOWS, 3, 448, 448, generator=generator).mul(255).to(device)

    def step() -> Any:
        with torch.inference_mode():
            return segmenter.window_scores(pixels, ClassQuery.of_rows(classes))

    return step


_IMAGES = ("2007_000000", "2007_000001", "2007_000002")
_REFINED = Work(("voc",), pamr=True, data="data")
_PLAIN = Work(("voc",), data="data")

CASES = {
    "evaluate": Case(
        "evaluation with PAMR, voc, toy, one image of two windows",
        {SHIPPED: _shipped(_REFINED), LITERAL: _literal(_REFINED)},
        inputs=_pascal(_IMAGES, _IMAGES[:1]),
        targets={LITERAL: 15.0},
        work=2,
        unit="windows",
    ),
    "evaluate_plain": Case(
        "evaluation without PAMR, the eight miniatures, toy",
        {SHIPPED: _shipped(Work(ALL)), LITERAL: _literal(Work(ALL))},
        work=23,
        unit="images",
    ),
    "evaluate_shared": Case(
        "evaluation of voc and voc20 together, toy",
        {SHIPPED: _shipped(Work(("voc", "voc20"))), "voc20_alone": _shipped(Work(("voc20",)))},
        repeats=15,
        targets={"voc20_alone": 1 / 1.25},
        work=3,
        unit="images",
    ),
    "evaluate_windows": Case(  # for GPUs
        f"{WINDOWS} windows of 448 x 448 with PAMR, 21 classes, dinov2_vitb14_reg",
        {SHIPPED: _windows},
        cuda_rate=200,
        work=WINDOWS,
        unit="windows",
    ),
    "evaluate_memory": Case(
        "memory of evaluating 48 images, and of the first 12 of them, voc, toy",
        {SHIPPED: _shipped(_PLAIN), "quarter": _first(12, _PLAIN)},
        inputs=_pascal(_IMAGES, [f"2007_{index:06d}" for index in range(48)]),
        work=48,
        unit="images",
    ),
}
