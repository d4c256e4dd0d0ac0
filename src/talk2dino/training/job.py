"""One training from its arguments to its files, alone or with other processes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.devices import resolve_device
from talk2dino.files import atomic_files, check_not_inputs, hold_lock
from talk2dino.processes import Processes
from talk2dino.training.history import plot_losses, write_losses
from talk2dino.training.loggers import check_logger, open_logger
from talk2dino.training.outputs import RunOutputs, check_destroys, read_summary, write_summary
from talk2dino.training.run import Hooks, Run
from talk2dino.training.state import StateFile, check_same_settings, load_state


@dataclass(frozen=True)
class RunJob(ABC):
    """The arguments that every training has; the recipe has the rest."""

    recipe: Any
    """A file of configs/."""
    out: Path
    """What to write."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""
    logger: str = "none"
    """none, tensorboard, wandb or trackio."""
    overwrite: bool = False
    """Replace the results or the unfinished training that are there."""
    resume: bool = False
    """Continue an interrupted training; start if there is none."""
    checkpoint_seconds: float = 60.0
    """Between two saves of the state within an epoch; every epoch's end is saved."""
    command: str = ""
    """What the user typed, for the record."""

    @property
    @abstractmethod
    def outputs(self) -> RunOutputs:
        """Its files."""

    def check(self, read: Iterable[str | Path | None], *, begun: str, done: str) -> None:
        """Raise ValueError or OSError for what cannot work; see `check_destroys`.

        Args:
            read: the files that the training reads, which it must not write.
            begun: says that there is an unfinished training.
            done: says that there is a complete one, and what to do.
        """
        resolve_device(self.device)
        check_logger(self.logger)
        outputs = self.outputs
        check_destroys(outputs, self.overwrite, self.resume, begun=begun, done=done)
        check_not_inputs([self.out, *outputs.results, outputs.unfinished], read)


class Work(ABC):
    """What `carry_out` does for one method.

    Args:
        job: the arguments.
        processes: this process and its equals, which divide every batch; the first one writes.
    """

    kind: str
    """See `Run.kind`."""
    title = ""
    """Of the plot."""
    late: tuple[str, ...] = ()
    """Settings that are known only when the run is open."""

    def __init__(self, job: RunJob, processes: Processes | None) -> None:
        self.outputs, self.processes = job.outputs, processes or Processes()
        self.settings: dict[str, Any] = {}

    @abstractmethod
    def open(self, device: torch.device) -> Run:
        """The run before its first step."""

    @abstractmethod
    def finish(self, run: Run, weights: dict[str, Tensor]) -> None:
        """What is done with a trained model, in every process, before anything is written."""

    @abstractmethod
    def write(self, run: Run, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the weights and what else the method leaves, in `folder`."""

    @abstractmethod
    def summary(self, run: Run) -> Mapping[str, Any]:
        """What the summary says besides command, recipe, settings and epochs."""

    def present(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of an earlier run as they are called now."""
        return settings


def carry_out(job: RunJob, work: Work, hooks: Hooks | None = None) -> Run | None:
    """Train, and write the files of `job.outputs`.

    Returns:
        The run, or None if the job asked to resume one that is complete.

    Raises:
        ValueError: resuming would mix settings.
        RuntimeError: a loss is not finite (the last good state stays on disk), or another
            process trains to the same files.
    """
    outputs, processes = work.outputs, work.processes
    first = processes.rank == 0
    with _held(outputs, first):
        device = processes.device(resolve_device(job.device))
        complete, unfinished = processes.broadcast(_found(job, work) if first else None)
        if complete:
            return None
        run = work.open(device)
        if unfinished is not None:
            before = work.present(unfinished["settings"])
            check_same_settings(before, work.settings, outputs.unfinished)
            run.restore(unfinished)
        keeper = None
        if first:
            if job.overwrite:
                outputs.remove_state()
            seconds = job.checkpoint_seconds
            keeper = StateFile(outputs.unfinished, work.settings, seconds, outputs.best)
        weights = _train(job, run, hooks or Hooks(), keeper)
        work.finish(run, weights)
        if first:
            _write(job, work, run, weights)
        processes.gather(None)  # the others wait
        return run


@contextmanager
def _held(outputs: RunOutputs, first: bool) -> Iterator[None]:
    """The files to one process and its equals."""
    lock = None
    if first:
        outputs.folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(outputs.lock)
    try:
        yield
    finally:
        if lock is not None:
            if not outputs.unfinished.exists():
                outputs.lock.unlink(missing_ok=True)
            lock.close()


def _found(job: RunJob, work: Work) -> tuple[bool, dict[str, Any] | None]:
    """Whether a training to be resumed is complete, and else the state to go on from."""
    outputs = work.outputs
    if not job.resume:
        return False, None
    if outputs.unfinished.exists():
        place, unfinished = outputs.unfinished, load_state(outputs.unfinished, work.kind)
        before = work.present(unfinished["settings"])
    elif outputs.complete.exists():
        place, unfinished = outputs.complete, None
        before = work.present(read_summary(outputs.summary).get("settings", {}))
    else:
        return False, None
    late = {name: before.get(name) for name in work.late}
    check_same_settings(before, {**work.settings, **late}, place)
    return unfinished is None, unfinished


def _train(job: RunJob, run: Run, hooks: Hooks, keeper: StateFile | None) -> dict[str, Tensor]:
    """Run the loop with its table, logger and state file; only the first process has those."""
    if keeper is None:
        return run.run(Hooks())
    outputs, state = job.outputs, run.state
    history = [(run.logged(r, again=True), run.place(r.epoch)) for r in state.records]
    start = run.place(state.epoch, state.step)
    log = open_logger(job.logger, outputs.log, keeper.settings, start, history)

    def on_values(values: Mapping[str, float], step: int) -> None:
        log.log(values, step)
        if hooks.on_values is not None:
            hooks.on_values(values, step)

    def on_epoch(record: Any) -> None:
        if not outputs.complete.exists():  # else the table belongs to that
            write_losses(run.state.records, outputs.losses)
        if values := run.logged(record):
            log.log(values, run.place(record.epoch))
        if hooks.on_epoch is not None:
            hooks.on_epoch(record)

    try:
        return run.run(dataclasses.replace(hooks, on_values=on_values, on_epoch=on_epoch), keeper)
    except RuntimeError as error:
        if not keeper.path.exists():
            raise
        kept = f"The last good state is in {keeper.path}."
        raise RuntimeError(f"{str(error).rstrip('.')}. {kept}") from error
    finally:
        log.close()


def _write(job: RunJob, work: Work, run: Run, weights: dict[str, Tensor]) -> None:
    """The kept weights and what is said of them; then the state is no longer needed."""
    outputs, records = work.outputs, run.state.records
    summary = {
        "command": job.command,
        "recipe": str(job.recipe.path),
        "settings": work.settings,
        "epochs": len(records),
        "best_epoch": run.state.best_epoch,
        **work.summary(run),
    }
    with atomic_files(outputs.folder, *(path.name for path in outputs.results)) as folder:
        write_losses(records, folder / outputs.losses.name)
        plot_losses(records, folder / outputs.plot.name, work.title)
        write_summary(summary, folder / outputs.summary.name)
        work.write(run, weights, folder)
    outputs.remove_state()
