"""The page of the methods: its numbers are the code's, and its commands make its picture."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talk2dino.__main__ import main
from talk2dino.methods.base import PAPERS_TABLE, Published
from talk2dino.methods.registry import MODEL_NAMES, method_class
from talk2dino.toy.world import WorldConfig, write_world

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|\n").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `") and "--model" not in line
]


def test_every_model_has_a_row_with_the_numbers_that_tables_show():
    names = {name for name in MODEL_NAMES if "_toy" not in name and name != "toy"}
    assert {row[0] for row in ROWS} == names
    shown = {}
    for model, *words, source in ROWS:
        refinement, numbers = words[5], words[7:]
        known = method_class(model).PUBLISHED
        name = f"{model}_pamr" if refinement == "PAMR" else model
        published = known.get(name, Published({}))
        shown[name] = {
            key: float(number) for key, number in zip(PAPERS_TABLE, numbers, strict=True) if number
        }
        assert (shown[name], source) == (dict(published.miou), published.source)
    for kind in map(method_class, names):
        assert set(kind.PUBLISHED) <= set(shown)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The page's own commands on the picture that they name; returns the folder of results."""
    pytest.importorskip("mmseg")
    root = tmp_path_factory.mktemp("page")
    world = write_world(root / "data", WorldConfig(1, 1, 8))
    (world.voc / "ImageSets" / "Segmentation" / "val.txt").write_text("000007\n")
    lines = re.findall(r"^python -m talk2dino (.*quickstart/methods.*)$", PAGE, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["evaluate", "report"]
    for line in lines:
        words = line.replace("quickstart/", f"{root}/").replace("assets/", f"{root}/")
        assert main(shlex.split(words)) == 0
    return root


def test_one_call_gives_one_table_and_one_report_of_all_methods(followed, tmp_path):
    models = re.search(r"--model (\S*toy\S*)", PAGE)[1].split(",")
    (table,) = (followed / "methods").glob("table_*.csv")
    head, *rows = [line.split(",") for line in table.read_text().splitlines()]
    assert head[:3] == ["model", "benchmark", "mIoU"]
    assert [row[:2] for row in rows] == [[model, "toy"] for model in models]
    assert {method_class(model) for model in models} == set(map(method_class, MODEL_NAMES))
    page = tmp_path / "report.html"
    words = ["report", str(followed / "methods"), "--output", str(page), "--examples", "0"]
    assert main(words) == 0
    assert all(model in page.read_text() for model in models)


def test_the_picture_of_the_page_is_what_its_commands_draw(followed, root):
    drawn, shown = (
        np.asarray(Image.open(folder / "methods.png").convert("RGB"), dtype=int)
        for folder in (followed, root / "assets")
    )
    assert drawn.shape == shown.shape
    assert (np.abs(drawn - shown).max(axis=-1) > 8).mean() < 0.02  # edges may move by rounding
