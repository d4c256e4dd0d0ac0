"""The tables of a report: LaTeX that a paper can take in, CSV that programs read."""

import csv
import re

import pytest

from talk2dino.benchmarks.tables import Table
from talk2dino.cli.report import Report
from talk2dino.report.report import tables_of
from talk2dino.report.runs import find_runs


def test_numbers_are_rounded_for_papers_and_whole_for_programs():
    table = Table(["a_b", "x & y"], [["50 %", 1.25], ["m^2~<\\>", None], ["{n}", -3.0]])
    assert table.latex().splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & x \& y \\",
        r"\midrule",
        r"50 \% & 1.2 \\",
        r"m\textasciicircum{}2\textasciitilde{}\textless{}\textbackslash{}\textgreater{} & -- \\",
        r"\{n\} & $-$3.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert table.csv() == "a_b,x & y\n50 %,1.25\nm^2~<\\>,\n{n},-3.0\n"


def test_the_best_of_several_is_bold():
    rows = [["one", 1.0, 5.0], ["two", 2.0, None]]
    lines = Table(["m", "x", "y"], rows, compared=True).latex().splitlines()
    assert lines[4:6] == [r"one & 1.0 & 5.0 \\", r"two & \textbf{2.0} & -- \\"]


def test_a_run_at_borders_has_them_in_its_table(results):
    runs = find_runs([results])[0]
    assert "seam error" not in tables_of(runs, [])["runs"].columns
    runs[0].result.update(boundary_mIoU=12.5, seam_error=None, seam_pairs=0)
    table = tables_of(runs, [])["runs"]
    assert table.columns[-1] == "boundary mIoU"
    assert [row[-1] for row in table.rows] == [12.5, *[None] * 3]


@pytest.mark.usefixtures("undrawn")
def test_the_report_writes_every_table(results, capsys):
    assert Report.main([str(results), "--examples", "0", "--latex"]) == 0
    shown = capsys.readouterr().out
    assert "6 plots" in shown and "12 tables in" in shown
    folder = results / "report_tables"
    names = {path.name for path in folder.iterdir()}
    both = ("scores", "runs", "differences", "voc_classes", "ade20k_classes")
    assert names == {f"{name}.{kind}" for name in both for kind in ("tex", "csv")} | {
        "voc_images.csv",
        "ade20k_images.csv",
    }
    rows = list(csv.DictReader((folder / "differences.csv").open()))
    assert (rows[0]["A"], rows[0]["B"]) == ("toy", "toy + PAMR")
    runs = {run.path.stem: run.result["mIoU"] for run in find_runs([results])[0]}
    difference = runs["voc_toy_pamr_22222222"] - runs["voc_toy_11111111"]
    assert float(rows[0]["B - A"]) == pytest.approx(difference)
    assert float(rows[0]["low"]) <= difference <= float(rows[0]["high"])
    text = (folder / "voc_classes.tex").read_text()
    assert r"cat \& \textless{}dog\textgreater{} &" in text
    assert re.search(
        r"^toy \+ PAMR & \\textbf\{.+\} & --", (folder / "scores.tex").read_text(), re.M
    )
