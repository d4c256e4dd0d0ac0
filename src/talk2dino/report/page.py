"""The HTML of a report: one file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from talk2dino.report.examples import Example, has_predictions
from talk2dino.report.html import (
    STYLE,
    css_colour,
    method_name,
    number,
    plot,
    signed,
    table,
    title,
)
from talk2dino.report.plots import ONE_COLUMN, shown_classes
from talk2dino.report.runs import (
    EvaluatedRun,
    by_benchmark,
    methods,
    top_confusions,
)

_MOST_PANELS = 6
"""Pictures in one row of an example."""

_KINDS = {"best": "Best images", "median": "Median images", "worst": "Worst images"}


@dataclass(frozen=True)
class Section:
    """What is shown of one benchmark."""

    runs: list[EvaluatedRun]
    """Its runs."""
    class_bars: bytes
    """SVG."""
    confusions: list[bytes | None]
    """SVG per run; None without counts."""
    examples: dict[str, list[Example]]
    """"best", "median", "worst" -> images."""


def build_page(
    runs: Sequence[EvaluatedRun],
    overview_svg: bytes,
    sections: Mapping[str, Section],
    notes: Sequence[str],
) -> str:
    """The whole page.

    Args:
        runs: all of them.
        overview_svg: the plot of all results.
        sections: benchmark -> its part.
        notes: warnings to show at the top.
    """
    names = methods(runs)
    links = "".join(
        f'<a href="#{escape(key)}">{escape(title(section.runs[0]))}</a>'
        for key, section in sections.items()
    )
    head = (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Segmentation results: {escape(', '.join(names))}</title>"
        f"<style>{STYLE}</style></head><body>"
    )
    finished = sorted(str(run.result.get("finished", ""))[:10] for run in runs)
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    parts = [
        head,
        "<h1>Open-vocabulary segmentation results</h1>",
        f"<p>{count}, {escape(finished[-1])}</p><nav>{links}</nav>",
        *(f"<p class='warning'>{escape(note)}</p>" for note in notes),
        "<h2 id='results'>mIoU</h2>",
        _results_table(runs),
        "<p>Percent; in small print the 95 % bootstrap interval over images, and the authors' "
        "published value with the difference to it. The best of each column is bold.</p>",
        plot(overview_svg, "mIoU of every method on every benchmark"),
        "<h3>All runs</h3>",
        _runs_table(runs),
    ]
    for key, section in sections.items():
        parts += _section(key, section, names)
    parts.append("<h2 id='settings'>How the runs were made</h2>")
    parts += [_settings(run) for run in runs]
    return "\n".join([*parts, "</body></html>", ""])


def _results_table(runs: Sequence[EvaluatedRun]) -> str:
    """Methods down, benchmarks across: how papers compare."""
    groups, names = by_benchmark(runs), methods(runs)
    found = {(run.label, run.benchmark): run for run in runs}
    best = {
        key: max((run.result["mIoU"] for run in group if run.result["mIoU"] is not None), default=0)
        for key, group in groups.items()
    }
    header = "".join(f"<th>{escape(title(group[0]))}</th>" for group in groups.values())
    rows = []
    for index, name in enumerate(names):
        cells, values = [], []
        for key in groups:
            run = found.get((name, key))
            values.append(None if run is None else run.result["mIoU"])
            bold = len(names) > 1 and values[-1] is not None and values[-1] == best[key]
            cells.append(_score_cell(run, bold))
        if len(groups) > 1:
            cells.append(f"<td>{_mean(values)}</td>")
        rows.append(f"<tr><td>{method_name(name, index)}</td>{''.join(cells)}</tr>")
    mean = "<th>mean</th>" if len(groups) > 1 else ""
    return table(f"<th>method</th>{header}{mean}", rows)


def _mean(values: Sequence[float | None]) -> str:
    """Over the benchmarks, if every one has a number."""
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known)) if len(known) == len(values) else ""


def _score_cell(run: EvaluatedRun | None, bold: bool) -> str:
    if run is None:
        return "<td></td>"
    value, paper = run.result["mIoU"], run.result.get("published")
    low, high = run.result.get("mIoU_interval") or (None, None)
    small = "" if low is None else f"<small>{number(low, '.1f')} – {number(high, '.1f')}</small>"
    if paper is not None:
        difference = "" if value is None else f" ({signed(value - paper)})"
        small += f"<small>paper {paper:.1f}{difference}</small>"
    return f"<td><span{' class=best' if bold else ''}>{number(value)}</span>{small}</td>"


def _runs_table(runs: Sequence[EvaluatedRun]) -> str:
    header = "".join(
        f"<th{' class=text' if name == 'method' else ''}>{name}</th>"
        for name in (
            *("benchmark", "method", "mIoU", "paper", "difference", "mAcc", "aAcc"),
            *("images", "threshold", "cleaning", "images/s", "memory [MiB]"),
        )
    )
    names, rows = methods(runs), []
    for run in runs:
        result, timing = run.result, run.result.get("timing") or {}
        value, paper = result["mIoU"], result.get("published")
        both = value is not None and paper is not None
        cells = [
            number(value),
            number(paper),
            signed(value - paper) if both else "",
            number(result["mAcc"]),
            number(result["aAcc"]),
            str(result["num_images"]),
            "" if result["bg_thresh"] is None else f"{result['bg_thresh']:g}",
            "yes" if result.get("with_bg_clean") else "",
            number(timing.get("images_per_second")) if timing else "",
            number(_memory(timing), ".0f") if timing else "",
        ]
        rows.append(
            f"<tr><td><a href='#{escape(run.benchmark)}'>{escape(title(run))}</a></td>"
            f"<td class=text>{method_name(run.label, names.index(run.label))}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return table(header, rows)


def _section(key: str, section: Section, names: Sequence[str]) -> list[str]:
    first = section.runs[0]
    num_images = " / ".join(dict.fromkeys(str(run.result["num_images"]) for run in section.runs))
    shown = shown_classes(section.runs)
    empty = [name for name in first.classes if name not in shown]
    parts = [
        f"<h2 id='{escape(key)}'>{escape(title(first))}</h2>",
        f"<p>{len(first.classes)} classes, {num_images} images. "
        + " &nbsp; ".join(
            f"{method_name(run.label, names.index(run.label))}: {number(run.result['mIoU'])}"
            for run in section.runs
        )
        + "</p>",
        "<h3>IoU per class</h3>",
        plot(
            section.class_bars,
            f"IoU per class, {first.benchmark}",
            full=len(shown) > ONE_COLUMN,
        ),
    ]
    if empty:
        parts.append(
            f"<p>No pixel in ground truth or prediction (nan), left out of the mean: "
            f"{escape(', '.join(empty))}.</p>"
        )
    parts.append("<h3>Confusion</h3>")
    figures = [
        _confusion(run, svg, names.index(run.label), alone=len(section.runs) == 1)
        for run, svg in zip(section.runs, section.confusions, strict=True)
        if svg is not None
    ]
    parts.append(
        f"<div class=row>{''.join(figures)}</div>"
        if figures
        else "<p>The counts per image (.npz) are not beside the results.</p>"
    )
    return parts + _examples(section, names)


def _confusion(run: EvaluatedRun, svg: bytes, place: int, alone: bool) -> str:
    """The matrix and the largest mistakes: below each other, or side by side for one run."""
    rows = [
        f"<tr><td>{escape(true)}</td><td class=text>{escape(predicted)}</td>"
        f"<td>{share:.2f} %</td></tr>"
        for true, predicted, share in top_confusions(run, 10)
    ]
    caption = f"<figcaption>{method_name(run.label, place)}</figcaption>"
    mistakes = "<figcaption>largest mistakes</figcaption>" + table(
        "<th>true</th><th class=text>predicted</th><th>of all pixels</th>", rows
    )
    between = "</figure><figure>" if alone else ""
    return f"<figure>{caption}{plot(svg, 'confusion matrix')}{between}{mistakes}</figure>"


def _examples(section: Section, names: Sequence[str]) -> list[str]:
    runs, parts = section.runs, []
    for kind, examples in section.examples.items():
        parts.append(f"<h3>{_KINDS[kind]}</h3>")
        parts += [_example(example, runs, names) for example in examples]
    if parts:
        which = "averaged over the runs" if len(runs) > 1 else "over the classes in it"
        order = f"<p>Ordered by the image's own mIoU, {which}.</p>"
        parts.insert(0, order)
        if not all(has_predictions(run) for run in runs):
            parts.insert(
                1,
                "<p class='warning'>Predictions were not kept for every run. Evaluate with "
                "<code>--save_predictions DIR</code> to see them here.</p>",
            )
    return parts


def _example(example: Example, runs: Sequence[EvaluatedRun], names: Sequence[str]) -> str:
    panels = [("image", example.image), ("ground truth", example.truth)]
    for run, shown, score in zip(runs, example.predictions, example.scores, strict=True):
        own = "" if score is None else f": {score:.1f}"
        panels.append((method_name(run.label, names.index(run.label)) + own, shown))
    figures = "".join(_panel(caption, picture) for caption, picture in panels)
    legend = "".join(
        f"<span><i class=key style='background:{css_colour(entry.colour)}'></i>"
        f"{escape(entry.name)}</span>"
        for entry in example.legend
    )
    trouble = "".join(f"<div class=warning>{escape(text)}</div>" for text in example.trouble)
    across = min(max(len(panels), 3), _MOST_PANELS)
    columns = f"grid-template-columns: repeat({across}, minmax(0, 1fr))"
    return (
        f"<div class=example><figcaption>{escape(example.name)}</figcaption>"
        f"<div class=panels style='{columns}'>{figures}</div>"
        f"<div class=legend>{legend}</div>{trouble}</div>"
    )


def _panel(caption: str, picture: Image.Image | None) -> str:
    if picture is None:
        return (
            f"<figure><figcaption>{caption}</figcaption><div class=absent>not kept</div></figure>"
        )
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><figcaption>{caption}</figcaption><img src='{uri}' alt=''></figure>"


def _settings(run: EvaluatedRun) -> str:
    keys = ("command", "settings", "versions", "timing", "data_root", "finished")
    content: dict[str, Any] = {key: run.result[key] for key in keys if key in run.result}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return (
        f"<details><summary>{escape(title(run))}, {escape(run.label)} "
        f"({escape(run.path.name)})</summary><pre>{escape(text)}</pre></details>"
    )


def _memory(timing: Mapping[str, Any]) -> float | None:
    gpu = timing.get("peak_gpu_memory_mib")
    return gpu if gpu is not None else timing.get("peak_memory_mib")
