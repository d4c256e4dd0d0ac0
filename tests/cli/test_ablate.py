"""`ablate`: every option beside the default, with paired intervals, time and memory."""

import json
from pathlib import Path

import pytest
import torch

from talk2dino.cli.ablate import Ablate, _markdown
from talk2dino.features.store import FeatureFile, write_features
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
    return Ablate.main([*argv, str(output), *words])


def test_every_option_is_a_line_beside_the_default_and_runs_only_once(worlds, tmp_path, capsys):
    options = ["--options", "smoothing", "short_side=112+stitch=hann"]
    assert ablation(worlds, tmp_path, *options) == 0
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert lines[0] == "toy, 2 images"
    rows = [line.strip("| ").split("|") for line in lines if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells[2:]] == ["default", *options[1:]]
    assert cells[2][2:4] == ["", ""] and " to " in cells[3][3]
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


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Eight pairs as wide as the toy's."""
    random = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("features") / "train.pth"
    heads = torch.randn(8, 3, 192, generator=random)
    images = {"disentangled_self_attn": heads, "avg_self_attn_out": heads.mean(dim=1)}
    captions = {"ann_feats": torch.randn(8, 512, generator=random)}
    records = [{"id": n, "file_name": "a.jpg"} for n in range(8)]
    pairs = [{"id": n, "image_id": n, "caption": "a"} for n in range(8)]
    write_features(FeatureFile(records, pairs, images, captions), path)
    return path


def test_keys_of_a_recipe_are_trained_first_once_each_beside_the_default(
    worlds, features, tmp_path, capsys
):
    argv = ["--data_root", *map(str, worlds), "--train_dataset", str(features), "--device", "cpu"]
    argv += ["--val_dataset", str(features), "--output", str(tmp_path), "--options"]
    argv += ["alignment_strategy=soft_routing", "alignment_strategy=soft_routing+smoothing"]
    assert Ablate.main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.count("training for ") == 4
    places = [tmp_path / "trained", tmp_path / "2" / "trained"]
    for seed, place in enumerate(places):
        for name, strategy in (
            ("default", "max_score"),
            ("alignment_strategy-soft_routing", "soft_routing"),
        ):
            settings = json.loads((place / f"{name}.json").read_text())["settings"]
            assert (settings["seed"], settings["model.alignment_strategy"]) == (seed, strategy)
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    used = [json.loads(Path(row["file"]).read_text())["settings"]["segmenter"] for row in rows]
    names = [entry["projection_weights"] for entry in used]
    assert len(set(names)) == 4 and names[1] == names[2] and names[4] == names[5]
    assert Ablate.main(argv) == 0
    assert capsys.readouterr().out.count("nothing to resume") == 4


def test_results_without_a_time_have_empty_cells():
    row = {"benchmark": "toy", "options": "default", "images": 1, "mIoU": 5.0, "timing": None}
    line = _markdown([row], ["data"]).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")] == ["", "default", "5.00", "", "", "", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--options", "alignment_strategy=soft"], "unknown alignment_strategy 'soft'"),
        (["--options", "lr=0"], "lr-0.yaml: lr must be positive"),
        (["--options", "margin=0.2"], "margin has no effect with ltype: infonce"),
        (["--train_dataset", "no.pth"], "no.pth"),
        (["--model", "ovsegmentor_toy", "--options", "lr=1"], "ovsegmentor_toy is no Talk2DINO"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    words, message, worlds, features, tmp_path, capsys
):
    argv = ["--data_root", str(worlds[0]), "--train_dataset", str(features), "--output"]
    assert Ablate.main([*argv, str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--options", "smoothin"], "unknown flag --smoothin. Did you mean --smoothing?"),
        (["--options", "superpixels"], "It is an option of freeda_vitl"),
        (
            ["--options", "short_side=wide"],
            "--options short_side=wide: error: argument --short_side",
        ),
        (["--options", "window=96+stride=100"], "a stride of 100 leaves gaps"),
        (["--model", "nothing"], "unknown model 'nothing'"),
        (["--weights", "a", "b", "c"], "--weights names 3 files for 2 folders"),
        (["--benchmarks", "moon"], "moon"),
        (["--options", "lr=0.1"], "--options lr=0.1: lr needs a training: add --train_dataset"),
        (["--train_dataset", "f.pth"], "--train_dataset makes the weights: leave --weights out"),
        (["--train_dataset", "a", "b", "c"], "--train_dataset names 3 files for 2 folders"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(
    words, message, worlds, tmp_path, capsys
):
    assert ablation(worlds, tmp_path, *words) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out
    assert not list(tmp_path.rglob("*.json"))
