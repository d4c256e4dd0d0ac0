"""`ablate`: every option beside the default, with paired intervals, time and memory."""

import json

import pytest

from talk2dino.cli import ablate
from talk2dino.cli.ablate import main
from talk2dino.toy.world import WorldConfig, write_world


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Two drawn worlds of two pictures with masks each."""
    folders = [tmp_path_factory.mktemp("worlds") / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        write_world(folder, WorldConfig(1, 1, 2, seed=seed))
    return folders


def ablation(worlds, output, *words):
    roots = map(str, worlds)
    argv = ["--data_root", *roots, "--weights", "seeded:0", "--device", "cpu", "--output"]
    return main([*argv, str(output), *words])


def test_every_option_is_a_line_beside_the_default_and_runs_only_once(worlds, tmp_path, capsys):
    options = ["--options", "smoothing", "short_side=112+stitch=hann"]
    assert ablation(worlds, tmp_path, *options) == 0
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert lines[0] == "toy, 2 images"
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in cells[2:]] == ["default", *options[1:]]
    assert cells[2][2:4] == ["-", "-"] and " to " in cells[3][3]
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["options"] for row in rows] == ["default", *options[1:]] * 2
    for row in rows:
        assert row["timing"]["shared_with"] == ["toy"] and row["timing"]["images"] == 2
    one, other = rows[0], rows[1]
    assert other["difference"] == pytest.approx(other["mIoU"] - one["mIoU"], abs=1e-3)
    assert other["interval"][0] <= other["difference"] <= other["interval"][1]
    first = [row["timing"] for row in rows]
    assert ablation(worlds, tmp_path, *options) == 0
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["timing"] for row in rows] == first
    assert lines == (tmp_path / "ablation.md").read_text().splitlines()


def test_results_without_a_time_have_a_dash():
    row = {"benchmark": "toy", "options": "default", "images": 1, "mIoU": 5.0, "timing": None}
    assert ablate._markdown([row], ["data"]).splitlines()[-1] == "| default | 5.00 | - | - | - |"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--options", "smoothin"], "unknown option of toy 'smoothin'. Known: pamr, smoothing"),
        (["--options", "superpixels"], "It is an option of freeda_vitl"),
        (["--options", "weights=a.pth"], "unknown option of toy 'weights'"),
        (["--options", "short_side=wide"], "--options short_side=wide: argument --short_side"),
        (["--options", "window=96+stride=100"], "a stride of 100 leaves gaps"),
        (["--model", "nothing"], "unknown model 'nothing'"),
        (["--weights", "a", "b", "c"], "--weights names 3 files for 2 folders"),
        (["--benchmarks", "moon"], "moon"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(
    words, message, worlds, tmp_path, capsys
):
    assert ablation(worlds, tmp_path, *words) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out
    assert not list(tmp_path.rglob("*.json"))
