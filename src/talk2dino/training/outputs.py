"""What a run leaves on disk: its files, what they must not destroy, and its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talk2dino.files import atomic_path, check_finished, check_writable
from talk2dino.textfiles import read_json


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
    log: Path
    """Names the logs: TensorBoard writes to `<this>.tensorboard`."""
    results: tuple[Path, ...]
    """What a complete run leaves; the last one makes the others valid."""
    best: Path | None = None
    """Weights of the best epoch of a run under way, where the state does not hold them."""

    @property
    def folder(self) -> Path:
        """Holds everything."""
        return self.complete.parent

    def remove_state(self) -> None:
        """Remove what a run goes on from."""
        for path in (self.unfinished, self.best):
            if path is not None:
                path.unlink(missing_ok=True)


def check_destroys(
    outputs: RunOutputs, overwrite: bool, resume: bool, *, begun: str, done: str
) -> None:
    """Raise if a run would destroy what an earlier one left, or could not write.

    Args:
        outputs: its files.
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
        if outputs.unfinished.exists():
            raise FileExistsError(
                f"{begun} Go on with --resume, start again with --overwrite, or write elsewhere "
                "with --out."
            )
        if outputs.complete.exists():
            raise FileExistsError(done)
    check_writable(outputs.complete, overwrite=True)


def write_summary(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON with one line per entry, atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
