"""The style of a report's page, and the small pieces of HTML it is put together from."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from talk2dino.report.plots import method_colour
from talk2dino.report.runs import EvaluatedRun

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #222;
  background: #fff; max-width: 1180px; margin: 0 auto; padding: 1.2rem 1.4rem 4rem; }
h1 { font-size: 1.55rem; margin: .2rem 0; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem;
  padding-top: .9rem; border-top: 1px solid #ddd; } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, .note { margin: .3rem 0 .7rem; color: #555; } nav a { margin-right: .9rem; }
a { color: #25558f; text-decoration: none; } a:hover { text-decoration: underline; }
.wide { overflow-x: auto; background: /* a shadow where more of the table is hidden */
  linear-gradient(90deg, #fff 40%, #fff0) local,
  linear-gradient(270deg, #fff 40%, #fff0) right local,
  radial-gradient(farthest-side at 0 50%, #0003, #0000),
  radial-gradient(farthest-side at 100% 50%, #0003, #0000) right;
  background-repeat: no-repeat; background-size: 48px 100%, 48px 100%, 16px 100%, 16px 100%; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .28rem .65rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; } th { font-weight: 600; font-size: .86rem; color: #444; }
th:first-child, td:first-child, .text { text-align: left; } tr { border-bottom: 1px solid #eee; }
thead tr { border-bottom: 1.5px solid #888; } td small { display: block; color: #777;
  font-size: .74rem; line-height: 1.25; } .best { font-weight: 700; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px;
  border: 1px solid #0003; vertical-align: -.05em; } .plot { max-width: 100%; height: auto; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.row > figure { flex: 1 1 350px; max-width: 620px; }
.row .plot { width: 100%; } .full { width: 100%; max-width: 1180px; } figure { margin: 0; }
figcaption { font-size: .82rem; color: #555; margin: .1rem 0 .25rem; }
.example { margin: 0 0 1.3rem; }
.panels { display: grid; gap: .5rem; } .panels img { width: 100%; display: block;
  border-radius: 3px; } .absent { background: #f3f3f3; color: #888; border-radius: 3px;
  padding: 2.4rem .6rem; text-align: center; font-size: .82rem; }
.legend { font-size: .8rem; color: #444; margin-top: .3rem; } .legend span { margin-right: .9em;
  white-space: nowrap; } .warning { background: #fff6dd; padding: .4rem .7rem; border-radius: 3px; }
details { margin: .4rem 0; } summary { cursor: pointer; color: #25558f; }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .78rem; }
@media print { h2 { break-before: page; } .example { break-inside: avoid; } }
"""


def method_name(name: str, place: int) -> str:
    """The name behind a square in the colour of the method's place in the report."""
    return f"<i class=key style='background:{method_colour(place)}'></i>{escape(name)}"


def plot(svg: bytes, description: str, full: bool = False) -> str:
    """The plot as a picture; `full` fills the page's width."""
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return f"<img class='plot{' full' * full}' src='{uri}' alt='{escape(description)}'>"


def table(header: str, rows: Sequence[str]) -> str:
    """A table of `<th>` cells and `<tr>` rows that scrolls if the page is too narrow."""
    head = f"<thead><tr>{header}</tr></thead>"
    return f"<div class=wide><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def title(run: EvaluatedRun) -> str:
    """Name of the run's benchmark."""
    return str(run.result.get("title", run.benchmark))


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{value:+.1f}".replace("-", "−")


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash for none."""
    return "–" if value is None else format(value, form)


def css_colour(colour: tuple[int, int, int] | None) -> str:
    """A CSS background; None gives stripes."""
    if colour is None:
        return "repeating-linear-gradient(45deg, #fafafa 0 2px, #aaa 2px 4px)"
    return "rgb({}, {}, {})".format(*colour)
