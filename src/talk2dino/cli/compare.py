"""`python -m talk2dino compare A.json B.json`: whether B is better, and on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command
from talk2dino.files import check_writable, write_text

if TYPE_CHECKING:
    from talk2dino.report.runs import Comparison, EvaluatedRun


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

        if self.most < 0:
            raise ValueError(f"--most must not be negative, got {self.most}.")
        for path in (self.first, self.second):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such result file")
        if self.json is not None:
            check_writable(self.json, self.overwrite)
        found = {run.path: run for run in find_runs([self.first, self.second])[0]}
        runs = [found[path.resolve()] for path in (self.first, self.second)]
        check_comparable(*runs)
        return runs

    def run(self, runs: list[EvaluatedRun]) -> int:
        """Compare, print and write."""
        from talk2dino.report.runs import compare_runs

        first, second = runs
        found = compare_runs(first, [second])[0]
        if self.json is not None:
            write_text(self.json, json.dumps(found.as_json(), indent=1) + "\n")
        print(_text(found, self.most))
        if self.json is not None:
            print(f"\nwritten: {self.json}")
        return DONE


def _text(found: Comparison, most: int) -> str:
    from talk2dino.report.runs import DRAWS

    lines = [f"{found.first.title}, {found.first.result['num_images']} images"]
    lines += [
        f"{letter}  {run.result['mIoU']:6.2f}  {run.label}  ({run.path.name})"
        for letter, run in (("A", found.first), ("B", found.second))
    ]
    for measure, differences in (("mIoU", found), ("boundary mIoU", found.boundary)):
        if differences is None:
            continue
        low, high = differences.interval
        lines += [
            "",
            f"B - A: {differences.difference:+.2f} points of {measure}, 95 % interval "
            f"{low:+.2f} to {high:+.2f} (paired, over images)",
            f"B is better in {100 * differences.better:.1f} % of {DRAWS:,} draws",
        ]
        for title, what in (("classes", "per_class"), ("images", "images")):
            if shown := differences.most(what, most):
                lines += ["", f"{title} that differ most:"]
                lines += [f"{value:+8.2f}  {name}" for name, value in shown]
    return "\n".join(lines)


main = Compare.main
