"""The evaluation loop: every image once, counts on disk as they come, on any segmenter."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talk2dino.benchmarks.borders import add_borders
from talk2dino.benchmarks.counts import (
    SUFFIX,
    CountsWriter,
    ImageCounts,
    begin_count,
    read_counts_folder,
)
from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.benchmarks.pictures import PictureFolders
from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.devices import Fetched
from talk2dino.files import file_sha256, read_ahead
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Run:
    """One benchmark with one segmenter."""

    name: str
    """Of its files: differs between runs with different settings."""
    settings: dict[str, Any]
    """Everything that decides the counts, as plain JSON data."""
    dataset: EvaluationSet
    """Images and ground truth."""
    folders: PictureFolders = field(default_factory=PictureFolders)
    """Where label maps are saved."""
    model: str = ""
    """The segmenter's name in results."""
    published: float | None = None
    """A printed mIoU in percent, if there is one."""
    published_source: str | None = None
    """Who printed it."""

    @property
    def at_borders(self) -> bool:
        """Whether borders are counted too; see `borders`."""
        return bool(self.settings.get("boundary"))

    def counts_folder(self, output: Path) -> Path:
        """Where its counts are kept while it goes on."""
        return output / "counts" / self.name


@dataclass(frozen=True)
class Share:
    """The part of the images that this invocation evaluates, and how."""

    job_id: int = 0
    """Number of this job; the last to finish writes all."""
    num_jobs: int = 1
    """Jobs that share the images."""
    batching: Batching = field(default_factory=Batching)
    """Of windows."""
    readers: int = 2
    """Threads that read images ahead, by default one per core."""

    def __post_init__(self) -> None:
        if self.num_jobs < 1 or not 0 <= self.job_id < self.num_jobs:
            raise ValueError(
                f"job_id must be 0 to num_jobs - 1, found job {self.job_id} of {self.num_jobs}."
            )
        if min(self.batching.size, self.batching.score_bytes, self.readers) < 1:
            raise ValueError("batch_size, score_memory and readers must be at least 1.")


@dataclass(frozen=True)
class Done:
    """The counts of some runs after an invocation."""

    counts: dict[str, dict[int, ImageCounts]]
    """Run name -> image index -> counts, of all jobs and processes so far."""
    images: int
    """Images evaluated by this invocation, in all its processes."""
    seconds: float
    """Wall time they took."""


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs of one model on the same images together: they share one pass of the backbone."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        images = tuple(sample.image for sample in run.dataset.samples)
        key = (run.model, images, run.dataset.benchmark.protocol)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def evaluate_group(
    runs: Sequence[Run],
    make_tasks: Callable[[Sequence[Run]], Sequence[Task]],
    output: Path,
    share: Share | None = None,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> Done:
    """Evaluate what is not counted yet of this job's share.

    Args:
        runs: on the same images; see `group_runs`.
        make_tasks: loads one task per run; called only if there is something to do.
        output: results folder; counts are kept below it.
        share: which images, and how; all by default.
        processes: this process and its equals, which divide the share further.
        progress: makes the bar.

    Raises:
        ValueError: an unusable image or label, or counts that were made with other settings.
    """
    share, processes = share or Share(), processes or Processes()
    started = time.perf_counter()
    settings = [run.settings | _count_settings(run, share) for run in runs]
    counts = _gathered(runs, _counted(runs, output, settings), processes)
    # All ranks divide the same list, whichever disk a label map is on and whoever starts first.
    unfinished = processes.gather(_unfinished(runs, counts, share))
    todo = sorted(set(unfinished[0]).intersection(*unfinished[1:]))
    mine = todo[processes.rank :: processes.count]
    if mine:
        tasks = make_tasks(runs)
        started = time.perf_counter()  # models are loaded and text is embedded
        part = f"job{share.job_id}of{share.num_jobs}-rank{processes.rank}of{processes.count}"
        writers = [
            CountsWriter(run.counts_folder(output) / f"{part}{SUFFIX}", deciding)
            for run, deciding in zip(runs, settings, strict=True)
        ]
        try:
            with progress(len(mine), 0) as bar:
                for index, results in _results(runs, tasks, mine, share):
                    for run, writer, result in zip(runs, writers, results, strict=True):
                        if index not in counts[run.name]:
                            writer.add(result)
                            counts[run.name][index] = result
                    bar.update()
        finally:
            for writer in writers:
                writer.close()
    if todo:  # other jobs have gone on meanwhile: the last one sees the work of all
        later = zip(runs, _counted(runs, output, settings), strict=True)
        counts = _gathered(runs, [counts[run.name] | found for run, found in later], processes)
    return Done(counts, len(todo), time.perf_counter() - started)


def _count_settings(run: Run, share: Share) -> dict[str, Any]:
    """What may move a count beside the settings that name a run; see docs/evaluation.md."""
    images = [run.dataset.data_root / sample.image for sample in run.dataset.samples]
    pictures = hashlib.sha256("".join(map(file_sha256, images)).encode()).hexdigest()
    return {"pictures": pictures, "batch_size": share.batching.size}


def _counted(
    runs: Sequence[Run], output: Path, settings: Sequence[Mapping[str, Any]]
) -> list[dict[int, ImageCounts]]:
    return [
        read_counts_folder(run.counts_folder(output), deciding)
        for run, deciding in zip(runs, settings, strict=True)
    ]


def _gathered(
    runs: Sequence[Run], counts: list[dict[int, ImageCounts]], processes: Processes
) -> dict[str, dict[int, ImageCounts]]:
    """The counts of all processes, which need not see each other's disks."""
    merged: dict[str, dict[int, ImageCounts]] = {run.name: {} for run in runs}
    for of_process in processes.gather(counts):
        for run, found in zip(runs, of_process, strict=True):
            merged[run.name] = found | merged[run.name]
    return merged


def _unfinished(
    runs: Sequence[Run], counts: Mapping[str, Mapping[int, ImageCounts]], share: Share
) -> list[int]:
    samples = runs[0].dataset.samples
    return [
        index
        for index in range(share.job_id, len(samples), share.num_jobs)
        if not all(
            index in counts[run.name] and run.folders.complete(samples[index].name) for run in runs
        )
    ]


def _results(
    runs: Sequence[Run], tasks: Sequence[Task], indices: Sequence[int], share: Share
) -> Iterator[tuple[int, list[ImageCounts]]]:
    """Segment images, save their pictures, and count; yields one result per run.

    A GPU is given the next image before the results of one are waited for.
    """
    for run in runs:
        run.folders.claim(run.name)
    device = tasks[0].query.rows.device
    protocol = runs[0].dataset.benchmark.protocol
    reads = (partial(_read, runs, tasks, index, device.type == "cuda") for index in indices)
    pictures = read_ahead(reads, share.readers, 2 * share.readers)
    num_classes = [len(run.dataset.classes) for run in runs]
    needed = any(run.at_borders or run.folders.wanted() for run in runs)
    waiting: deque[Callable[[], tuple[int, list[ImageCounts]]]] = deque()
    for picture, maps in label_pictures(pictures, protocol, share.batching, device):
        index, targets = picture.payload
        counting = begin_count(index, maps, targets, num_classes, picture.uniform)
        fetched = Fetched(maps if needed else [])
        waiting.append(partial(_finished, runs, index, targets, counting, fetched))
        if len(waiting) > (device.type == "cuda"):
            yield waiting.popleft()()
    for finished in waiting:
        yield finished()


def _finished(
    runs: Sequence[Run],
    index: int,
    targets: Sequence[torch.Tensor],
    counting: Callable[[], list[ImageCounts]],
    fetched: Fetched,
) -> tuple[int, list[ImageCounts]]:
    """One image's counts, when its pictures are saved; `fetched` holds its label maps if needed."""
    results = counting()
    for place, (maps, run) in enumerate(zip(fetched.read(), runs, strict=False)):
        target, palette = targets[place], run.dataset.palette
        if run.at_borders:
            classes, protocol = len(run.dataset.classes), run.dataset.benchmark.protocol
            results[place] = add_borders(results[place], maps, target, classes, protocol)
        if run.folders.wanted():
            ids = maps.numpy().astype(np.uint8 if len(palette) <= 256 else np.uint16)
            run.folders.write(run.dataset.samples[index].name, ids, target.numpy(), palette)
    return index, results


def _read(runs: Sequence[Run], tasks: Sequence[Task], index: int, pin: bool) -> Picture:
    """One image and its labels; pinned memory lets a GPU copy them while it computes."""
    pixels, size_hw = runs[0].dataset.read_image(index)
    files: dict[str, np.ndarray] = {}
    targets = []
    for run in runs:
        path = run.dataset.samples[index].label
        if path not in files:
            files[path] = run.dataset.read_label_file(index)
        target = run.dataset.class_ids(index, files[path])
        targets.append(torch.from_numpy(target))
    image = torch.from_numpy(pixels)
    if pin:
        image, targets = image.pin_memory(), [target.pin_memory() for target in targets]
    return Picture(image.permute(2, 0, 1), size_hw, tasks, (index, targets))
