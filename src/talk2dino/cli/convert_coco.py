"""`convert_dataset/convert_coco.py`: COCO-Stuff pixel maps to the labels of COCO-Object."""

from __future__ import annotations

import argparse
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "coco", type=Path, help="the coco_stuff164k folder, with annotations/train2017 and val2017"
    )
    parser.add_argument("-o", "--out_dir", type=Path, help="write the same tree here (the input)")
    parser.add_argument("--nproc", type=int, default=16, help="files converted at the same time")
    parser.add_argument(
        "--stuff",
        action="store_true",
        help=f"write the 171-class {STUFF_SUFFIX}.png of COCO-Stuff as well",
    )
    parser.add_argument("--overwrite", action="store_true", help="convert again what is there")


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    if not args.coco.is_dir():
        raise FileNotFoundError(f"{args.coco}: no such folder; it is to hold annotations/val2017")
    check_at_least(1, nproc=args.nproc)
    check_folder_writable(args.out_dir or args.coco)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Convert."""
    code = DONE
    for suffix in (OBJECT_SUFFIX, STUFF_SUFFIX) if args.stuff else (OBJECT_SUFFIX,):
        plan = plan_coco(args.coco, args.out_dir or args.coco, suffix)
        code = max(code, convert_files(args, f"*{suffix}.png", plan))
    return code


def convert_files(args: argparse.Namespace, what: str, plan: Sequence[Conversion]) -> int:
    """Write what is planned, say what was written and what went wrong; returns the exit code."""
    outcome = run_conversions(plan, args.nproc, args.overwrite, bar_of("files"))
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


COMMAND = Command(
    name="convert-coco",
    summary="Convert COCO-Stuff pixel maps to the 81 labels of COCO-Object.",
    example="python convert_dataset/convert_coco.py data/coco_stuff164k -o data/coco_stuff164k",
    add_arguments=add_arguments,
    check=check,
    run=run,
)
main = COMMAND.main
