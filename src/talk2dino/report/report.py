"""A report of evaluated runs: one HTML file, and its plots as PNG for papers and slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talk2dino.files import atomic_path, check_writable, write_text
from talk2dino.progress import Progress, silent
from talk2dino.report.compare import compare_comparable
from talk2dino.report.examples import draw_rows, make_example
from talk2dino.report.page import Section, build_page
from talk2dino.report.plots import (
    draw_class_bars,
    draw_confusion,
    draw_overview,
    figure_svg,
    save_png,
)
from talk2dino.report.runs import (
    EvaluatedRun,
    by_benchmark,
    find_runs,
    methods,
    pick_examples,
)
from talk2dino.report.tables import write_tables


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows and where it goes."""

    output: Path
    """The HTML file; the plots go into the folder `<stem>_plots` beside it."""
    examples: int = 3
    """Best, median and worst images, so many of each; 0 for none."""
    data_root: Path | None = None
    """Where the images and labels are now (default: where they were evaluated)."""
    tables: bool = False
    """Also write the numbers as LaTeX and CSV into the folder `<stem>_tables`."""
    overwrite: bool = False
    """Replace a report that is there."""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"examples must not be negative, got {self.examples}.")
        if self.output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"the report {self.output} must be named *.html.")

    @property
    def plots(self) -> Path:
        """Folder of the PNG files."""
        return self.output.with_name(f"{self.output.stem}_plots")


def write_report(
    places: Sequence[str | Path], options: ReportOptions, progress: Progress = silent
) -> tuple[list[Path], list[str]]:
    """Make the page and the plots.

    Args:
        places: result files, or folders that hold them.
        options: see there.
        progress: counts the benchmarks.

    Returns:
        the files that were written, the page first; and what was left out, a line each.

    Raises:
        FileNotFoundError: there are no results.
        FileExistsError: there is a report already and `overwrite` is false.
    """
    check_writable(options.output, options.overwrite)
    runs, notes = find_runs(places)
    overview = draw_overview(runs)
    written = [options.output, options.plots / "overview.png"]
    save_png(overview, written[-1])
    sections = {}
    groups = by_benchmark(runs)
    with progress(len(groups), 0) as bar:
        for key, group in groups.items():
            sections[key], files = _make_section(group, methods(runs), options)
            written += files
            bar.update(1)
    if options.tables:
        folder = options.output.with_name(f"{options.output.stem}_tables")
        compared = [found for section in sections.values() for found in section.comparisons]
        written += write_tables(folder, runs, compared)
    page = build_page(runs, figure_svg(overview), sections, notes)
    write_text(options.output, page, errors="backslashreplace")
    return written, notes


def _make_section(
    runs: list[EvaluatedRun], names: list[str], options: ReportOptions
) -> tuple[Section, list[Path]]:
    key = runs[0].benchmark
    bars = draw_class_bars(runs, [names.index(run.label) for run in runs])
    files = [options.plots / f"{key}_classes.png"]
    save_png(bars, files[0])
    confusions: list[bytes | None] = []
    for run in runs:
        if run.counts is None:
            confusions.append(None)
            continue
        figure = draw_confusion(run)
        confusions.append(figure_svg(figure))
        files.append(options.plots / f"{run.path.stem}_confusion.png")
        save_png(figure, files[-1])
    picked = pick_examples(runs, options.examples) if options.examples else {}
    examples = {
        kind: [make_example(name, runs, options.data_root) for name in images]
        for kind, images in picked.items()
    }
    if examples:
        files.append(options.plots / f"{key}_examples.png")
        rows = [(kind, example) for kind, some in examples.items() for example in some]
        sheet = draw_rows(rows, [run.label for run in runs])
        with atomic_path(files[-1]) as temporary:
            sheet.save(temporary, format="PNG")
    comparisons, reasons = compare_comparable(runs)
    return Section(runs, figure_svg(bars), comparisons, reasons, confusions, examples), files
