"""The table in docs/performance.md, made from measured figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from talk2dino.files import atomic_path

_COLUMNS = (
    "work",
    "runs",
    "ours",
    "literal",
    "ratio",
    "asked",
    "extra memory",
    "literal's",
    "largest difference",
)


def write_table(page: Path, device: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the table of a device between its two comments in a Markdown page.

    Args:
        page: the file.
        device: "cpu" or "cuda".
        records: case name -> `Measured.record()` and `machine`.

    Raises:
        ValueError: the page has no place for this table.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- measured on {device} -->\n", f"<!-- end of {device} -->\n"
    if begin not in text or end not in text:
        raise ValueError(f"{page}: no lines {begin.strip()!r} and {end.strip()!r} around a table")
    before, after = text.split(begin)[0], text.split(end)[1]
    with atomic_path(page) as partial:
        partial.write_text(before + begin + _section(records) + end + after, encoding="utf-8")


def _section(records: Mapping[str, Mapping[str, Any]]) -> str:
    machines = dict.fromkeys(record["machine"] for record in records.values())
    numbers = {name: str(number) for number, name in enumerate(machines, start=1)}
    if len(numbers) > 1:
        said = [f"{number}: {name}." for name, number in numbers.items()]
    else:
        said, numbers = [f"{name}." for name in machines], {}
    lines = ["", *"\n\n".join(said).split("\n"), "", *_table(records, numbers), ""]
    baselines = [
        f"| {record['title']} | {_time(record['seconds'])} | {side.replace('_', ' ')} | "
        f"{_time(found['seconds'])} | {1 / found['ratio']:.2f} | {_limit(record, side)} |"
        for record in records.values()
        for side, found in record.get("baselines", {}).items()
    ]
    if baselines:
        lines += [
            "| work | ours | beside | its time | ours / beside | at most |",
            "| --- | --- | --- | --- | --- | --- |",
            *baselines,
            "",
        ]
    return "\n".join([*lines, ""])


def _table(records: Mapping[str, Mapping[str, Any]], numbers: Mapping[str, str]) -> Iterable[str]:
    """The rows; with the number of each row's machine, if there are several."""
    columns = [*_COLUMNS, *(["on"] if numbers else [])]
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for record in records.values():
        runs = str(record["repeats"])
        cells = [record["title"], runs, _time(record["seconds"]) + _rate(record)]
        if "ratio" in record:
            difference = record["max_difference"]
            cells += [
                _time(record["literal_seconds"]),
                f"**{record['ratio']:.1f}x**",
                _asked(record),
                _memory(record["peak_mb"]),
                _memory(record["literal_peak_mb"]),
                "none to compare" if difference is None else f"{difference:.1g}",
            ]
        else:
            cells += ["", "", "", _memory(record["peak_mb"]), "", ""]
        cells += [numbers[record["machine"]]] if numbers else []
        yield f"| {' | '.join(cells)} |"


def _asked(record: Mapping[str, Any]) -> str:
    target = record.get("targets", {}).get("literal")
    return f"{target:g}x" if target else ""


def _limit(record: Mapping[str, Any], side: str) -> str:
    target = record.get("targets", {}).get(side)
    return f"{1 / target:.2f}" if target else ""


def _rate(record: Mapping[str, Any]) -> str:
    if "rate" not in record:
        return ""
    digits = 0 if record["rate"] >= 100 else 1
    return f" ({record['rate']:,.{digits}f} {record['unit']}/s)"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _memory(megabytes: float) -> str:
    return f"{megabytes:,.0f} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"
