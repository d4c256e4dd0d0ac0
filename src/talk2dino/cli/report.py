"""`python -m talk2dino report results/`: a page with tables, plots and examples, or a figure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from talk2dino.cli.entry import DONE, Command, run_command
from talk2dino.config import split_names
from talk2dino.files import check_writable
from talk2dino.progress import Bar

if TYPE_CHECKING:
    from talk2dino.report.figure import FigureOptions
    from talk2dino.report.report import ReportOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(COMMAND, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "results", nargs="+", type=Path, help="folders of results, or single result files"
    )
    parser.add_argument("--output", type=Path, help="the page (<first folder>/report.html)")
    parser.add_argument(
        "--examples", type=int, default=3, help="best, median and worst images, so many of each"
    )
    parser.add_argument(
        "--data_root", type=Path, help="where the data is now, if it was moved since"
    )
    parser.add_argument(
        "--latex", action="store_true", help="also write all numbers as LaTeX and CSV tables"
    )
    figure = parser.add_argument_group("a comparison figure in place of the page")
    figure.add_argument(
        "--figure", type=Path, help="PNG: rows of image, ground truth and a column per method"
    )
    figure.add_argument(
        "--images",
        type=split_names,
        default=[],
        help="file names without ending, with commas; <benchmark>/<name> where several have it",
    )
    figure.add_argument(
        "--methods", type=split_names, default=[], help="names of models, with commas (all)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    for path in args.results:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder of results")
    if args.data_root is not None and not args.data_root.is_dir():
        raise FileNotFoundError(f"there is no data folder {args.data_root}")
    if args.figure is None and (args.images or args.methods):
        raise ValueError("--images and --methods belong to --figure out.png")
    options = _options(args) if args.figure is None else _figure_options(args)
    check_writable(options.output, args.overwrite)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Write the report, or the figure."""
    if args.figure is not None:
        from talk2dino.report.figure import write_figure

        figure, *single = write_figure(args.results, _figure_options(args))
        print(f"{figure}, and its {len(single)} pictures in {single[0].parent}")
        return DONE
    from talk2dino.report.report import write_report

    written, notes = write_report(args.results, _options(args), _benchmark_bar)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    plots = [path for path in written[1:] if path.parent == written[1].parent]
    print(f"{written[0]}, and {len(plots)} plots in {written[1].parent}")
    if args.latex:
        print(f"{len(written) - 1 - len(plots)} tables in {written[-1].parent}")
    return DONE


def _options(args: argparse.Namespace) -> ReportOptions:
    from talk2dino.report.report import ReportOptions

    first = args.results[0]
    folder = first if first.is_dir() else first.parent
    output = args.output or folder / "report.html"
    return ReportOptions(output, args.examples, args.data_root, args.latex, args.overwrite)


def _figure_options(args: argparse.Namespace) -> FigureOptions:
    from talk2dino.report.figure import FigureOptions

    images, names = ([n.strip() for n in some] for some in (args.images, args.methods))
    return FigureOptions(args.figure, images, names, args.data_root, args.overwrite)


def _benchmark_bar(total: int, done: int) -> AbstractContextManager[Bar]:
    return tqdm(total=total, initial=done, unit=" benchmarks", dynamic_ncols=True, disable=None)


COMMAND = Command(
    name="report",
    summary="Show evaluation results as a page: table, classes, confusions, example images.",
    example="python -m talk2dino report results/",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

if __name__ == "__main__":
    sys.exit(main())
