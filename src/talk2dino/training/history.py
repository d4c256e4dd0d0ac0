"""The losses of a training: a table and a picture beside the weights, and loggers while it runs."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talk2dino.config import check_name
from talk2dino.files import atomic_path

Record = Mapping[str, Any]
"""One row of the table of losses: `epoch`, counted from 1, and the numbers of a training."""


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


class Logger:
    """What the training calls; it does not know which one it has. This one shows nothing."""

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Show named numbers for one epoch, counted from 1."""

    def close(self) -> None:
        """Finish writing."""


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


def open_logger(
    name: str,
    out: Path,
    settings: Mapping[str, Any],
    start_epoch: int = 0,
    history: Iterable[tuple[Mapping[str, float], int]] = (),
) -> Logger:
    """Make a logger for the run that writes the weights `out`.

    Args:
        name: one of LOGGERS.
        out: the weights file; its name names the run, and logs go to a folder beside it.
        settings: what to show as the run's configuration.
        start_epoch: epochs that an interrupted run has already logged.
        history: what it has logged, as arguments of `log`, for a logger that starts a new curve.
    """
    check_logger(name)
    if name == "tensorboard":
        return TensorBoardLogger(out, start_epoch)
    if name == "none":
        return Logger()
    run = RunLogger(name, out, settings)
    for values, epoch in history:
        run.log(values, epoch)
    return run


class TensorBoardLogger(Logger):
    """Event files in `<weights name>.tensorboard/`."""

    def __init__(self, out: Path, start_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(out.with_suffix(".tensorboard"))
        self._writer = SummaryWriter(folder, purge_step=start_epoch + 1)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()  # what a kill leaves must be what the state says

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class RunLogger(Logger):
    """A run of the project `talk2dino`, named after the weights file: wandb's, or trackio's.

    trackio has the same functions, and keeps its runs on this machine (`trackio show`). Of a killed
    run nothing may have been written, so a resumed training makes a new one.
    """

    def __init__(self, package: str, out: Path, settings: Mapping[str, Any]) -> None:
        service = importlib.import_module(package)
        place = {"dir": str(out.parent)} if package == "wandb" else {}
        try:
            self._run = service.init(
                project="talk2dino", name=out.stem, config=dict(settings), **place
            )
        except Exception as error:  # their own classes: no key, no network, no permission
            advice = (
                " Run 'wandb login', or set WANDB_MODE=offline to log to a local folder."
                if package == "wandb"
                else ""
            )
            raise RuntimeError(f"{package} could not start: {error}.{advice}") from error

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Add one point to each curve."""
        self._run.log(dict(values), step=epoch)

    def close(self) -> None:
        """Say that the run is complete."""
        self._run.finish()
