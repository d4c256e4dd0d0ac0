"""One training from its arguments to its files, alone or with other processes.

Its losses are a table and a picture beside the weights, and loggers show them while it runs.
"""

import csv
import dataclasses
import importlib
import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.config import check_between, check_name, differences
from talk2dino.devices import resolve_device
from talk2dino.files import (
    atomic_files,
    atomic_path,
    check_finished,
    check_not_inputs,
    check_writable,
    hold_lock,
    listed,
    remove_folder,
    save_torch,
    write_text,
)
from talk2dino.processes import Processes
from talk2dino.progress import Progress
from talk2dino.textfiles import read_json
from talk2dino.training.run import Hooks, Log, Record, Run, load_state

_PREPARED = re.compile(r"[0-9a-f]{16}(\.images)?\.pth(\.parts)?")


@dataclass(frozen=True)
class RunOutputs:
    """The files of one run, all in one folder."""

    complete: Path
    """The weights, or the last file of them to be written."""
    unfinished: Path
    """State of a run under way, removed when it is complete."""
    summary: Path
    """Command, settings, recipe and results, as JSON."""
    losses: Path
    """Losses per epoch, as CSV."""
    plot: Path
    """The same as a picture."""
    lock: Path
    """Held while a run writes these files, removed when it is complete."""
    results: tuple[Path, ...]
    """What a complete run leaves; the last one makes the others valid."""

    @property
    def prepared(self) -> Path:
        """Folder for what is made of the data before the first step, which goes with the state."""
        return self.unfinished.with_suffix(".features")


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a finished training; empty if there is none.

    Raises:
        ValueError: the training was killed while it wrote its files, or the file is damaged.
    """
    check_finished(path)
    if not path.exists():
        return {}
    values = read_json(path, "Remove it, or train again.")
    return values if isinstance(values, dict) else {}


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

    @abstractmethod
    def settings(self, processes: Processes) -> dict[str, Any]:
        """Everything that the final weights depend on, flat: what `--resume` compares."""

    @abstractmethod
    def open(self, device: torch.device, processes: Processes, encoding: Progress) -> Any:
        """The `Run` before its first step."""

    @abstractmethod
    def write(self, run: Any, weights: dict[str, Tensor], folder: Path) -> Mapping[str, Any]:
        """Write the weights and what else the method leaves, in `folder`, in the first process.

        Returns:
            What the summary says besides command, recipe, settings and epochs.
        """

    def present(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of an earlier run as they are called now."""
        return settings

    def check(self, read: Iterable[str | Path | None]) -> None:
        """Raise if it cannot work, could not write, or would destroy what an earlier one left.

        Args:
            read: the files that the training reads, which it must not write.

        Raises:
            ValueError: an unknown device or logger, or flags that contradict each other.
            FileExistsError: a training is there and no flag says what to do.
            OSError: the folder cannot be written to.
        """
        resolve_device(self.device)
        check_logger(self.logger)
        check_between(0, 10**9, checkpoint_seconds=self.checkpoint_seconds)
        outputs = self.outputs
        if self.overwrite and self.resume:
            raise ValueError("--overwrite starts again and --resume goes on: pass one of them")
        for path, what in (
            (outputs.unfinished, "holds an unfinished training"),
            (outputs.complete, "exists already"),
        ):
            if path.exists() and not (self.overwrite or self.resume):
                raise FileExistsError(
                    f"{path} {what}. Go on with --resume, start again "
                    "with --overwrite, or write elsewhere with --out."
                )
        check_writable(outputs.complete, overwrite=True)
        inputs = [Path(path) for path in read if path]
        check_not_inputs([self.out, *outputs.results, outputs.unfinished], inputs)
        around = [folder for path in inputs for folder in (path, *path.absolute().parents)]
        check_not_inputs([outputs.prepared], around)


def carry_out(job: RunJob, hooks: Hooks | None = None, processes: Processes | None = None) -> Any:
    """Train, and write the files of `job.outputs`.

    Args:
        job: the arguments.
        hooks: progress, and what is called with records.
        processes: this process and its equals, which divide every batch; the first one writes.

    Returns:
        The run, or None if the job asked to resume one that is complete.

    Raises:
        ValueError: resuming would mix settings.
        RuntimeError: a loss is not finite (the last good state stays on disk), or another
            process trains to the same files.
    """
    hooks, processes = hooks or Hooks(), processes or Processes()
    outputs, settings, first = job.outputs, job.settings(processes), processes.rank == 0
    outputs.complete.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(outputs.lock) if first else nullcontext():
        try:
            device = processes.device(resolve_device(job.device))
            complete, unfinished = processes.broadcast(_found(job, settings) if first else None)
            if complete:
                return None
            run = job.open(device, processes, hooks.encoding)
            if unfinished is not None:
                run.restore(unfinished)
            if first:
                _write(job, run, settings, _train(job, run, hooks, settings))
            else:
                run.run(Hooks())
            processes.gather(None)  # the others wait
            return run
        finally:
            with suppress(OSError):  # where something is kept in it
                outputs.prepared.rmdir()
            if first and not outputs.unfinished.exists():
                outputs.lock.unlink(missing_ok=True)


def _found(job: RunJob, settings: Mapping[str, Any]) -> tuple[bool, dict[str, Any] | None]:
    """Whether a training to be resumed is complete, and else the state to go on from."""
    outputs = job.outputs
    if not job.resume:
        return False, None
    if outputs.unfinished.exists():
        place, unfinished = outputs.unfinished, load_state(outputs.unfinished)
        before = job.present(unfinished["settings"])
    elif outputs.complete.exists():
        place, unfinished = outputs.complete, None
        before = job.present(read_summary(outputs.summary).get("settings", {}))
    else:
        return False, None
    if differing := differences(before, settings):
        raise ValueError(
            f"{place} was made with other settings: {differing}. "
            "Resume with the same settings, or start again with --overwrite or another --out."
        )
    return unfinished is None, unfinished


def _train(job: RunJob, run: Run, hooks: Hooks, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run the loop with its table, logger and state file."""
    outputs, state, log = job.outputs, run.state, job.outputs.complete.parent / job.out.name
    history = [(run.named(record), run.place(record["epoch"])) for record in state.records]
    start = run.place(state.epoch, state.step)
    if job.overwrite:
        outputs.unfinished.unlink(missing_ok=True)

    def save(saved: dict[str, Any]) -> None:
        if state.records and not outputs.complete.exists():  # else the table belongs to that
            write_losses(state.records, outputs.losses)
        save_torch({**saved, "settings": settings}, outputs.unfinished)

    own = dataclasses.replace(hooks, save=save, seconds=job.checkpoint_seconds)
    try:
        with open_logger(job.logger, log, settings, start, history) as own.log:
            return run.run(own)
    except RuntimeError as error:
        if not outputs.unfinished.exists():
            raise
        kept = f"The last good state is in {outputs.unfinished}."
        raise RuntimeError(f"{str(error).rstrip('.')}. {kept}") from error


def _write(job: RunJob, run: Run, settings: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
    """The kept weights and what is said of them; then the state is no longer needed."""
    outputs, records = job.outputs, run.state.records
    with atomic_files(outputs.complete.parent, *(path.name for path in outputs.results)) as folder:
        write_losses(records, folder / outputs.losses.name)
        plot_losses(records, folder / outputs.plot.name, run.losses, job.out.stem)
        own = job.write(run, weights, folder)
        summary = {
            "command": job.command,
            "recipe": str(job.recipe.path),
            "settings": settings,
            "epochs": len(records),
            "best_epoch": run.state.best_epoch,
            **own,
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / outputs.summary.name, text, errors="backslashreplace")
    kept = [path.name for path in listed(outputs.prepared, "*")]
    if kept and all(map(_PREPARED.fullmatch, kept)):  # else it is somebody else's, too
        remove_folder(outputs.prepared)
    outputs.unfinished.unlink(missing_ok=True)


def write_losses(records: Sequence[Record], path: Path) -> None:
    """Write the table as CSV: one line per record; what is None is an empty cell."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def plot_losses(
    records: Sequence[Record], path: Path, losses: tuple[str, str], title: str = ""
) -> None:
    """Draw the training's and the validation's loss over the epochs, as a PNG.

    Args:
        records: one per epoch.
        path: the file.
        losses: the two columns; the second may be None in all records, or in some.
        title: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for column, label in zip(losses, ("training", "validation"), strict=True):
        shown = [(r["epoch"], r[column]) for r in records if r[column] is not None]
        if shown:
            axes.plot(*zip(*shown, strict=True), label=label)
    if all(record[losses[0]] > 0 for record in records):
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="mean loss per batch", title=title)
    axes.legend()
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


LOGGERS = ("none", "tensorboard", "wandb", "trackio")


def check_logger(name: str) -> None:
    """Raise unless the logger can be used here.

    Raises:
        ValueError: the name is unknown, or its package is not installed.
    """
    check_name("logger", name, LOGGERS)
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"--logger {name}: the package '{name}' is not installed. "
            f"Run: pip install {name}, or leave the flag out: "
            "the losses are always written as CSV beside the weights."
        )


@contextmanager
def open_logger(
    name: str,
    out: Path,
    settings: Mapping[str, Any],
    start_epoch: int = 0,
    history: Iterable[tuple[Mapping[str, float], int]] = (),
) -> Iterator[Log]:
    """What shows numbers inside a `with` block, for the run that writes the weights `out`.

    TensorBoard's event files are in `<weights name>.tensorboard/`. wandb and trackio, which has the
    same functions and keeps its runs on this machine (`trackio show`), have a run of the project
    `talk2dino`. Of a killed one nothing may have been written: a resumed training makes a new one.

    Args:
        name: one of LOGGERS; see `check_logger`.
        out: the weights file; its name names the run, and logs go to a folder beside it.
        settings: what to show as the run's configuration.
        start_epoch: epochs that an interrupted run has already logged.
        history: what it has logged, as its arguments, for a logger that starts a new curve.

    Raises:
        RuntimeError: wandb or trackio could not start.
    """
    if name == "none":
        yield lambda values, place: None
        return
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        folder = str(out.with_suffix(".tensorboard"))
        with SummaryWriter(folder, purge_step=start_epoch + 1) as writer:

            def add(values: Mapping[str, float], place: int) -> None:
                for curve, value in values.items():
                    writer.add_scalar(curve, value, place)
                writer.flush()  # what a kill leaves must be what the state says

            yield add
        return
    service = importlib.import_module(name)
    place = {"dir": str(out.parent)} if name == "wandb" else {}
    try:
        run = service.init(project="talk2dino", name=out.stem, config=dict(settings), **place)
    except Exception as error:  # their own classes: no key, no network, no permission
        advice = " Run 'wandb login', or set WANDB_MODE=offline." if name == "wandb" else ""
        raise RuntimeError(f"{name} could not start: {error}.{advice}") from error
    for values, epoch in history:
        run.log(dict(values), step=epoch)
    try:
        yield lambda values, epoch: run.log(dict(values), step=epoch)
    finally:
        run.finish()
