"""`python -m talk2dino data check|convert`: is the benchmarks' data complete, and make it so."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.benchmarks.data.context import find_context_json, plan_context, write_lists
from talk2dino.benchmarks.data.convert import (
    OBJECT_SUFFIX,
    STUFF_SUFFIX,
    plan_cityscapes,
    plan_coco,
    run_conversions,
)
from talk2dino.benchmarks.data.sources import check_data_root
from talk2dino.benchmarks.metrics import IGNORED
from talk2dino.benchmarks.table import BENCHMARKS, STUFF_BACKGROUND, Benchmark, find_benchmarks
from talk2dino.cli.convert_coco import check_workers, file_bar, report_outcome
from talk2dino.cli.entry import DONE, FAILED, Command, run_command

if TYPE_CHECKING:
    from talk2dino.benchmarks.data.check import DataReport
    from talk2dino.benchmarks.data.label_sample import LabelSample

_SHOWN_SHARES = 5
_WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(COMMAND, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "action",
        choices=("check", "convert"),
        help="check: what is there, what is missing and where to get it; "
        "convert: make the label files that the benchmarks read from the published ones",
    )
    parser.add_argument(
        "--data_root", type=Path, default=Path("data"), help="folder of all benchmarks"
    )
    parser.add_argument(
        "--benchmarks", default="all", help="all, or a comma-separated list (voc,ade20k)"
    )
    parser.add_argument(
        "--sample", type=int, default=20, help="check: labels to look at per benchmark"
    )
    parser.add_argument(
        "--context_json",
        type=Path,
        help="convert: trainval_merged.json, if it is not in VOCdevkit/VOC2010",
    )
    parser.add_argument(
        "--nproc", type=int, default=16, help="convert: files converted at the same time"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="convert: make again what is there"
    )


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    if not _rows(args):
        raise ValueError(
            "the drawn world (toy) is made by quickstart: nothing to check or convert."
        )
    check_workers(args.nproc)
    if args.sample < 0:
        raise ValueError(f"--sample must not be negative, got {args.sample}")
    if args.action == "convert":
        check_data_root(args.data_root)
    if args.context_json is not None and not args.context_json.is_file():
        raise FileNotFoundError(f"--context_json {args.context_json}: no such file")


def run(args: argparse.Namespace, _: None = None) -> int:
    """Check or convert."""
    rows = _rows(args)
    return check_data(args, rows) if args.action == "check" else convert_data(args, rows)


def _rows(args: argparse.Namespace) -> list[Benchmark]:
    same_files = {STUFF_BACKGROUND.key: BENCHMARKS["coco_stuff"]}
    rows = [same_files.get(row.key, row) for row in find_benchmarks(args.benchmarks)]
    return [row for row in dict.fromkeys(rows) if row.key != "toy"]


def check_data(args: argparse.Namespace, rows: Sequence[Benchmark]) -> int:
    """Print what was found of every benchmark; FAILED if one cannot be evaluated."""
    from talk2dino.benchmarks.data.check import check_benchmark

    if not args.data_root.is_dir():
        print(f"! there is no data folder {args.data_root}. Choose it with --data_root\n")
    reports = [check_benchmark(row, args.data_root, args.sample) for row in rows]
    for report in reports:
        print("\n".join(_describe(report, _class_names(report, args.data_root))))
    usable = [report for report in reports if not report.problems]
    print(f"{len(usable)} of {len(reports)} benchmarks can be evaluated in {args.data_root}")
    return DONE if len(usable) == len(reports) else FAILED


def _class_names(report: DataReport, data_root: Path) -> list[str]:
    """MMSegmentation's names; none without it, or if it cannot use the data either."""
    from talk2dino.benchmarks.datasets import EvaluationSet

    if report.sample is None or report.problems:
        return []
    try:
        return EvaluationSet(report.benchmark, data_root).classes
    except (ImportError, OSError, ValueError):
        return []


def _describe(report: DataReport, names: Sequence[str]) -> list[str]:
    row = report.benchmark
    counts = f"{report.num_images} images, {report.num_labels} labels"
    lines = [f"{row.key:<13}{report.state:<12}{counts}"]
    if report.sample is not None:
        lines.append("    " + _histogram(report.sample, row, names))
    for mark, texts in (("!", report.problems), ("?", report.warnings)):
        for text in texts:
            lines += textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=f"  {mark} ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


def _histogram(sample: LabelSample, row: Benchmark, names: Sequence[str]) -> str:
    """The most frequent labels of a sample, in one line."""
    shares = sample.shares()
    entries = []
    for value, share in list(shares.items())[:_SHOWN_SHARES]:
        label = value - int(row.reduce_zero_label)
        name = f"{value} {names[label]}" if 0 <= label < len(names) else str(value)
        if value == IGNORED or label < 0:
            name = f"{value} (ignored)"
        entries.append(f"{name} {100 * share:.0f} %")
    more = ", ..." if len(shares) > _SHOWN_SHARES else ""
    return f"{sample.num_labels} labels, {len(shares)} values: {', '.join(entries)}{more}"


def convert_data(args: argparse.Namespace, rows: Sequence[Benchmark]) -> int:
    """Convert what the benchmarks need and whose raw files are there.

    With `--benchmarks all` a data set that is not there is only mentioned.
    """
    kinds = [row.key.removesuffix("59") for row in rows]
    code = DONE
    for kind in [kind for kind in _CONVERTERS if kind in kinds]:
        try:
            code = max(code, _CONVERTERS[kind](args))
        except FileNotFoundError as error:
            if args.benchmarks != "all":
                raise FileNotFoundError(
                    f"{error} `python -m talk2dino data check --benchmarks {kind}` says what is "
                    "there instead."
                ) from error
            print(f"{kind}: skipped. {error}", file=sys.stderr)
    if args.benchmarks != "all" and not set(kinds) & set(_CONVERTERS):
        print("nothing to convert: VOC and ADE20K are read as they are published")
    return code


def _convert_coco(args: argparse.Namespace, suffix: str) -> int:
    folder = args.data_root / "coco_stuff164k"
    plan = plan_coco(folder, folder, suffix)
    outcome = run_conversions(plan, args.nproc, args.overwrite, file_bar)
    return report_outcome(f"*{suffix}.png", outcome)


def _convert_cityscapes(args: argparse.Namespace) -> int:
    plan = plan_cityscapes(args.data_root / "cityscapes")
    outcome = run_conversions(plan, args.nproc, args.overwrite, file_bar)
    return report_outcome("*_gtFine_labelTrainIds.png", outcome)


def _convert_context(args: argparse.Namespace) -> int:
    folder = args.data_root / "VOCdevkit" / "VOC2010"
    annotations = args.context_json or find_context_json(folder)
    if annotations is None:
        raise FileNotFoundError(
            f"no trainval_merged.json in {folder}. Download it from "
            "https://codalabuser.blob.core.windows.net/public/trainval_merged.json, or name it "
            "with --context_json."
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: unpack VOCtrainval_03-May-2010.tar first")
    print(f"reading {annotations}", file=sys.stderr)
    plan, lists = plan_context(annotations, folder)
    write_lists(folder, lists, args.overwrite)
    outcome = run_conversions(plan, args.nproc, args.overwrite, file_bar)
    return report_outcome("SegmentationClassContext/*.png", outcome)


_CONVERTERS = {
    "coco_object": lambda args: _convert_coco(args, OBJECT_SUFFIX),
    "coco_stuff": lambda args: _convert_coco(args, STUFF_SUFFIX),
    "cityscapes": _convert_cityscapes,
    "context": _convert_context,
}

COMMAND = Command(
    name="data",
    summary="Check the benchmarks' data, or convert their labels.",
    example="python -m talk2dino data check --data_root data",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

if __name__ == "__main__":
    sys.exit(main())
