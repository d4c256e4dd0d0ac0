"""The page of a report: one file that needs nothing else, neither scripts nor a network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from talk2dino.benchmarks.results import at_borders, published_sources
from talk2dino.report.compare import DRAWS, Comparison
from talk2dino.report.examples import Example, has_predictions
from talk2dino.report.plots import ONE_COLUMN, method_colour, shown_classes
from talk2dino.report.runs import (
    EvaluatedRun,
    by_benchmark,
    methods,
    top_confusions,
)

_MOST_PANELS = 6
"""Pictures in one row of an example."""


@dataclass(frozen=True)
class Section:
    """What is shown of one benchmark."""

    runs: list[EvaluatedRun]
    """Its runs."""
    class_bars: bytes
    """SVG."""
    comparisons: list[Comparison]
    """Of the other runs with the first."""
    not_compared: list[str]
    """Why the others are not."""
    confusions: list[bytes | None]
    """SVG per run; None without counts."""
    examples: dict[str, list[Example]]
    """"best", "median", "worst" -> images."""

    @property
    def has_predictions(self) -> bool:
        """Whether those of every run are there."""
        return all(map(has_predictions, self.runs))


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
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        function.__name__.lstrip("_"): function
        for function in (_data_uri, _jpeg, _css_colour, _number, _signed, _memory, _settings)
    }
    return environment.get_template("page.html").render(
        runs=runs,
        names=methods(runs),
        overview=overview_svg,
        sections=sections,
        notes=notes,
        sources=published_sources([run.result for run in runs]),
        finished=max((run.result["finished"] or "")[:10] for run in runs),
        scores=_scores(runs),
        best=_best(runs),
        method_colour=method_colour,
        shown_classes=shown_classes,
        top_confusions=top_confusions,
        draws=DRAWS,
        borders=at_borders([run.result for run in runs]),
        one_column=ONE_COLUMN,
        most_panels=_MOST_PANELS,
    )


def _scores(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """Methods down, benchmarks across: how papers compare."""
    found = {(run.label, run.benchmark): run for run in runs}
    rows = []
    for name in methods(runs):
        cells = [found.get((name, key)) for key in by_benchmark(runs)]
        shown = [run for run in cells if run is not None]
        known = [run.result["mIoU"] for run in shown if run.result["mIoU"] is not None]
        mean = _number(sum(known) / len(known)) if len(known) == len(cells) else ""
        rows.append({"first": shown[0], "runs": cells, "mean": mean})
    return rows


def _best(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """The runs with the highest number of their benchmark."""
    scored = [run for run in runs if run.result["mIoU"] is not None]
    highest = {
        key: max(run.result["mIoU"] for run in group) for key, group in by_benchmark(scored).items()
    }
    return [run for run in scored if run.result["mIoU"] == highest[run.benchmark]]


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _css_colour(colour: tuple[int, int, int] | None) -> str:
    """A CSS background; None gives stripes."""
    if colour is None:
        return "repeating-linear-gradient(45deg, #fafafa 0 2px, #aaa 2px 4px)"
    return "rgb({}, {}, {})".format(*colour)


def _number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash for none."""
    return "–" if value is None else format(value, form)


def _signed(value: float, form: str = "+.1f") -> str:
    """A difference in points, with its sign."""
    return format(value, form).replace("-", "−")


def _memory(timing: Mapping[str, Any]) -> float | None:
    gpu = timing.get("peak_gpu_memory_mib")
    return gpu if gpu is not None else timing.get("peak_memory_mib")


def _settings(run: EvaluatedRun) -> str:
    keys = ("command", "settings", "uniform_windows", "versions", "timing", "data_root", "finished")
    content = {key: run.result[key] for key in keys if run.result[key] is not None}
    return json.dumps(content, indent=1, ensure_ascii=False)
