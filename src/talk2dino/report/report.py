"""A report of evaluated runs: one HTML file that needs nothing else, plots as PNG, and tables."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from talk2dino.benchmarks.results import save_png
from talk2dino.benchmarks.tables import Cell, Table, mean_of, published_sources, results_table
from talk2dino.files import write_text
from talk2dino.progress import Progress, silent
from talk2dino.report import plots
from talk2dino.report.pictures import draw_rows, has_predictions, make_example, read_maps
from talk2dino.report.runs import (
    DRAWS,
    MEASURES,
    Differences,
    EvaluatedRun,
    by_benchmark,
    compare_comparable,
    find_runs,
    methods,
    pick_examples,
    top_confusions,
)

_MOST_PANELS = 6
"""Pictures in one row of an example."""


def write_report(
    places: Sequence[str | Path],
    output: Path,
    examples: int = 3,
    data_root: Path | None = None,
    tables: bool = False,
    progress: Progress = silent,
) -> tuple[list[Path], list[str]]:
    """Make the page, and the plots in the folder `<stem>_plots` beside it.

    Args:
        places: result files, or folders that hold them.
        output: the HTML file.
        examples: best, median and worst images, so many of each.
        data_root: where images and labels are now; None for where they were evaluated.
        tables: also write the numbers as LaTeX and CSV, into the folder `<stem>_tables`.
        progress: counts the benchmarks.

    Returns:
        the files that were written, the page first; and what was left out, a line each.

    Raises:
        FileNotFoundError: there are no results.
    """
    runs, notes = find_runs(places)
    written = [output]

    def beside(what: str, name: str) -> Path:
        written.append(output.with_name(f"{output.stem}_{what}") / name)
        return written[-1]

    def plot(name: str, figure: Figure) -> bytes:
        """Write it as PNG; returns it as SVG."""
        plots.save_png(figure, beside("plots", f"{name}.png"))
        return plots.figure_svg(figure)

    overview = plot("overview", plots.draw_overview(runs))
    names, groups = methods(runs), by_benchmark(runs)
    sections: dict[str, dict[str, Any]] = {}
    with progress(len(groups), 0) as bar:
        for key, group in groups.items():
            places_of = [names.index(run.label) for run in group]
            bars = plot(f"{key}_classes", plots.draw_class_bars(group, places_of))
            confusions = [
                None
                if "confusion" not in run.counts
                else plot(f"{run.path.stem}_confusion", plots.draw_confusion(run))
                for run in group
            ]
            picked = pick_examples(group, examples) if examples else {}
            shown = {
                kind: [
                    make_example(name, group, read_maps(name, group, data_root)) for name in images
                ]
                for kind, images in picked.items()
            }
            if shown:
                rows = [(kind, example) for kind, some in shown.items() for example in some]
                picture = draw_rows(rows, [run.label for run in group])
                save_png(picture, beside("plots", f"{key}_examples.png"))
            comparisons, reasons = compare_comparable(group)
            sections[key] = {
                "runs": group,
                "class_bars": bars,
                "comparisons": comparisons,
                "not_compared": reasons,
                "confusions": confusions,
                "examples": shown,
                "has_predictions": all(map(has_predictions, group)),
            }
            bar.update(1)
    if tables:
        differences = [one for section in sections.values() for one in section["comparisons"]]
        for name, table in tables_of(runs, differences).items():
            texts = {"csv": table.csv()}
            if not name.endswith("_images"):  # those fit no page
                texts["tex"] = table.latex()
            for kind, text in texts.items():
                write_text(beside("tables", f"{name}.{kind}"), text, errors="backslashreplace")
    page = _page(runs, overview, sections, notes)
    write_text(output, page, errors="backslashreplace")
    return written, notes


def _page(
    runs: Sequence[EvaluatedRun],
    overview: bytes,
    sections: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
) -> str:
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        function.__name__.lstrip("_"): function
        for function in (_data_uri, _jpeg, _number, _settings)
    }
    return environment.get_template("page.html").render(
        runs=runs,
        names=methods(runs),
        overview=overview,
        sections=sections,
        notes=notes,
        all_runs=_runs_table(runs),
        sources=published_sources([run.result for run in runs]),
        finished=max((run.result["finished"] or "")[:10] for run in runs),
        compared=_compared(runs),
        mean=lambda cells: mean_of(_mious(cells)),
        best=lambda cells: max((v for v in _mious(cells) if v is not None), default=math.nan),
        method_colour=plots.method_colour,
        shown_classes=plots.shown_classes,
        top_confusions=top_confusions,
        draws=DRAWS,
        one_column=plots.ONE_COLUMN,
        most_panels=_MOST_PANELS,
    )


def _compared(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun | None]]:
    """Methods down, benchmarks across: how papers compare."""
    found = {(run.label, run.benchmark): run for run in runs}
    return {name: [found.get((name, key)) for key in by_benchmark(runs)] for name in methods(runs)}


def _mious(runs: Sequence[EvaluatedRun | None]) -> list[float | None]:
    return [None if run is None else run.result["mIoU"] for run in runs]


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash for none; points have a sign."""
    return "–" if value is None else format(value, form).replace("-", "−")


def _settings(run: EvaluatedRun) -> str:
    keys = ("command", "settings", "uniform_windows", "versions", "timing", "data_root", "finished")
    content = {key: run.result[key] for key in keys if run.result[key] is not None}
    return json.dumps(content, indent=1, ensure_ascii=False)


def _runs_table(runs: Sequence[EvaluatedRun]) -> Table:
    """A row per run, as `evaluate` prints them."""
    return results_table(
        [{**run.result, "benchmark": run.result["title"], "model": run.label} for run in runs]
    )


def tables_of(runs: Sequence[EvaluatedRun], differences: Sequence[Differences]) -> dict[str, Table]:
    """`scores`, `runs`, `differences`, and per benchmark its classes and images."""
    groups = by_benchmark(runs)
    scores = [[name, *_mious(cells)] for name, cells in _compared(runs).items()]
    titles = [group[0].result["title"] for group in groups.values()]
    tables = {
        "scores": Table(["method", *titles], scores, compared=True),
        "runs": _runs_table(runs),
    }
    if differences:
        rows: list[Sequence[Cell]] = []
        for d in differences:
            title = d.first.result["title"] + (", boundary" if d.measure else "")
            names = (title, d.first.label, d.second.label)
            rows.append((*names, d.difference, *d.interval, 100 * d.better))
        heads = ("benchmark", "A", "B", "B - A", "low", "high", "better in %")
        tables["differences"] = Table(heads, rows)
    for key, group in groups.items():
        classes, images = {}, {}
        for measure, name in MEASURES.items():
            for run in (run for run in group if run.result[name] is not None):
                head = f"{run.label}, boundary" if measure else run.label
                classes[head] = run.result[name]
                images[head] = run.image_scores.get(measure, {})
        tables[f"{key}_classes"] = _by_name("class", classes, compared=True)
        tables[f"{key}_images"] = _by_name("image", images)
    return tables


def _by_name(what: str, columns: Mapping[str, Mapping[str, Cell]], compared: bool = False) -> Table:
    """A row per name that is in any column."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name) for column in columns.values())] for name in names]
    return Table([what, *columns], rows, compared)
