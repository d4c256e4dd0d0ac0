"""Independent jobs in several processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from talk2dino.progress import Progress, silent

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    processes: int,
    progress: Progress = silent,
) -> list[Result]:
    """`[work(job) for job in jobs]`, some at a time.

    Args:
        work: a function of a module; it and the jobs are pickled.
        jobs: what to do.
        processes: at most this many; with 1 everything happens in this process.
        progress: a bar that counts jobs.

    Raises:
        Whatever the first job that fails raises; jobs not yet begun are given up.
    """
    processes = min(processes, len(jobs))
    with progress(len(jobs), 0) as bar:
        if processes <= 1:
            return [_counted(work(job), bar.update) for job in jobs]
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(processes, context, initializer=_end_with_the_parent)
        try:
            return [_counted(result, bar.update) for result in pool.map(work, jobs)]
        finally:
            pool.shutdown(cancel_futures=True)


def _counted(result: Result, update: Callable[[int], object]) -> Result:
    update(1)
    return result


def _end_with_the_parent() -> None:
    """Without this, workers of a killed process would wait for work for ever."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # the parent reports the interruption
    threading.Thread(target=_watch_the_parent, daemon=True).start()


def _watch_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
