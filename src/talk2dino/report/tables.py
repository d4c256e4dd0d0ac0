"""The numbers of a report as tables for papers (LaTeX, booktabs) and for programs (CSV)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talk2dino.benchmarks.results import at_borders
from talk2dino.files import write_text
from talk2dino.report.compare import Comparison
from talk2dino.report.runs import MEASURES, EvaluatedRun, by_benchmark, methods

Cell = str | float | int | None
_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "\n": " "},
    }
)


@dataclass(frozen=True)
class Table:
    """Rows under their heads; None is an empty cell."""

    name: str
    """Of its files."""
    columns: Sequence[str]
    """Heads."""
    rows: Sequence[Sequence[Cell]]
    """Cells: text, or numbers in percent or points."""
    compared: bool = False
    """Whether the best number of each column is bold in LaTeX."""

    def csv(self) -> str:
        """Numbers with all their digits."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def latex(self) -> str:
        """A `tabular` with booktabs' rules; numbers with one digit after the point."""
        numeric = [
            all(not isinstance(row[place], str) for row in self.rows)
            for place in range(len(self.columns))
        ]
        lines = [
            rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numeric)}}}",
            r"\toprule",
            " & ".join(_text(head) for head in self.columns) + r" \\",
            r"\midrule",
            *(" & ".join(self._cells(row)) + r" \\" for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def _cells(self, row: Sequence[Cell]) -> Iterator[str]:
        for place, cell in enumerate(row):
            shown = _text(cell)
            numbers = [value for r in self.rows if isinstance(value := r[place], float)]
            best = self.compared and len(numbers) > 1 and isinstance(cell, float)
            yield rf"\textbf{{{shown}}}" if best and cell == max(numbers) else shown


def write_tables(
    folder: Path, runs: Sequence[EvaluatedRun], comparisons: Sequence[Comparison]
) -> list[Path]:
    """Write every table as CSV, and those that fit a page as LaTeX; returns the files."""
    written = []
    for table in tables_of(runs, comparisons):
        texts = {".csv": table.csv()}
        if not table.name.endswith("_images"):
            texts[".tex"] = table.latex()
        for suffix, text in texts.items():
            written.append(folder / f"{table.name}{suffix}")
            write_text(written[-1], text, errors="backslashreplace")
    return written


def tables_of(runs: Sequence[EvaluatedRun], comparisons: Sequence[Comparison]) -> list[Table]:
    """`scores`, `runs`, `differences`, and per benchmark its classes and images."""
    groups = by_benchmark(runs)
    found = {(run.label, run.benchmark): run.result["mIoU"] for run in runs}
    scores = [[name, *(found.get((name, key)) for key in groups)] for name in methods(runs)]
    titles = [group[0].title for group in groups.values()]
    tables = [Table("scores", ["method", *titles], scores, compared=True), _runs_table(runs)]
    rows: list[Sequence[Cell]]
    if comparisons:
        heads = ("benchmark", "A", "B", "B - A", "low", "high", "better in %")
        rows = [
            (title, c.first.label, c.second.label, d.difference, *d.interval, 100 * d.better)
            for c in comparisons
            for title, d in ((c.first.title, c), (f"{c.first.title}, boundary", c.boundary))
            if d is not None
        ]
        tables.append(Table("differences", heads, rows))
    for key, group in groups.items():
        classes, images = {}, {}
        for measure, field in MEASURES.items():
            for run in (run for run in group if run.result[field] is not None):
                head = f"{run.label}, boundary" if measure else run.label
                classes[head] = run.result[field]
                images[head] = run.scores_of_images(measure)
        tables.append(_by_name(f"{key}_classes", "class", classes, compared=True))
        tables.append(_by_name(f"{key}_images", "image", images))
    return tables


def _by_name(
    table: str, what: str, columns: Mapping[str, Mapping[str, Cell]], compared: bool = False
) -> Table:
    """A row per name that is in any column."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name) for column in columns.values())] for name in names]
    return Table(table, [what, *columns], rows, compared)


def _runs_table(runs: Sequence[EvaluatedRun]) -> Table:
    columns = ["benchmark", "method", "mIoU", "low", "high", "paper", "mAcc", "aAcc", "images"]
    keys = ["published", "mAcc", "aAcc", "num_images"]
    if at_borders([run.result for run in runs]):
        columns += ["boundary mIoU", "seam error"]
        keys += ["boundary_mIoU", "seam_error"]
    rows = []
    for run in runs:
        result = run.result
        numbers = [result["mIoU"], *result["mIoU_interval"], *(result[key] for key in keys)]
        rows.append([run.title, run.label, *numbers])
    return Table("runs", columns, rows)


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell.translate(_ESCAPES)
    if cell is None:
        return "--"
    return f"{cell:.1f}".replace("-", "$-$") if isinstance(cell, float) else str(cell)
