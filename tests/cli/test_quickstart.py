"""The quickstart end to end on a tiny world, and what it refuses."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talk2dino.__main__ import main as project_main
from talk2dino.cli.extract import Extract
from talk2dino.cli.quickstart import Quickstart
from talk2dino.features.store import read_features
from talk2dino.toy.scene import CLASS_NAMES, class_palette

TINY = ["--images", "12", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished quickstart, and what it printed."""
    folder = tmp_path_factory.mktemp("project") / "quickstart"
    printed = run_quickstart(folder)
    return folder, printed


def run_quickstart(folder: Path, *flags: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert Quickstart.main(["--output", str(folder), *TINY, *flags]) == 0
    return output.getvalue()


def test_every_file_is_written(finished):
    folder, _ = finished
    for name in ("quickstart.png", "demo.png", "report.html", "weights/toy.pth"):
        assert (folder / name).is_file()
    for split, images in (("train", 12), ("val", 2)):
        features = read_features(folder / "features" / f"{split}.pth")
        assert features.num_images == images
        assert features.image_features["disentangled_self_attn"].shape == (images, 3, 192)
        assert features.caption_features["ann_feats"].shape == (len(features.annotations), 512)


def test_the_panel_and_the_overlay_are_pictures(finished):
    folder, _ = finished
    panel = Image.open(folder / "quickstart.png")
    assert panel.width > 4 * 224  # picture, ground truth, trained and untrained
    assert panel.height > 2 * 224
    legend = np.array(Image.open(folder / "demo.png"))[224:].reshape(-1, 3)
    drawn = class_palette()  # lemons are yellow there, too
    assert set(map(tuple, drawn.tolist())) <= set(map(tuple, legend.tolist()))


def test_the_commands_are_printed_as_one_would_type_them(finished):
    folder, printed = finished
    lines = [line for line in printed.splitlines() if line.startswith("$ ")]
    scripts = [line.split()[2] for line in lines]
    assert scripts == [
        "-m",  # talk2dino toy
        *["dino_extraction_v2.py"] * 2,
        *["text_features_extraction.py"] * 2,
        "train.py",
        *["-m"] * 4,  # talk2dino evaluate, evaluate, report, report --figure
        "demo.py",
    ]
    assert f"--ann_path {folder}/data/coco/captions_train.json" in lines[1]
    assert "--model toy --resize_dim 224 --crop_dim 224" in lines[1]
    assert f"--weights {folder}/weights/toy.pth" in lines[-1]


def test_a_table_shows_every_class_beside_an_untrained_model(finished):
    _, printed = finished
    table = printed[printed.index("untrained |\n") :]
    for name in (*CLASS_NAMES, "mIoU"):
        row = re.search(rf"^\| {name} +\| +(\S*) +\| +(\S*) +\|$", table, re.MULTILINE)
        assert row, name
        assert all(0 <= float(value) <= 100 for value in row.groups() if value)


def test_a_second_run_goes_on_from_what_is_there_and_gives_the_same_numbers(finished):
    folder, _ = finished
    files = [folder / "weights" / "toy.pth", folder / "features" / "train.pth"]
    before = [path.stat().st_mtime_ns for path in files]
    (folder / "demo.png").unlink()
    printed = run_quickstart(folder)
    assert printed.count("done already") == 4 and (folder / "demo.png").exists()
    assert "the drawn world is there already" in printed
    assert "is complete: nothing to resume" in printed
    assert [path.stat().st_mtime_ns for path in files] == before
    assert printed[printed.index("IoU in") : printed.index("every")] in finished[1]


def test_other_settings_need_overwrite(finished, capsys):
    folder, _ = finished
    assert Quickstart.main(["--output", str(folder), *TINY, "--seed", "5"]) == 2
    message = capsys.readouterr().err
    assert "with other settings (seed was 0, now 5)" in message
    assert "--overwrite" in message


def test_overwrite_starts_again(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "quickstart")
    monkeypatch.setattr("talk2dino.cli.quickstart._run_step", lambda *step: 1)
    assert Quickstart.main(["--output", str(folder), *TINY, "--overwrite"]) == 1
    assert [path.name for path in folder.iterdir()] == ["quickstart.json"]
    # A kill in the middle of the first step leaves what a run without --overwrite goes on with.
    assert Quickstart.main(["--output", str(folder), *TINY]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_wrong_arguments_are_named(flags, message, tmp_path, capsys):
    assert Quickstart.main(["--output", str(tmp_path / "q"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_drawn_world_alone_makes_no_quickstart_of_a_folder(flags, tmp_path, capsys):
    assert project_main(["toy", "--output", str(tmp_path / "data"), "--images", "12"]) == 0
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vitb.pth").write_text("precious")
    assert Quickstart.main(["--output", str(tmp_path), *TINY, *flags]) == 2
    assert "holds other files and no quickstart" in capsys.readouterr().err
    assert (tmp_path / "weights" / "vitb.pth").is_file()


def test_a_quickstart_of_an_earlier_version_is_started_again_when_asked(tmp_path, capsys):
    features = tmp_path / "features" / "train.pth"  # of images only, and never completed
    features.parent.mkdir()
    features.write_text("")
    settings = {"images": 12, "epochs": None, "seed": 0, "configs/toy.yaml": "sha256:0"}
    (tmp_path / "quickstart.json").write_text(json.dumps({"settings": settings}))
    assert Quickstart.main(["--output", str(tmp_path), *TINY]) == 2
    message = capsys.readouterr().err
    assert "holds a quickstart with other settings" in message and "--overwrite" in message
    run_quickstart(tmp_path, "--overwrite")


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_with_something_else_is_left_alone(flags, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert Quickstart.main(["--output", str(tmp_path), *flags]) == 2
    assert "holds other files and no quickstart" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert Quickstart.main(["--output", str(tmp_path / "file" / "q")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_it_is_a_command_of_the_project(capsys):
    assert project_main(["quickstart", "--help"]) == 0
    assert Quickstart.summary() in capsys.readouterr().out


def test_an_interrupted_step_interrupts_the_quickstart(tmp_path, monkeypatch, capsys):
    def interrupt(self, found):
        raise KeyboardInterrupt

    monkeypatch.setattr(Extract, "run", interrupt)
    assert Quickstart.main(["--output", str(tmp_path / "quickstart"), *TINY]) == 130
    assert capsys.readouterr().err.count("interrupted; ") == 1


def test_a_step_that_fails_says_why_once(tmp_path, monkeypatch, capsys):
    def fail(self):
        raise ValueError("no such pictures")

    monkeypatch.setattr(Extract, "check", fail)
    assert Quickstart.main(["--output", str(tmp_path / "quickstart"), *TINY]) == 1
    assert capsys.readouterr().err.count("error: no such pictures") == 1
