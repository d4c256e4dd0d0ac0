"""What a run leaves on disk: what it must not destroy, and its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talk2dino.files import atomic_path, check_finished, check_writable
from talk2dino.textfiles import read_json


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
