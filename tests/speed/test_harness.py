"""The harness of `speed/`: processes, medians, memory, differences, files."""

import ast
import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from speed.case import Case
from speed.cases import CASES, PATHS
from speed.measure import Measured, SideResult, measure
from speed.run import main, names_of
from speed.table import write_table
from tests.speed import small_cases

REGISTRY = small_cases.__name__


@pytest.fixture(scope="module")
def same() -> Measured:
    return measure("same", repeats=3, registry=REGISTRY)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Top\n<!-- measured on cpu -->\nold\n<!-- end of cpu -->\nrest\n")
    return path


def test_every_side_is_measured_and_their_results_are_compared(same):
    assert set(same.sides) == {"shipped", "literal", "bare"}
    assert all(side.seconds > 0 for side in same.sides.values())
    assert same.max_difference == 1.5  # 3 and 4.5


def test_memory_is_what_a_step_takes(same):
    assert same.sides["literal"].peak_mb >= 50
    assert same.sides["literal"].peak_mb > same.sides["shipped"].peak_mb


def test_a_record_has_what_the_file_promises(same):
    record = same.record()
    wanted = ("ratio", "seconds", "literal_seconds", "peak_mb", "literal_peak_mb", "max_difference")
    assert set(wanted) <= set(record)
    assert record["ratio"] == record["literal_seconds"] / record["seconds"]
    assert record["baselines"]["bare"]["ratio"] == same.ratio("bare")
    assert json.loads(json.dumps(record)) == record


def test_a_case_without_a_literal_side_is_measured_alone():
    record = measure("alone", repeats=1, registry=REGISTRY).record()
    assert "ratio" not in record and "baselines" not in record


def test_a_side_that_fails_ends_the_measurement(capfd):
    with pytest.raises(RuntimeError, match="broken, shipped: the process ended with 1"):
        measure("broken", registry=REGISTRY)
    assert "this side cannot be prepared" in capfd.readouterr().err


def test_the_median_counts(same):
    sides = {"shipped": SideResult(2.0, 1.0, 1.0), "literal": SideResult(5.0, 1.0, 1.0)}
    assert Measured(same.case, sides, 1, 0.0).ratio() == 2.5


def test_what_was_asked_for_and_missed_is_said(same):
    sides = {"shipped": SideResult(2.0, 30, 700), "literal": SideResult(3.0, 60, 900)}
    limits = {"seconds": 1.5, "resident_mb": 600, "peak_share": 0.25}
    case = Case("work", {}, targets={"literal": 2}, limits=limits, cuda_rate=9, work=4, unit="it")
    measured = Measured(case, sides, 1, 0.0)
    assert measured.missed("cpu") == [
        "1.50x of 2.00x (literal)",
        "seconds 2, at most 1.5",
        "resident_mb 700, at most 600",
        "peak_share 0.5, at most 0.25",
    ]
    assert measured.missed("cuda") == ["2 it/s of 9"]
    assert measured.record()["limits"] == limits
    assert Measured(Case("work", {}, work=4), sides, 1, 0.0).missed("cuda") == []


def test_gpus_are_measured_with_cases_of_their_own():
    on_gpus, here = (set(names_of(["all"], device)) for device in ("cuda", "cpu"))
    assert on_gpus - here == {"extract_decoded", "evaluate_windows"}
    assert names_of(["extract_decoded"], "cpu") == ["extract_decoded"]
    with pytest.raises(ValueError, match="no path or case named 'pam'. Known: pamr"):
        names_of(["pam"], "cpu")


def test_everything_that_a_case_imports_late_is_there(root):
    files = sorted((root / "speed").glob("*.py"))
    imports = [
        (path.name, node.module, alias.name)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("talk2dino", "tests")
        for alias in node.names
    ]
    assert len(imports) > 30
    for file, module, name in imports:
        assert hasattr(import_module(module), name), f"{file} imports {name} from {module}"


def test_a_table_replaces_the_one_before(page, same):
    write_table(page, "cpu", {"same": same.record() | {"machine": "a machine"}})
    write_table(page, "cpu", {"same": same.record() | {"machine": "another machine"}})
    text = page.read_text()
    assert text.startswith("# Top\n") and text.endswith("\nrest\n")
    assert "old" not in text and "a machine" not in text
    assert "another machine" in text and "| two sides |" in text and "| 2x |" in text
    assert "| bare |" in text and "| 2.00 |" in text


def test_rows_of_several_machines_say_which(page, same):
    records = {name: same.record() | {"machine": f"machine {name}"} for name in "ab"}
    write_table(page, "cpu", records)
    lines = page.read_text().splitlines()
    assert {"1: machine a.", "2: machine b."} < set(lines)
    assert [line[-5:] for line in lines if line.startswith("| two sides |")][:2] == [
        "| 1 |",
        "| 2 |",
    ]


def test_the_page_has_the_tables_of_its_figures_and_is_short(root, tmp_path):
    page = shutil.copy(root / "docs" / "performance.md", tmp_path)
    figures = json.loads((root / "speed" / "figures.json").read_text())
    write_table(Path(page), "cpu", figures)
    text = Path(page).read_text()
    assert text == (root / "docs" / "performance.md").read_text()
    assert len(text.splitlines()) <= 150


def test_a_page_without_a_place_for_the_table_is_refused(page):
    with pytest.raises(ValueError, match="measured on cuda"):
        write_table(page, "cuda", {})


def test_the_command_keeps_the_other_cases_of_its_file(monkeypatch, tmp_path, page, same, capsys):
    monkeypatch.setattr("speed.run.CASES", {"same": same.case, "alone": same.case})
    monkeypatch.setattr("speed.run.PATHS", {"both": ("same", "alone")})
    monkeypatch.setattr("speed.run.measure", lambda *arguments: same)
    figures = tmp_path / "speed.json"
    main(["alone", "--json", str(figures)])
    main(["same", "--json", str(figures), "--page", str(page)])
    assert list(json.loads(figures.read_text())) == ["same", "alone"]
    assert page.read_text().count("| two sides |") >= 2
    shown = capsys.readouterr().out
    assert "(asked: 2 x)" in shown and "largest difference of the results: 1.5" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no path or case named 'nonsense'"),
        (["pamr", "--page", "page.md"], "name that file too"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_every_path_has_a_case_of_its_name():
    for path, names in PATHS.items():
        assert names[0] == path
    assert {name for names in PATHS.values() for name in names} <= set(CASES)
