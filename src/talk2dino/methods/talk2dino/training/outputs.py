"""The files of one training: they share the stem of the weights and lie beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talk2dino.files import atomic_path, check_finished, check_writable
from talk2dino.textfiles import read_json

SUFFIX = ".pth"


@dataclass(frozen=True)
class Outputs:
    """Names of the files for weights at `<stem>.pth`."""

    weights: Path
    """Plain state dict of the projection."""

    def __post_init__(self) -> None:
        if self.weights.suffix != SUFFIX:
            raise ValueError(f"--out {self.weights}: the name of the weights must end in {SUFFIX}")

    @property
    def unfinished(self) -> Path:
        """State of a training under way, removed when it is complete."""
        return self.weights.with_suffix(".resume.pth")

    @property
    def summary(self) -> Path:
        """Command, settings, recipe and results, as JSON."""
        return self.weights.with_suffix(".json")

    @property
    def losses(self) -> Path:
        """Losses per epoch, as CSV."""
        return self.weights.with_suffix(".losses.csv")

    @property
    def plot(self) -> Path:
        """The same as a picture."""
        return self.weights.with_suffix(".losses.png")

    @property
    def heads(self) -> Path:
        """Chosen head per caption, if asked for, as JSON."""
        return self.weights.with_suffix(".heads.json")

    @property
    def lock(self) -> Path:
        """Held while a training writes these files, removed when it is complete."""
        return self.weights.with_suffix(".lock")

    @property
    def results(self) -> list[Path]:
        """What a complete training leaves; the last one makes the others valid."""
        return [self.heads, self.losses, self.plot, self.weights, self.summary]

    def remove_unfinished(self) -> None:
        """Remove the state of a training that is complete."""
        self.unfinished.unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)


def default_weights(recipe: str | Path, pedix: str = "") -> Path:
    """`weights/<recipe name>[_<pedix>].pth`, in the current folder."""
    ending = f"_{pedix.removeprefix('_')}" if pedix else ""
    return Path("weights") / f"{Path(recipe).stem}{ending}{SUFFIX}"


def check_outputs(outputs: Outputs, overwrite: bool, resume: bool) -> None:
    """Raise if the training would destroy something, or could not write; see `check_destroys`."""
    check_destroys(
        *(outputs.unfinished, outputs.weights, overwrite, resume),
        begun=f"{outputs.unfinished} holds an unfinished training.",
        done=f"{outputs.weights} exists already. Write elsewhere with --out or --name_pedix, "
        "or replace it with --overwrite (--resume goes on with an interrupted training).",
    )


def check_destroys(
    unfinished: Path, complete: Path, overwrite: bool, resume: bool, *, begun: str, done: str
) -> None:
    """Raise if a run would destroy what an earlier one left, or could not write.

    Args:
        unfinished: state of an interrupted run.
        complete: what a run that came to its end leaves behind.
        overwrite: start again in any case.
        resume: go on with what is there.
        begun: says that there is an unfinished run.
        done: says that there is a complete one, and what to do.

    Raises:
        ValueError: the two flags contradict each other.
        FileExistsError: one of the two is there and no flag says what to do.
        OSError: the folder cannot be written to.
    """
    if overwrite and resume:
        raise ValueError("--overwrite starts again and --resume goes on: pass one of them")
    if not (overwrite or resume):
        if unfinished.exists():
            raise FileExistsError(
                f"{begun} Go on with --resume, start again with --overwrite, or write elsewhere "
                "with --out."
            )
        if complete.exists():
            raise FileExistsError(done)
    check_writable(complete, overwrite=True)


def write_summary(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON with one line per entry, atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a finished training; empty if there is none that can be read.

    Raises:
        ValueError: the training was killed while it wrote its files.
    """
    check_finished(path)
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
