"""A whole evaluation: models on benchmarks, checked before any weights are loaded.

Every image is segmented once for all benchmarks that share it, on any segmenter; its counts are on
disk as soon as they are made.
"""

import dataclasses
import hashlib
import json
import logging
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talk2dino.benchmarks.datasets import EvaluationSet, check_files, fingerprint, open_dataset
from talk2dino.benchmarks.metrics import ImageCounts, at_borders, begin_count
from talk2dino.benchmarks.results import (
    PictureFolders,
    Timing,
    forget_peak_memory,
    keep_counts,
    kept_counts,
    make_result,
    open_counts,
    peak_memory_mib,
    read_result,
    tell_label_maps,
    write_result,
)
from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.benchmarks.table import Benchmark
from talk2dino.devices import Fetched, one_behind
from talk2dino.files import (
    check_folder_writable,
    load_torch,
    read_ahead,
    remove_leftovers,
    save_torch,
)
from talk2dino.pictures.vocabularies import Vocabulary
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent
from talk2dino.segmenter import ClassQuery, ClassWords, Segmenter

logger = logging.getLogger(__name__)
Counts = dict[str, dict[int, ImageCounts]]
"""Name of a run -> image -> its counts."""
_OfImage = tuple[int, list[ImageCounts]]
"""An image, and its counts in every run of a group."""


@dataclass(frozen=True)
class Evaluation:
    """One benchmark and how it is segmented."""

    benchmark: Benchmark
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
        own: ClassWords = self.method.words(dataset.benchmark)
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


@dataclass(frozen=True, eq=False)
class Run:
    """One benchmark with one segmenter."""

    name: str
    """Of its files: differs between runs with different settings."""
    settings: dict[str, Any]
    """Everything that decides the counts, as plain JSON data."""
    dataset: EvaluationSet
    evaluation: Evaluation
    folders: PictureFolders = field(default_factory=PictureFolders)

    @property
    def model(self) -> str:
        """The segmenter's name in results."""
        return str(self.evaluation.method.model)

    @property
    def published(self) -> tuple[float | None, str | None]:
        """A printed mIoU in percent and who printed it, if anyone did."""
        method = self.evaluation.method
        if self.evaluation.vocabulary is not None:
            return None, None
        miou = method.published_miou(self.evaluation.benchmark)
        return miou, None if miou is None else method.published.source


@dataclass(frozen=True)
class Job:
    """Everything a command asks for, but what is evaluated."""

    data_root: Path
    """Folder of all data."""
    output: Path
    """Folder of results."""
    device: torch.device
    batching: Batching = field(default_factory=Batching)
    readers: int = 2
    """Threads that read images ahead, by default one per core."""
    job_id: int = 0
    """Number of this job; the last to finish writes all."""
    num_jobs: int = 1
    """Jobs that share the images."""
    folders: PictureFolders = field(default_factory=PictureFolders)
    """Where label maps are saved."""
    reader: str = "own"
    """Own, or mmseg: names and pictures from MMSegmentation's data sets, the reference."""
    folders_per_benchmark: bool = False
    """Save label maps in a subfolder per benchmark; with several models, per model above it."""
    one_by_one: bool = False
    """Measure each run's time and memory: none shares a pass of the backbone with another."""

    def __post_init__(self) -> None:
        if self.num_jobs < 1 or not 0 <= self.job_id < self.num_jobs:
            raise ValueError(
                f"job_id must be 0 to num_jobs - 1, found job {self.job_id} of {self.num_jobs}."
            )
        if min(self.batching.size, self.batching.score_bytes, self.readers) < 1:
            raise ValueError("batch_size, score_memory and readers must be at least 1.")


@dataclass(frozen=True)
class Outcome:
    """What became of one benchmark."""

    run: Run
    result: dict[str, Any] | None
    """The content of its JSON; None while images of other jobs are missing."""
    counted: int


def prepare(job: Job, evaluations: Sequence[Evaluation]) -> list[Run]:
    """Find all files, and refuse what cannot work; no weights are loaded.

    Args:
        job: where the files are.
        evaluations: model after model; those of one model may differ in options of inference only.

    Raises:
        ImportError, FileNotFoundError, FileExistsError, ValueError: what is wrong, and what to do.
    """
    check_folder_writable(job.output)
    remove_leftovers(job.output / "embeddings")  # written by no one once they are there
    for evaluation in evaluations:
        evaluation.method.check()
    models = {evaluation.method.model for evaluation in evaluations}
    runs = []
    for evaluation in evaluations:
        dataset = open_dataset(evaluation.benchmark, job.data_root, job.reader)
        check_files(dataset)
        settings = json.loads(json.dumps(run_settings(evaluation, dataset)))
        words = [evaluation.benchmark.key, evaluation.method.model]
        words += ["pamr"] if settings["segmenter"].get("pamr") else []
        name = "_".join([*words, _digest(settings)[:8]])
        remove_leftovers(job.output / "counts" / name)
        folders = job.folders
        if len(models) > 1:
            folders = folders.below(evaluation.method.model)
        if job.folders_per_benchmark:
            folders = folders.below(evaluation.benchmark.key)
        folders.check(name)
        runs.append(Run(name, settings, dataset, evaluation, folders))
    return runs


def run_job(
    job: Job,
    runs: Sequence[Run],
    processes: Processes | None = None,
    progress: Progress = silent,
) -> list[Outcome]:
    """Evaluate what is missing, write the results that are complete, return all.

    Args:
        runs: from `prepare`.
        processes: rank 0 writes.
        progress: makes a bar per group of benchmarks with the same images.
    """
    processes = processes or Processes()
    make_tasks = _task_maker(job)
    outcomes = {}
    for group in [[run] for run in runs] if job.one_by_one else group_runs(runs):
        if job.one_by_one:
            forget_peak_memory(job.device)
        results = {run.name: _whole_result(job, run, processes) for run in group}
        todo = [run for run in group if results[run.name] is None]
        counts, timing = evaluate_group(job, todo, make_tasks, processes, progress)
        for run in group:
            found = counts.get(run.name, {})
            if len(found) == len(run.dataset.samples) and processes.rank == 0:
                content, arrays = make_result(run, found, timing)
                content["counted_with"] = count_settings(job, run)
                write_result(job.output, run.name, content, arrays)
            result = results[run.name] or _whole_result(job, run, processes)
            if result is not None:  # it holds them all
                for path in (job.output / "counts" / run.name).glob("*.npz"):
                    path.unlink(missing_ok=True)
                if processes.rank == 0:
                    tell_label_maps(job.output, run, result)
            outcomes[run.name] = Outcome(run, result, len(found))
    return [outcomes[run.name] for run in runs]


def _whole_result(job: Job, run: Run, processes: Processes) -> dict[str, Any] | None:
    """The first process's result of a run, if all label maps of this job are on any disk.

    A result of other pictures or another batch size, or of a version that did not say, is none.
    """
    path = job.output / f"{run.name}.json"
    found = None
    if processes.rank == 0 and path.is_file() and path.with_suffix(".npz").is_file():
        found = read_result(path)
        if found["counted_with"] != count_settings(job, run):
            found = None
    names = {sample.name for sample in run.dataset.samples[job.job_id :: job.num_jobs]}
    missing = {name for name in names if not run.folders.complete(name)}
    results, lacks = zip(*processes.gather((found, missing)), strict=True)
    return None if set.intersection(*lacks) else results[0]


def run_settings(evaluation: Evaluation, dataset: EvaluationSet) -> dict[str, Any]:
    """Everything that decides the counts, as plain JSON data; weights by their content."""
    labels, words = evaluation.lists(dataset)
    named = list(labels)[-len(dataset.prompted_classes) :]
    background = dataset.classes[: len(dataset.classes) - len(named)]
    settings: dict[str, Any] = {
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
    return settings


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _task_maker(job: Job) -> Callable[[Sequence[Run]], list[Task]]:
    """Makes a task per run: one model at a time is loaded, when first needed."""
    loaded: dict[str, Any] = {}

    def make(runs: Sequence[Run]) -> list[Task]:
        """Segmenters of one model share all weights."""
        tasks = []
        for run in runs:
            if run.model not in loaded:
                loaded.clear()  # its memory is needed
            segmenter = run.evaluation.method.load(job.device, loaded.get(run.model))
            segmenter.most_bytes = job.batching.score_bytes
            loaded[run.model] = segmenter
            tasks.append(Task(segmenter, _query(job, run, segmenter)))
        return tasks

    return make


def _query(job: Job, run: Run, segmenter: Segmenter) -> ClassQuery:
    """What is looked for; from the results folder if its rows are there."""
    evaluation = run.evaluation
    labels, words = evaluation.lists(run.dataset)
    deciding = evaluation.method.text_settings()
    key = _digest([labels, words, deciding])[:16]
    path = job.output / "embeddings" / f"{key}.pth"
    pooling = evaluation.words(run.dataset).pooling
    if path.is_file():
        try:
            saved = load_torch(path)
            rows, owner = saved["rows"], saved["owner"]
            found = ClassQuery(labels, rows, owner, evaluation.bg_thresh, pooling)
            return found.to(job.device)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is not used: %s", path, error)
    query = segmenter.query(labels, evaluation.bg_thresh, words)
    owner = None if query.owner is None else query.owner.cpu()
    save_torch({"names": list(labels), "rows": query.rows.cpu(), "owner": owner}, path)
    return dataclasses.replace(query, background=evaluation.bg_thresh, pooling=pooling)


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs of one model on the same images together: they share one pass of the backbone."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        images = tuple(sample.image for sample in run.dataset.samples)
        key = (run.model, images, run.dataset.benchmark.protocol)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def evaluate_group(
    job: Job,
    runs: Sequence[Run],
    make_tasks: Callable[[Sequence[Run]], Sequence[Task]],
    processes: Processes | None = None,
    progress: Progress = silent,
) -> tuple[Counts, Timing | None]:
    """Evaluate what is not counted yet of this job's share.

    Args:
        job: which images, how, and where counts are kept.
        runs: on the same images; see `group_runs`.
        make_tasks: loads one task per run; called only if there is something to do.
        processes: this process and its equals, which divide the share further.
        progress: makes the bar.

    Returns:
        the counts of all jobs and processes so far; what it took, None if all was there.

    Raises:
        ValueError: an unusable image or label, or counts that were made with other settings.
    """
    if not runs:
        return {}, None
    processes = processes or Processes()
    folders = {run.name: open_counts(job.output, run, count_settings(job, run)) for run in runs}
    counts, samples = _gathered(folders, processes), runs[0].dataset.samples
    lacking = {
        index
        for index in range(job.job_id, len(samples), job.num_jobs)
        for run in runs
        if index not in counts[run.name] or not run.folders.complete(samples[index].name)
    }
    # All ranks divide the same list, whichever disk a label map is on and whoever starts first.
    todo = sorted(set.intersection(*processes.gather(lacking)))
    if not todo:
        return counts, None

    def keep(index: int, results: Sequence[ImageCounts]) -> None:
        for run, result in zip(runs, results, strict=True):
            if index not in counts[run.name]:
                keep_counts(folders[run.name], index, result)

    started = time.perf_counter()
    if mine := todo[processes.rank :: processes.count]:
        tasks = make_tasks(runs)
        started = time.perf_counter()  # models are loaded and text is embedded
        writes = (partial(keep, *found) for found in _results(job, runs, tasks, mine))
        with progress(len(mine), 0) as bar:
            for _ in read_ahead(writes, threads=1):  # the models need not wait for the disk
                bar.update()
    counts = _gathered(folders, processes)  # other jobs have gone on: the last sees all
    seconds, gpu = time.perf_counter() - started, job.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(job.device) / 2**20 if gpu else None
    timing: Timing = {
        "images": len(todo),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(todo) / seconds, 3),
        "shared_with": [run.dataset.benchmark.key for run in runs],
        "device": torch.cuda.get_device_name(job.device) if gpu else job.device.type,
        "processes": processes.count,
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "peak_gpu_memory_mib": peak and round(peak, 1),
    }
    return counts, timing


def count_settings(job: Job, run: Run) -> dict[str, Any]:
    """What may move a count beside the settings that name a run; see docs/evaluation.md."""
    return {"pictures": run.dataset.pictures, "batch_size": job.batching.size}


def _gathered(folders: Mapping[str, Path], processes: Processes) -> Counts:
    """The counts of all processes, which need not see each other's disks."""
    kept = processes.gather({name: kept_counts(folder) for name, folder in folders.items()})
    return {name: dict(ChainMap(*(found[name] for found in kept))) for name in folders}


def _results(
    job: Job, runs: Sequence[Run], tasks: Sequence[Task], indices: Sequence[int]
) -> Iterator[_OfImage]:
    """Segments images and saves their pictures."""
    for run in runs:
        run.folders.claim(run.name)
    device = tasks[0].query.rows.device
    protocol = runs[0].dataset.benchmark.protocol
    reads = (partial(_read, runs, tasks, index, device.type == "cuda") for index in indices)
    pictures = read_ahead(reads, job.readers, 2 * job.readers)
    num_classes = [len(run.dataset.classes) for run in runs]
    borders = [run.settings.get("boundary") for run in runs]
    needed = any(borders) or any(run.folders.wanted() for run in runs)

    def begun(picture: Picture, maps: list[torch.Tensor]) -> Callable[[], _OfImage]:
        index, targets = picture.payload
        counting = begin_count(maps, targets, num_classes, picture.uniform)
        fetched = Fetched(maps if needed else [])

        def end() -> _OfImage:
            results = counting()
            for place, (found, run) in enumerate(zip(fetched.read(), runs, strict=False)):
                target, palette = targets[place], run.dataset.palette
                if borders[place]:
                    shown, classes = (results[place], found, target), num_classes[place]
                    results[place] = at_borders(*shown, classes, protocol)
                if run.folders.wanted():
                    ids = found.numpy().astype(np.uint8 if len(palette) <= 256 else np.uint16)
                    run.folders.write(run.dataset.samples[index].name, ids, target.numpy(), palette)
            return index, results

        return end

    labelled = label_pictures(pictures, protocol, job.batching, device)
    return one_behind(starmap(begun, labelled), device)


def _read(runs: Sequence[Run], tasks: Sequence[Task], index: int, pin: bool) -> Picture:
    """One image and its labels; pinned memory lets a GPU copy them while it computes."""
    pixels, size_hw = runs[0].dataset.read_image(index)
    files: dict[str, np.ndarray] = {}
    targets = []
    for run in runs:
        path = run.dataset.samples[index].label
        if path not in files:
            files[path] = run.dataset.read_label_file(index)
        target = run.dataset.read_label(index, files[path])
        targets.append(torch.from_numpy(target))
    image = torch.from_numpy(pixels)
    if pin:
        image, targets = image.pin_memory(), [target.pin_memory() for target in targets]
    return Picture(image.permute(2, 0, 1), size_hw, tasks, (index, targets))
