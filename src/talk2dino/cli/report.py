"""`python -m talk2dino report results/`: a page with tables, plots and examples, or a figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from talk2dino.cli.entry import DONE, Command, bar_of
from talk2dino.cli.flags import add_flags, from_flags
from talk2dino.config import split_names
from talk2dino.files import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "results", nargs="+", type=Path, help="folders of results, or single result files"
    )
    parser.add_argument("--output", type=Path, help="the page (<first folder>/report.html)")
    shown = ("examples", "data_root", "tables=latex", "overwrite")
    add_flags(parser, "report.report:ReportOptions", *shown)
    figure = parser.add_argument_group("a comparison figure in place of the page")
    figure.add_argument(
        "--figure", type=Path, help="PNG: rows of image, ground truth and a column per method"
    )
    figure.add_argument(
        "--images",
        type=_names,
        default=[],
        help="file names without ending, with commas; <benchmark>/<name> where several have it",
    )
    figure.add_argument(
        "--methods", type=_names, default=[], help="names of models, with commas (all)"
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in split_names(text)]


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    for path in args.results:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder of results")
    if args.data_root is not None and not args.data_root.is_dir():
        raise FileNotFoundError(f"there is no data folder {args.data_root}")
    if args.figure is None and (args.images or args.methods):
        raise ValueError("--images and --methods belong to --figure out.png")
    check_writable(_options(args).output, args.overwrite)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Write the report, or the figure."""
    if args.figure is not None:
        from talk2dino.report.pictures import write_figure

        figure, *single = write_figure(args.results, _options(args))
        print(f"{figure}, and its {len(single)} pictures in {single[0].parent}")
        return DONE
    from talk2dino.report.report import write_report

    written, notes = write_report(args.results, _options(args), bar_of("benchmarks"))
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    plots = [path for path in written[1:] if path.parent == written[1].parent]
    print(f"{written[0]}, and {len(plots)} plots in {written[1].parent}")
    if args.tables:
        print(f"{len(written) - 1 - len(plots)} tables in {written[-1].parent}")
    return DONE


def _options(args: argparse.Namespace) -> Any:
    """Of the figure, or of the page."""
    if args.figure is not None:
        from talk2dino.report.pictures import FigureOptions

        return from_flags(FigureOptions, args, output=args.figure)
    from talk2dino.report.report import ReportOptions

    first = args.results[0]
    output = args.output or (first if first.is_dir() else first.parent) / "report.html"
    return from_flags(ReportOptions, args, output=output)


COMMAND = Command(
    name="report",
    summary="Show evaluation results as a page: table, classes, confusions, example images.",
    example="python -m talk2dino report results/",
    add_arguments=add_arguments,
    check=check,
    run=run,
)
main = COMMAND.main
