"""A whole evaluation: several benchmarks with one model, checked before weights are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from talk2dino import text, vision
from talk2dino.benchmarks.checks import check_distinct_stems, check_files, fingerprint
from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.benchmarks.evaluate import Run, Share, evaluate_group, group_runs
from talk2dino.benchmarks.pictures import PictureFolders
from talk2dino.benchmarks.results import Timing, make_result, read_result, write_result
from talk2dino.benchmarks.scoring import Task
from talk2dino.benchmarks.table import Benchmark
from talk2dino.features.progress import Progress, silent
from talk2dino.files import check_folder_writable, load_torch, save_torch
from talk2dino.inference import ClassQuery
from talk2dino.processes import Processes
from talk2dino.seeded import parse_seeded
from talk2dino.segmenter import Talk2DinoSegmenter, build_segmenter
from talk2dino.segmenter_config import SegmenterConfig
from talk2dino.templates import ALIASES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """One benchmark and how it is segmented."""

    benchmark: Benchmark
    """Its row."""
    config: SegmenterConfig
    """Models and options of inference."""
    bg_thresh: float | None
    """Threshold of the background class; None where there is none."""

    def __post_init__(self) -> None:
        if self.benchmark.background and self.bg_thresh is None:
            raise ValueError(f"{self.benchmark.key} has a background class and needs bg_thresh.")
        if not self.benchmark.background and self.bg_thresh is not None:
            raise ValueError(f"{self.benchmark.key} has no background class for bg_thresh.")
        if self.bg_thresh is not None and not 0 <= self.bg_thresh <= 1:
            raise ValueError(
                f"bg_thresh must lie in [0, 1], got {self.bg_thresh}: it is compared with "
                "sigmoid(cosine), which is 0.27 to 0.73; 0.55 is cosine 0.20."
            )


@dataclass(frozen=True)
class Job:
    """Everything a command asks for."""

    evaluations: Sequence[Evaluation]
    """With the same models; only options of inference may differ."""
    model: str
    """The model's name in results."""
    data_root: Path
    """The folder that all benchmarks are below."""
    output: Path
    """Results folder."""
    device: torch.device
    """Where the models run."""
    share: Share = field(default_factory=Share)
    """The part of the images that is evaluated now."""
    folders: PictureFolders = field(default_factory=PictureFolders)
    """Where label maps are saved."""
    folders_per_benchmark: bool = False
    """Save label maps in a subfolder per benchmark."""


@dataclass(frozen=True)
class Outcome:
    """What became of one benchmark."""

    run: Run
    """Its files and settings."""
    result: dict[str, Any] | None
    """The content of its JSON; None while images of other jobs are missing."""
    path: Path
    """The JSON."""
    counted: int
    """Images counted so far."""


def prepare(job: Job) -> list[Run]:
    """Find all files, and refuse what cannot work; no weights are loaded.

    Raises:
        ImportError, FileNotFoundError, FileExistsError, ValueError: what is wrong, and what to do.
    """
    check_folder_writable(job.output)
    for evaluation in job.evaluations:
        evaluation.config.check()
    runs = []
    for evaluation in job.evaluations:
        dataset = EvaluationSet(evaluation.benchmark, job.data_root)
        check_files(dataset)
        settings = run_settings(evaluation, dataset)
        name = run_name(evaluation, job.model, settings)
        folders = job.folders
        if job.folders_per_benchmark:
            folders = folders.below(evaluation.benchmark.key)
        if folders.wanted():
            check_distinct_stems(dataset)
            folders.check(name)
        runs.append(Run(name, settings, dataset, folders))
    return runs


def run_job(
    job: Job,
    runs: Sequence[Run],
    processes: Processes | None = None,
    progress: Progress = silent,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Evaluate what is missing, write the results that are complete, return all.

    Args:
        runs: from `prepare`.
        processes: rank 0 writes.
        progress: makes a bar per group of benchmarks with the same images.
        on_outcome: called as each benchmark is finished.
    """
    processes = processes or Processes()
    models = _Models(job)
    outcomes = {}
    for group in group_runs(runs):
        done = evaluate_group(group, models.tasks, job.output, job.share, processes, progress)
        keys = [run.dataset.benchmark.key for run in group]
        timing = Timing(done.images, done.seconds, keys, job.device, processes.count)
        for run in group:
            counts = done.counts[run.name]
            path = job.output / f"{run.name}.json"
            result = None
            if len(counts) == len(run.dataset.samples):
                if done.images or not path.exists():
                    content, arrays = make_result(run, counts, job.model, timing)
                    if processes.rank == 0:
                        write_result(job.output, run.name, content, arrays)
                    result = content
                else:
                    result = read_result(path)
            outcomes[run.name] = Outcome(run, result, path, len(counts))
            on_outcome(outcomes[run.name])
    return [outcomes[run.name] for run in runs]


def run_settings(evaluation: Evaluation, dataset: EvaluationSet) -> dict[str, Any]:
    """Everything that decides the counts, as plain JSON data; weights by their content."""
    config = evaluation.config
    segmenter = dataclasses.asdict(config)
    for side, weights in (
        ("projection", config.projection_weights),
        ("vision", config.vision_weights or vision.default_weights(config.vision_model)),
        ("text", config.text_weights or text.default_weights(config.text_model)),
    ):
        segmenter[f"{side}_weights"] = _identity(weights)
    segmenter["projection"].pop("starting_checkpoint")
    segmenter["template"] = ALIASES.get(config.template, config.template)
    if config.precision == "fp32":  # so that counts keep their names from before there was a choice
        segmenter.pop("precision")
    settings = {
        "benchmark": evaluation.benchmark.key,
        "bg_thresh": evaluation.bg_thresh,
        "segmenter": segmenter,
        "protocol": dataclasses.asdict(evaluation.benchmark.protocol),
        "classes": dataset.classes,
        "data": fingerprint(dataset),
    }
    content: dict[str, Any] = json.loads(json.dumps(settings))
    return content


def run_name(evaluation: Evaluation, model: str, settings: dict[str, Any]) -> str:
    """Benchmark, model, pamr, and a hash of the settings."""
    words = [evaluation.benchmark.key, model, *(["pamr"] if evaluation.config.pamr else [])]
    return "_".join([*words, _digest(settings)[:8]])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _identity(weights: str) -> str:
    """Names stay; a file is known by its content, wherever it lies."""
    if parse_seeded(weights) is not None or not Path(weights).is_file():
        return weights
    digest = hashlib.sha256()
    with open(weights, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


class _Models:
    """The models of a job: loaded when first needed, text embedded once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._evaluations = {entry.benchmark.key: entry for entry in job.evaluations}
        self._base: Talk2DinoSegmenter | None = None
        self._embeddings: dict[str, torch.Tensor] = {}

    def tasks(self, runs: Sequence[Run]) -> list[Task]:
        """One task per run; their segmenters share all weights."""
        return [self._task(run) for run in runs]

    def _task(self, run: Run) -> Task:
        evaluation = self._evaluations[run.dataset.benchmark.key]
        config = evaluation.config
        if self._base is None:
            self._base = build_segmenter(config, self._job.device)
        segmenter = self._base.variant(
            pamr=config.pamr,
            clean_background=config.clean_background,
            template=config.template,
            precision=config.precision,
        )
        classes = self._embed(segmenter, run)
        return Task(segmenter, ClassQuery(classes, evaluation.bg_thresh))

    def _embed(self, segmenter: Talk2DinoSegmenter, run: Run) -> torch.Tensor:
        """Class embeddings (C, D), from memory or from the results folder if they are there."""
        names = run.dataset.prompted_classes
        deciding = {
            key: value
            for key, value in run.settings["segmenter"].items()
            if key not in ("vision_model", "vision_weights", "input_size", "precision")
            and key not in ("pamr", "clean_background")
        }
        key = _digest([names, deciding])[:16]
        path = self._job.output / "embeddings" / f"{key}.pth"
        if key not in self._embeddings and path.is_file():
            try:
                saved = load_torch(path)
                if saved["names"] == names:
                    self._embeddings[key] = saved["embeddings"].to(segmenter.device)
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("%s is not used: %s", path, error)
        if key not in self._embeddings:
            embeddings = segmenter.embed_classes(names)
            self._embeddings[key] = embeddings
            save_torch({"names": names, "embeddings": embeddings.cpu()}, path)
        return self._embeddings[key]
