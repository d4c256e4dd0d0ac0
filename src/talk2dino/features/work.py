"""The loop of both extraction commands: batch after batch to disk, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from talk2dino.features.job import Job, Output
from talk2dino.features.parts import Batch, Parts
from talk2dino.features.ranges import Range, divided
from talk2dino.progress import Progress


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done on one split."""

    fingerprint: str
    """Identifies the items and their order."""
    costs: Tensor
    """(N,) what each item takes, in any unit; N items."""
    batch_size: int
    """Items per batch."""
    prepare: Callable[[bool], object]
    """Called before the first batch, told whether nothing is done yet; loads the models."""
    batches: Callable[[Range], Iterable[Batch]]
    """The results of a range, in order; each batch with its stop."""


def collected(job: Job, output: Output, work: Work, progress: Progress) -> Parts | None:
    """Do what an earlier run has not done, and return the rows of all.

    Every process works on ranges of its own; the first one puts them together. An error in one of
    them ends all, with its message.

    Returns:
        The finished rows; None in every process but the first.

    Raises:
        RuntimeError: rows could not be written, or another process failed.
    """
    # That of the first process: times and places of the same pictures may differ elsewhere.
    work = replace(work, fingerprint=_gather(job, work.fingerprint)[0])
    ranges = _agreed_ranges(job, output, work)
    problem: Exception | None = None
    word = ""
    try:
        _work(job, output, work, ranges, progress)
    except Exception as error:
        if job.processes.count == 1:
            raise
        problem, word = error, job.tell_others(f"{error}" or type(error).__name__)
    words = _gather(job, word)
    if problem is not None:
        raise problem
    if any(words):
        job.check_others()
        raise RuntimeError(next(filter(None, words)))  # nobody could write it down
    return _merged(job, output, work, ranges) if job.leads else None


def _agreed_ranges(job: Job, output: Output, work: Work) -> list[tuple[Range, int]]:
    """Every range with the position up to which it is done; the first process decides."""
    standing: list[tuple[Range, int]] = []
    if job.leads:
        ranges = job.ranges(output, work.fingerprint, len(work.costs))
        standing = _standing(job, output, work, ranges)
        count = job.processes.count
        if count > 1:
            ranges = divided(standing, count, work.batch_size, work.costs)
            job.keep_ranges(output, work.fingerprint, ranges)
            standing = _standing(job, output, work, ranges)
    decided: list[tuple[Range, int]] = _gather(job, standing)[0]
    return decided


def _standing(job: Job, output: Output, work: Work, ranges: list[Range]) -> list[tuple[Range, int]]:
    stops = []
    for whole in ranges:
        parts = job.parts(output, work.fingerprint, whole.start)
        parts.close()
        stops.append(parts.stop)
    # The first range grows beyond its end when the others are put behind it.
    return [
        (whole, min(max(stop, stops[0]), whole.stop))
        for whole, stop in zip(ranges, stops, strict=True)
    ]


def _work(
    job: Job,
    output: Output,
    work: Work,
    standing: list[tuple[Range, int]],
    progress: Progress,
) -> None:
    unfinished = [(whole, done) for whole, done in standing if done < whole.stop]
    mine = unfinished[job.processes.rank :: job.processes.count]
    if not mine:
        return
    # Before the bar, whose rate is that of the work.
    work.prepare(all(done == whole.start for whole, done in standing))
    total = len(work.costs)
    others = total - sum(whole.stop - whole.start for whole, _ in mine)
    done_before = sum(done - whole.start for whole, done in mine)
    finished = sum(done - whole.start for whole, done in standing)
    checked = False
    with progress(total - others, done_before) as bar:
        for whole, done in mine:
            parts = job.parts(output, work.fingerprint, whole.start)
            for batch in work.batches(Range(parts.stop, whole.stop)):
                before = parts.stop
                parts.append(batch)
                if not checked:
                    parts.check_room(total, finished - (done - whole.start))
                    checked = True
                job.check_others()
                bar.update(batch.stop - before)
            parts.close()  # for the first process, which may see them through a network


def _merged(job: Job, output: Output, work: Work, standing: list[tuple[Range, int]]) -> Parts:
    """The rows of all ranges behind those of the first, as one process would have left them."""
    first, *others = (whole for whole, _ in standing)
    parts = job.parts(output, work.fingerprint, first.start)
    for whole in others:
        other = job.parts(output, work.fingerprint, whole.start)
        parts.take_over(other)
        assert parts.stop >= whole.stop
        other.remove()
    return parts


def _gather(job: Job, value: Any) -> list[Any]:
    try:
        return job.processes.gather(value)
    except RuntimeError as error:
        raise RuntimeError(
            "another process of this extraction has ended. What is finished is kept in "
            f"{job.folder}; run the same command again to go on."
        ) from error


def equal_costs(count: int) -> Tensor:
    """(count,) for items that all take the same."""
    return torch.ones(count)
