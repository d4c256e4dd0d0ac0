"""Tables of results: Markdown for terminals, CSV for programs, LaTeX for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cell = str | float | int | None
Result = Mapping[str, Any]
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

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """Cells: text, or numbers in percent or points."""
    compared: bool = False
    """Whether the best number of each column is bold in LaTeX."""

    def csv(self) -> str:
        """Numbers with all their digits."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def markdown(self) -> str:
        """Aligned, so that it also reads as text; two digits after the point."""
        shown, left = [list(self.columns), *self.texts()], self._words()
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        columns = list(zip(widths, left, strict=True))
        shown.insert(1, ["-" * (width - 1) + "-:"[not word] for width, word in columns])
        form = " | ".join(f"{{:{'<' if word else '>'}{width}}}" for width, word in columns)
        return "".join(f"| {form.format(*row)} |\n" for row in shown)

    def texts(self) -> list[list[str]]:
        return [
            ["" if c is None else f"{c:.2f}" if isinstance(c, float) else str(c) for c in row]
            for row in self.rows
        ]

    def latex(self) -> str:
        """A `tabular` with booktabs' rules; numbers with one digit after the point."""
        best: list[float | None] = []
        for column in zip(*self.rows, strict=True):
            numbers = [cell for cell in column if isinstance(cell, float)]
            best.append(max(numbers) if self.compared and len(numbers) > 1 else None)
        lines = [
            rf"\begin{{tabular}}{{{''.join('rl'[word] for word in self._words())}}}",
            r"\toprule",
            " & ".join(map(_latex, self.columns)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_latex, row, best)) + r" \\" for row in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def _words(self) -> list[bool]:
        """Which columns hold text; they stand left."""
        columns = zip(*self.rows, strict=True)
        return [any(isinstance(cell, str) for cell in column) for column in columns]


def _latex(cell: Cell, best: float | None = None) -> str:
    if isinstance(cell, str):
        return cell.translate(_ESCAPES)
    if not isinstance(cell, float):
        return "--" if cell is None else str(cell)
    shown = f"{cell:.1f}".replace("-", "$-$")
    return rf"\textbf{{{shown}}}" if cell == best else shown


_COLUMNS = {
    "model": "model",
    "benchmark": "benchmark",
    "mIoU": "mIoU",
    "low": "95 % from",
    "high": "to",
    "published": "paper",
    "difference": "difference",
    "mAcc": "mAcc",
    "aAcc": "aAcc",
    "num_images": "images",
    "images_per_second": "images/s",
    "boundary_mIoU": "boundary mIoU",
    "seam_error": "seam error",
}
"""What is shown of a result -> its head."""


def results_table(results: Sequence[Result]) -> Table:
    """One row per result, and per model their mean where there are several benchmarks.

    An option that all models have stands beside the mIoU, one of some behind their names.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["model"], []).append(result)
    options = {model: options_of(group[0].get("settings")) for model, group in groups.items()}
    shared = [w for w in next(iter(options.values())) if all(w in o for o in options.values())]
    rows: list[dict[str, Any]] = []
    for model, group in groups.items():
        own: list[dict[str, Any]] = []
        for result in group:
            low, high = result["mIoU_interval"]
            own.append({**result, **(result["timing"] or {}), "low": low, "high": high})
        once = len({result["benchmark"] for result in group}) == len(group)
        if len(group) > 1 and once and all(result["mIoU"] is not None for result in group):
            total = sum(result["num_images"] for result in group)
            means = {key: mean_of([one[key] for one in group]) for key in ("mIoU", "published")}
            own.append({"benchmark": "mean", **means, "num_images": total})
        name = ", ".join([model, *(word for word in options[model] if word not in shared)])
        rows += [{**row, "model": name if len(groups) > 1 else None} for row in own]
    for row in rows:
        if None not in (row["mIoU"], row["published"]):
            row["difference"] = row["mIoU"] - row["published"]
    kept = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    heads = {**_COLUMNS, "mIoU": ", ".join(["mIoU", *shared])}
    return Table([heads[key] for key in kept], [[row.get(key) for key in kept] for row in rows])


def mean_of(numbers: Sequence[float | None]) -> float | None:
    """Their mean; None unless all are known."""
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if len(known) == len(numbers) else None


def published_sources(results: Sequence[Result]) -> list[str]:
    """Who printed the numbers that results stand beside: a line per source, with its models."""
    models: dict[str, dict[str, None]] = {}
    for result in results:
        if (source := result.get("published_source")) is not None:
            models.setdefault(source, {})[result["model"]] = None
    return [f"{', '.join(names)}: {source}" for source, names in models.items()]


def protocol_of(settings: Mapping[str, Any] | None) -> str | None:
    """The protocol in the settings of a result; None for the method's own."""
    found = ((settings or {}).get("segmenter") or {}).get("protocol")
    return None if found is None else str(found)


def options_of(settings: Mapping[str, Any] | None) -> list[str]:
    """In words, what no publication has: the protocol, sizes and refinements of a result."""
    segmenter = (settings or {}).get("segmenter") or {}
    sizes = segmenter.get("sizes") or {}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in sizes.items()]
    words += [name for name in ("smoothing", "propagation") if segmenter.get(name)]
    words += ["over the image"] if segmenter.get("propagation_graph") == "image" else []
    protocol = protocol_of(settings)
    return words if protocol is None else [protocol, *words]
