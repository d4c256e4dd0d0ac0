"""`convert_dataset/convert_coco.py`: COCO-Stuff pixel maps to the labels of COCO-Object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from talk2dino.benchmarks.data.convert import (
    OBJECT_SUFFIX,
    STUFF_SUFFIX,
    Conversion,
    plan_coco,
    run_conversions,
)
from talk2dino.cli.entry import DONE, FAILED, Command, bar_of
from talk2dino.config import check_at_least
from talk2dino.files import check_folder_writable


class ConvertCoco(Command):
    """Convert COCO-Stuff pixel maps to the 81 labels of COCO-Object."""

    script = "convert_dataset/convert_coco.py"
    positional = ("coco",)
    details = {"out_dir": {"flags": ("--out_dir", "-o")}}
    example = "data/coco_stuff164k -o data/coco_stuff164k"

    coco: Path
    """The coco_stuff164k folder, with annotations/train2017 and val2017."""
    out_dir: Path | None = None
    """Write the same tree here (default: the input)."""
    nproc: int = 16
    """Files converted at the same time."""
    stuff: bool = False
    """Write the 171-class {STUFF_SUFFIX}.png of COCO-Stuff as well."""
    overwrite: bool = False
    """Convert again what is there."""

    def check(self) -> None:
        """Raise for wrong arguments."""
        if not self.coco.is_dir():
            raise FileNotFoundError(
                f"{self.coco}: no such folder; it is to hold annotations/val2017"
            )
        check_at_least(1, nproc=self.nproc)
        check_folder_writable(self.out_dir or self.coco)

    def run(self, found: None) -> int:
        """Convert."""
        code = DONE
        for suffix in (OBJECT_SUFFIX, STUFF_SUFFIX) if self.stuff else (OBJECT_SUFFIX,):
            plan = plan_coco(self.coco, self.out_dir or self.coco, suffix)
            code = max(code, convert_files(f"*{suffix}.png", plan, self.nproc, self.overwrite))
        return code


def convert_files(what: str, plan: Sequence[Conversion], nproc: int, overwrite: bool) -> int:
    """Write what is planned, say what was written and what went wrong; returns the exit code."""
    outcome = run_conversions(plan, nproc, overwrite, bar_of("files"))
    print(f"{what}: {outcome.written} written, {outcome.present} were there already")
    if outcome.unknown:
        print(
            f"warning: {len(outcome.unknown)} files hold values that the data set does not "
            "define; their pixels became background or are ignored. Are these the raw files?\n"
            + _first(outcome.unknown),
            file=sys.stderr,
        )
    if not outcome.failures:
        return DONE
    print(
        f"error: {len(outcome.failures)} files could not be converted:\n"
        f"{_first(outcome.failures)}\nReplace them and run the same command again.",
        file=sys.stderr,
    )
    return FAILED


def _first(lines: Sequence[str], shown: int = 5) -> str:
    """A few lines, indented, and how many more there are."""
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return "\n".join(f"  {line}" for line in [*lines[:shown], *more])


main = ConvertCoco.main
