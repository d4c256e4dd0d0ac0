"""A whole evaluation: models on benchmarks, checked before any weights are loaded."""

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

from talk2dino.benchmarks.datasets import (
    EvaluationSet,
    check_files,
    fingerprint,
)
from talk2dino.benchmarks.evaluate import Run, Share, evaluate_group, group_runs
from talk2dino.benchmarks.mmseg import open_dataset
from talk2dino.benchmarks.pictures import PictureFolders
from talk2dino.benchmarks.results import (
    forget_peak_memory,
    make_result,
    read_result,
    timing_fields,
    write_result,
)
from talk2dino.benchmarks.scoring import Task
from talk2dino.benchmarks.table import Benchmark
from talk2dino.files import check_folder_writable, load_torch, remove_leftovers, save_torch
from talk2dino.pictures.vocabularies import Vocabulary
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent
from talk2dino.segmenter import ClassQuery, ClassWords, Segmenter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """One benchmark and how it is segmented."""

    benchmark: Benchmark
    """Its row."""
    method: Any
    """Model and options of inference: a `methods.base.Method`, which is not loaded."""
    bg_thresh: float | None
    """Threshold of the background class; None where there is none."""
    boundary: bool = False
    """Whether borders of classes and windows are scored too."""
    vocabulary: Vocabulary | None = None
    """Classes and words in place of the benchmark's and the method's."""
    pooling: str = "max"
    """Of the words of a class, where a vocabulary has several; one of `segmenter.POOLINGS`."""

    def __post_init__(self) -> None:
        if self.benchmark.background and self.bg_thresh is None:
            raise ValueError(
                f"{self.benchmark.key} has a background class and needs bg_thresh, which is not "
                f"published for {self.method.model}: --bg_thresh T, compared with "
                f"{self.method.threshold_meaning}."
            )
        if not self.benchmark.background and self.bg_thresh is not None:
            raise ValueError(f"{self.benchmark.key} has no background class for bg_thresh.")
        if self.bg_thresh is not None and not 0 <= self.bg_thresh <= 1:
            raise ValueError(
                f"bg_thresh must lie in [0, 1], got {self.bg_thresh}: it is compared with "
                f"{self.method.threshold_meaning}."
            )

    def words(self, dataset: EvaluationSet) -> ClassWords:
        """By which words the classes of the data set are looked for."""
        own = dataset.benchmark.class_words(self.method.words(dataset.benchmark))
        return own if self.vocabulary is None else self.vocabulary.class_words(own, self.pooling)

    def lists(self, dataset: EvaluationSet) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The names of the data set's labels in results, and the words of each.

        Raises:
            ValueError: the vocabulary does not fit.
        """
        names, row = dataset.prompted_classes, dataset.benchmark
        if self.vocabulary is not None:
            self.vocabulary.check_fits(row.key, len(names), row.background)
            names = list(self.vocabulary.names)
        return self.words(dataset).lists(names, self.bg_thresh)


@dataclass(frozen=True)
class Job:
    """Everything a command asks for."""

    evaluations: Sequence[Evaluation]
    """Model after model; those of one model may differ in options of inference only."""
    data_root: Path
    """Folder of all data."""
    output: Path
    """Folder of results."""
    device: torch.device
    """Where the models run."""
    share: Share = field(default_factory=Share)
    """The part of the images that is evaluated now."""
    folders: PictureFolders = field(default_factory=PictureFolders)
    """Where label maps are saved."""
    reader: str = "own"
    """Own, or mmseg: names and pictures from MMSegmentation's data sets, the reference."""
    folders_per_benchmark: bool = False
    """Save label maps in a subfolder per benchmark; with several models, per model above it."""
    one_by_one: bool = False
    """Measure each run's time and memory: none shares a pass of the backbone with another."""

    @property
    def models(self) -> list[str]:
        """The names of the models, each once."""
        return list(dict.fromkeys(entry.method.model for entry in self.evaluations))


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
    remove_leftovers(job.output / "embeddings")  # written by no one once they are there
    for evaluation in job.evaluations:
        evaluation.method.check()
    runs = []
    for evaluation in job.evaluations:
        dataset = open_dataset(evaluation.benchmark, job.data_root, job.reader)
        check_files(dataset)
        settings = run_settings(evaluation, dataset)
        model = evaluation.method.model
        name = run_name(evaluation, settings)
        folders = job.folders
        if len(job.models) > 1:
            folders = folders.below(model)
        if job.folders_per_benchmark:
            folders = folders.below(evaluation.benchmark.key)
        if folders.wanted():
            folders.check(name)
        published = source = None
        if evaluation.vocabulary is None:  # nobody has published numbers of another one
            published = evaluation.method.published_miou(evaluation.benchmark)
            source = evaluation.method.published_source(evaluation.benchmark)
        runs.append(Run(name, settings, dataset, folders, model, published, source))
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
    models = _Models(job, runs)
    outcomes = {}
    for group in [[run] for run in runs] if job.one_by_one else group_runs(runs):
        if job.one_by_one:
            forget_peak_memory(job.device)
        done = evaluate_group(group, models.tasks, job.output, job.share, processes, progress)
        keys = [run.dataset.benchmark.key for run in group]
        timing = timing_fields(done.images, done.seconds, keys, job.device, processes.count)
        for run in group:
            counts = done.counts[run.name]
            path = job.output / f"{run.name}.json"
            result = None
            if len(counts) == len(run.dataset.samples):
                if done.images or not path.exists():
                    content, arrays = make_result(run, counts, timing)
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
    labels, words = evaluation.lists(dataset)
    background = dataset.classes[: len(dataset.classes) - len(dataset.prompted_classes)]
    named = list(labels)[-len(dataset.prompted_classes) :]
    settings = {
        "benchmark": evaluation.benchmark.key,
        "bg_thresh": evaluation.bg_thresh,
        "segmenter": evaluation.method.settings(),
        "protocol": evaluation.benchmark.protocol.recorded(),
        "classes": [*background, *named],
        "data": fingerprint(dataset),
    }
    if evaluation.benchmark.folders:  # those of a benchmark are what its key says
        settings["labels"] = dataclasses.asdict(evaluation.benchmark.rules)
    prompted = ["; ".join(of_label) for of_label in words]
    if len(labels) > len(named) and not words[0]:
        prompted = prompted[1:]  # the background is its threshold
    if prompted != named:
        settings["prompted"] = prompted
    if evaluation.vocabulary is not None:
        settings["pooling"] = evaluation.pooling
    if evaluation.boundary:
        settings["boundary"] = True
    content: dict[str, Any] = json.loads(json.dumps(settings))
    return content


def run_name(evaluation: Evaluation, settings: dict[str, Any]) -> str:
    """Benchmark, model, pamr, and a hash of the settings."""
    words = [evaluation.benchmark.key, evaluation.method.model]
    words += ["pamr"] if settings["segmenter"].get("pamr") else []
    return "_".join([*words, _digest(settings)[:8]])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Models:
    """The models of a job: one at a time, loaded when first needed, text embedded once."""

    def __init__(self, job: Job, runs: Sequence[Run]) -> None:
        self._job = job
        names = [run.name for run in runs]
        self._evaluations = dict(zip(names, job.evaluations, strict=True))
        self._base: tuple[str, Segmenter] | None = None
        self._queries: dict[str, ClassQuery] = {}

    def tasks(self, runs: Sequence[Run]) -> list[Task]:
        """One task per run; segmenters of one model share all weights."""
        return [self._task(run) for run in runs]

    def _task(self, run: Run) -> Task:
        evaluation = self._evaluations[run.name]
        method = evaluation.method
        if self._base is not None and self._base[0] != method.model:
            self._base = None  # its memory is needed
        loaded = None if self._base is None else self._base[1]
        segmenter: Any = method.load(self._job.device, loaded)
        segmenter.most_bytes = self._job.share.batching.score_bytes
        self._base = (method.model, segmenter)
        return Task(segmenter, self._query(evaluation, segmenter, run))

    def _query(self, evaluation: Evaluation, segmenter: Segmenter, run: Run) -> ClassQuery:
        """What is looked for, from memory or from the results folder if its rows are there."""
        labels, words = evaluation.lists(run.dataset)
        deciding = evaluation.method.text_settings(run.settings["segmenter"])
        key = _digest([labels, words, deciding])[:16]
        path = self._job.output / "embeddings" / f"{key}.pth"
        if key not in self._queries and path.is_file():
            try:
                saved = load_torch(path)
                found = ClassQuery(labels, saved["rows"], saved["owner"], evaluation.bg_thresh)
                self._queries[key] = found.to(self._job.device)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s is not used: %s", path, error)
        if key not in self._queries:
            query = segmenter.query(labels, evaluation.bg_thresh, words)
            self._queries[key] = query
            owner = None if query.owner is None else query.owner.cpu()
            save_torch({"names": list(labels), "rows": query.rows.cpu(), "owner": owner}, path)
        pooling = evaluation.words(run.dataset).pooling
        changes: dict[str, Any] = {"background": evaluation.bg_thresh, "pooling": pooling}
        return dataclasses.replace(self._queries[key], **changes)
