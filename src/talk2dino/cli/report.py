"""Results of evaluations: a page of tables, plots and examples, a figure, or two compared."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.command import Command, bar_of
from talk2dino.config import check_at_least, split_names
from talk2dino.files import check_file, check_writable, write_text

if TYPE_CHECKING:
    from talk2dino.report.runs import EvaluatedRun


class Report(Command):
    """Show evaluation results as a page: table, classes, confusions, example images."""

    positional = ("results",)
    details = {"tables": {"flags": ("--latex",)}}
    example = "results/"

    results: list[Path]
    """Folders of results, or single result files."""
    output: Path | None = None
    """The page (default: <first folder>/report.html)."""
    examples: int = 3
    """Best, median and worst images, so many of each; 0 for none."""
    data_root: Path | None = None
    """Where the images and labels are now (default: where they were evaluated)."""
    tables: bool = False
    """Also write the numbers as LaTeX and CSV into the folder `<stem>_tables`."""
    overwrite: bool = False
    """Replace a report that is there."""
    figure: Path | None = None
    """PNG: rows of image, ground truth and a column per method."""
    images: str = ""
    """File names without ending, with commas; <benchmark>/<name> where several have it."""
    methods: str = ""
    """Names of models, with commas (default: all)."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = ("results", "output", "examples", "data_root", "tables", "overwrite")
        cls.own_flags(parser, *own)
        figure = parser.add_argument_group("a comparison figure in place of the page")
        cls.own_flags(figure, "figure", "images", "methods")

    def check(self) -> Path:
        """The page or the figure; raises for wrong arguments."""
        for path in self.results:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or folder of results")
        if self.data_root is not None and not self.data_root.is_dir():
            raise FileNotFoundError(f"there is no data folder {self.data_root}")
        check_at_least(0, **{"--examples": self.examples})
        first = self.results[0]
        output = self.output or (first if first.is_dir() else first.parent) / "report.html"
        if self.figure is None:
            if self.images or self.methods:
                raise ValueError("--images and --methods belong to --figure out.png")
            if output.suffix.lower() not in (".html", ".htm"):
                raise ValueError(f"the report {output} must be named *.html.")
        elif self.figure.suffix.lower() != ".png":
            raise ValueError(f"the figure {self.figure} must be named *.png.")
        elif not self.images:
            raise ValueError("a figure needs images: --images a,b,c")
        check_writable(self.figure or output, self.overwrite)
        return self.figure or output

    def run(self, output: Path) -> None:
        if self.figure is not None:
            from talk2dino.report.pictures import write_figure

            images, methods = (
                list(map(str.strip, split_names(text))) if text else []
                for text in (self.images, self.methods)
            )
            figure, *single = write_figure(self.results, output, images, methods, self.data_root)
            print(f"{figure}, and its {len(single)} pictures in {single[0].parent}")
            return
        from talk2dino.report.report import write_report

        shown = (self.examples, self.data_root, self.tables)
        written, notes = write_report(self.results, output, *shown, bar_of("benchmarks"))
        for note in notes:
            print(f"left out: {note}", file=sys.stderr)
        plots = [path for path in written[1:] if path.parent == written[1].parent]
        print(f"{written[0]}, and {len(plots)} plots in {written[1].parent}")
        if self.tables:
            print(f"{len(written) - 1 - len(plots)} tables in {written[-1].parent}")


class Compare(Command):
    """Compare two results on the same images: paired difference, classes, images."""

    positional = ("first", "second")
    example = "results/a.json results/b.json --json difference.json"

    first: Path
    """Result of an evaluation."""
    second: Path
    """Result on the same images."""
    json: Path | None = None
    """Write all differences, those of every image too."""
    overwrite: bool = False
    """Replace a file that is there."""
    most: int = 10
    """Classes and images that are printed, so many of each."""

    def check(self) -> list[EvaluatedRun]:
        """The two runs; refuse what cannot be read or compared."""
        from talk2dino.report.runs import check_comparable, find_runs

        check_at_least(0, **{"--most": self.most})
        for path in (self.first, self.second):
            check_file(path, "result file")
        if self.json is not None:
            check_writable(self.json, self.overwrite)
        found = {run.path: run for run in find_runs([self.first, self.second])[0]}
        runs = [found[path.resolve()] for path in (self.first, self.second)]
        check_comparable(*runs)
        return runs

    def run(self, runs: list[EvaluatedRun]) -> None:
        from talk2dino.report.runs import DRAWS, compare_runs

        first, second = runs
        found = {one.measure: one for one in compare_runs(first, [second])}
        if self.json is not None:
            content = {
                "benchmark": first.benchmark,
                "a": {"label": first.label, "file": str(first.path)},
                "b": {"label": second.label, "file": str(second.path)},
                **found[""].as_json(),
                "boundary": found["boundary_"].as_json() if "boundary_" in found else None,
                "draws": DRAWS,
            }
            write_text(self.json, json.dumps(content, indent=1) + "\n")
        print(f"{first.result['title']}, {first.result['num_images']} images")
        for letter, run in (("A", first), ("B", second)):
            print(f"{letter}  {run.result['mIoU']:6.2f}  {run.label}  ({run.path.name})")
        for differences in found.values():
            measure = "boundary mIoU" if differences.measure else "mIoU"
            low, high = differences.interval
            print(
                f"\nB - A: {differences.difference:+.2f} points of {measure}, 95 % interval "
                f"{low:+.2f} to {high:+.2f} (paired, over images)\n"
                f"B is better in {100 * differences.better:.1f} % of {DRAWS:,} draws"
            )
            for title, what in (("classes", "per_class"), ("images", "images")):
                if shown := differences.most(what, self.most):
                    print(f"\n{title} that differ most:")
                    print("\n".join(f"{value:+8.2f}  {name}" for name, value in shown))
        if self.json is not None:
            print(f"\nwritten: {self.json}")
