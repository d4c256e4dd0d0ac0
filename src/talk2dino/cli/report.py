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


class Report(Command):
    """Show evaluation results as a page: table, classes, confusions, example images."""

    positional = ("results",)
    example = "results/"

    results: list[Path]
    """Folders of results, or single result files."""
    output: Path | None = None
    """The page (default: <first folder>/report.html)."""
    figure: Path | None = None
    """PNG: rows of image, ground truth and a column per method."""
    images: str = ""
    """File names without ending, with commas; <benchmark>/<name> where several have it."""
    methods: str = ""
    """Names of models, with commas (default: all)."""
    data_root: Path | None
    tables: bool
    overwrite: bool

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the flags."""
        cls.own_flags(parser, "results", "output")
        shown = ("examples", "data_root", "tables=latex", "overwrite")
        add_flags(parser, "report.report:ReportOptions", *shown)
        figure = parser.add_argument_group("a comparison figure in place of the page")
        cls.own_flags(figure, "figure", "images", "methods")

    def check(self) -> None:
        """Raise for wrong arguments."""
        for path in self.results:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or folder of results")
        if self.data_root is not None and not self.data_root.is_dir():
            raise FileNotFoundError(f"there is no data folder {self.data_root}")
        if self.figure is None and (self.images or self.methods):
            raise ValueError("--images and --methods belong to --figure out.png")
        check_writable(self._options().output, self.overwrite)

    def run(self, found: None) -> int:
        """Write the report, or the figure."""
        if self.figure is not None:
            from talk2dino.report.pictures import write_figure

            figure, *single = write_figure(self.results, self._options())
            print(f"{figure}, and its {len(single)} pictures in {single[0].parent}")
            return DONE
        from talk2dino.report.report import write_report

        written, notes = write_report(self.results, self._options(), bar_of("benchmarks"))
        for note in notes:
            print(f"left out: {note}", file=sys.stderr)
        plots = [path for path in written[1:] if path.parent == written[1].parent]
        print(f"{written[0]}, and {len(plots)} plots in {written[1].parent}")
        if self.tables:
            print(f"{len(written) - 1 - len(plots)} tables in {written[-1].parent}")
        return DONE

    def _options(self) -> Any:
        """Of the figure, or of the page."""
        if self.figure is not None:
            from talk2dino.report.pictures import FigureOptions

            words = {name: _names(getattr(self, name)) for name in ("images", "methods")}
            return from_flags(FigureOptions, self, output=self.figure, **words)
        from talk2dino.report.report import ReportOptions

        first = self.results[0]
        output = self.output or (first if first.is_dir() else first.parent) / "report.html"
        return from_flags(ReportOptions, self, output=output)


def _names(text: str) -> list[str]:
    return [name.strip() for name in split_names(text)] if text else []


main = Report.main
