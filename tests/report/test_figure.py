"""The comparison figure: chosen images and methods, side by side and as single files."""

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.data.labels import IGNORED
from talk2dino.cli.report import Report
from talk2dino.pictures.drawing import class_colours
from tests.report.conftest import write_run


@pytest.fixture
def compared(data, tmp_path):
    """Two models on VOC, one of them twice, and one on another benchmark of the same images."""
    folder = write_run(data, tmp_path / "results", wrong=0)
    write_run(data, folder, "voc_other_22222222", wrong=2, model="other")
    write_run(data, folder, "voc_other_33333333", model="other", bg_thresh=0.6)
    write_run(data, folder, "voc20_other_44444444", model="other", benchmark="voc20")
    return folder


def draw(folder, *flags):
    return Report.main([str(folder), "--figure", str(folder / "out.png"), *map(str, flags)])


def colours_of(picture):
    return {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}


def test_rows_of_image_truth_and_a_column_per_method(compared, capsys):
    flags = ["--methods", "toy,voc_other_22222222"]
    assert draw(compared, "--images", "4,images/2.png,3", *flags) == 0
    assert "out.png, and its 12 pictures in" in capsys.readouterr().out
    figure = Image.open(compared / "out.png").convert("RGB")
    assert figure.width > 4 * 160
    assert draw(compared, "--images", "4", *flags, "--overwrite") == 0
    one = Image.open(compared / "out.png").convert("RGB")
    background, cat, sofa, tree = (tuple(c) for c in class_colours(4).tolist())
    assert {cat, background} <= colours_of(one)
    assert not {sofa, tree} & colours_of(one)  # the legend has what occurs, and nothing else
    assert sofa in colours_of(figure)
    assert not (compared / "report.html").exists()


def test_every_picture_is_a_file_in_the_palette_of_the_data_set(data, tmp_path):
    palette = [[0, 0, 0], [1, 2, 3], [4, 5, 6], [7, 8, 9]]
    folder = write_run(data, tmp_path / "results", palette=palette)
    assert draw(folder, "--images", "voc/5") == 0
    single = {path.name: Image.open(path) for path in (folder / "out_files").iterdir()}
    assert set(single) == {f"voc_5_{name}.png" for name in ("image", "truth", "voc_toy_11111111")}
    assert single["voc_5_image.png"].mode == "RGB"
    truth = single["voc_5_truth.png"]
    assert truth.getpalette()[:12] == [value for colour in palette for value in colour]
    labels = np.asarray(Image.open(data / "labels" / "5.png"))
    assert np.array_equal(np.asarray(truth), labels) and labels[0, 0] == IGNORED


def test_images_of_one_name_in_two_folders_are_told_apart(data, tmp_path, capsys):
    folder = write_run(data, tmp_path / "results")
    path = folder / "voc_toy_11111111.npz"
    counts = dict(np.load(path))
    counts["images"] = np.array([*counts["images"][:-1], "images/b/5.png"])
    np.savez(path, **counts)
    predictions = folder / "predictions" / "voc_toy_11111111"
    for place, source in ((data / "images", "6"), (predictions, "6")):
        (place / "b").mkdir()
        (place / f"{source}.png").rename(place / "b" / "5.png")
    assert draw(folder, "--images", "5") == 1
    said = "there are several images '5': say voc/images/5.png or voc/images/b/5.png"
    assert said in capsys.readouterr().err
    assert draw(folder, "--images", "images/5.png,images/b/5.png") == 0
    for name, kept in (("images_5", "5.png"), ("images_b_5", "b/5.png")):
        shown = Image.open(folder / "out_files" / f"voc_{name}_voc_toy_11111111.png")
        assert np.array_equal(shown, Image.open(predictions / kept))


def test_rows_of_one_benchmark_share_a_legend(data, tmp_path):
    folder = write_run(data, tmp_path / "results")
    write_run(data, folder, "ade20k_toy_33333333", benchmark="ade20k", title="ADE20K")
    heights = []
    for images in ("voc/1,voc/2,ade20k/1", "voc/1,ade20k/1,voc/2"):
        assert draw(folder, "--images", images, "--overwrite") == 0
        heights.append(Image.open(folder / "out.png").height)
    assert heights[0] < heights[1]  # two legends, or three


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "9", "--methods", "toy"], "no image '9' among the results on voc, voc20"),
        (["--images", "1", "--methods", "toy,vitl"], "voc has it, but not of vitl. Known: other"),
        (["--images", "voc/1"], "has several results on voc/images/1.png: give --methods 1 of"),
        (
            ["--images", "1", "--methods", "other"],
            "'1': say voc/images/1.png or voc20/images",
        ),
        (["--images", "1", "--methods", "toy", "--data_root", "."], "no such image"),
    ],
)
def test_what_cannot_be_drawn_is_named(compared, capsys, flags, message):
    if "several results" in message:
        flags = [*flags, "--methods", "other"]
    assert draw(compared, *flags) == 1
    assert message in capsys.readouterr().err
    assert not (compared / "out.png").exists()


def test_predictions_that_are_not_there_or_do_not_fit_are_named(data, tmp_path, capsys):
    folder = write_run(data, tmp_path / "results", kept=False)
    assert draw(folder, "--images", "1") == 1
    assert "has no prediction of images/1.png" in capsys.readouterr().err
    write_run(data, folder)
    Image.new("L", (3, 3)).save(folder / "predictions" / "voc_toy_11111111" / "1.png")
    assert draw(folder, "--images", "1") == 1
    assert "the prediction of toy is (3, 3), and images/1.png (6, 8)" in capsys.readouterr().err


def test_wrong_flags_of_a_figure_are_refused(compared, capsys):
    assert Report.main([str(compared), "--figure", "out.pdf", "--images", "1"]) == 2
    assert draw(compared) == 2
    assert Report.main([str(compared), "--images", "1"]) == 2
    error = capsys.readouterr().err
    assert "must be named *.png" in error and "--images a,b,c" in error
    assert "--images and --methods belong to --figure" in error
    (compared / "out.png").touch()
    assert draw(compared, "--images", "1", "--methods", "toy") == 2
    assert "--overwrite" in capsys.readouterr().err
