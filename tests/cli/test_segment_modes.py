"""The demo with models of both methods, class lists, and a picture per mode."""

import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.cli.segment import MODES, Segment
from talk2dino.cli.segment_job import SegmentJob
from talk2dino.inference import picture_scores
from talk2dino.pictures.drawing import blend, class_colours, group_colours, write_names
from talk2dino.pictures.vocabularies import find_vocabulary
from talk2dino.segmenter import ClassQuery, with_background
from talk2dino.sizes import Protocol

OVS = ["--model", "ovsegmentor_toy", "--weights", "seeded:0", "--device", "cpu"]
TOY = ["--model", "toy", "--weights", "seeded:0", "--device", "cpu"]
SIZE_HW = (72, 96)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two pictures in `in`."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    picture("in/a.png")
    picture("in/dog and cat.JPG")
    return tmp_path


def picture(path, size_hw=SIZE_HW):
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def segment(*flags, model=OVS, vocab=("cat", "dog"), out="out"):
    """Run the command on the folder `in`."""
    words = [*model, "--vocab", *vocab, "--image_folder", "in", "--output_folder", out, *flags]
    return Segment.main(words)


def refused(capsys, *flags, **settings):
    """Run the command, which must fail before a model is loaded; returns the message."""
    assert segment(*flags, **settings) == 2
    captured = capsys.readouterr()
    assert "loading" not in captured.out
    assert not os.path.exists("out")
    return captured.err


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def files_below(place):
    return sorted(str(path.relative_to(place)) for path in Path(place).rglob("*") if path.is_file())


def test_all_eight_modes_are_named_after_their_pictures(folder, capsys):
    before = files_below("in")
    vocab = ["voc"]
    assert segment("--vis", *MODES, vocab=vocab) == 0
    assert "untrained" in capsys.readouterr().out
    assert files_below("in") == before
    ends = {"pred": ".png", "mask": ".png", "all_groups": "_layer0.jpg"}
    expected = [f"{m}/{name}{ends.get(m, '.jpg')}" for m in MODES for name in ("a", "dog and cat")]
    assert files_below("out") == sorted(expected)
    labels = read("out/mask/a.png")
    assert labels.shape == SIZE_HW and labels.dtype == np.uint8 and labels.max() <= 20
    with Image.open("out/pred/a.png") as pred:
        assert np.array_equal(np.asarray(pred), labels)
        record = json.loads(pred.text["talk2dino"])
        rows = np.array(pred.getpalette()).reshape(-1, 3)[:21]
    assert rows[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert record["background"] == 0.95
    assert record["classes"][:2] == ["background", "aeroplane"]
    assert {"table", "plant", "monitor"} < set(record["classes"])  # the method's own names
    assert read("out/first_group/a.jpg").shape == (*SIZE_HW, 3)
    assert np.array_equal(read("out/first_group/a.jpg"), read("out/final_group/a.jpg"))


@pytest.mark.parametrize(("vocab", "count"), [("coco", 80), ("ade", 150)])
def test_class_lists_are_known_and_have_a_background_too(folder, vocab, count):
    assert segment("--vis", "mask", vocab=[vocab]) == 0
    with Image.open("out/mask/a.png") as mask:
        record = json.loads(mask.text["talk2dino"])
    assert len(record["classes"]) == 1 + count and record["classes"][0] == "background"


def test_talk2dino_draws_the_modes_that_apply(folder):
    modes = ["input", "pred", "input_pred", "input_pred_label", "mask"]
    flags = ["--no_pamr", "--with_background", "--bg_thresh", "0.5"]
    assert segment("--vis", *modes, *flags, model=TOY) == 0
    assert len(files_below("out")) == 10
    assert set(np.unique(read("out/mask/a.png"))) <= {0, 1, 2}


@pytest.mark.parametrize("mode", ["all_groups", "first_group", "final_group"])
def test_group_modes_of_a_method_without_groups_are_refused(folder, capsys, mode):
    message = refused(capsys, "--vis", "input", mode, model=TOY)
    assert f"--vis {mode}: toy has no groups" in message
    assert "Here: input, pred, input_pred, input_pred_label, mask." in message


def test_names_with_commas_quotes_and_other_scripts_are_taken_as_they_are(folder):
    names = ["salt, pepper", 'l\'été "indien"', "狗", "{}", "a_b"]
    assert segment("--vis", "mask", "input_pred_label", vocab=names) == 0
    with Image.open("out/mask/a.png") as mask:
        assert json.loads(mask.text["talk2dino"])["classes"] == ["background", *names]


def test_the_published_arguments_are_accepted(folder, capsys):
    words = ["--cfg", "./configs/test_voc12.yml", "--resume", "seeded:3", "--vocab", "background"]
    words += ["cat", "dog", "--image_folder", "in", "--output_folder", "out", "--vis", "mask"]
    words += ["--opts", "test_cfg.bg_thresh=0.25", "--local_rank", "0"]
    assert Segment.main([*words, "--model", "ovsegmentor_toy", "--device", "cpu"]) == 0
    assert "--cfg is not read" in capsys.readouterr().out
    with Image.open("out/mask/a.png") as mask:
        record = json.loads(mask.text["talk2dino"])
    assert record["classes"] == ["background", "cat", "dog"]
    assert (record["background"], record["segmenter"]["weights"]) == (0.25, "seeded:3")


def test_resume_alone_means_the_published_model(folder, capsys):
    words = ["--resume", "absent.pth", "--vocab", "voc", "--image_folder", "in"]
    assert Segment.main([*words, "--output_folder", "out", "--vis", "pred"]) == 2
    assert "absent.pth: no OVSegmentor weights there" in capsys.readouterr().err


def test_a_picture_that_fails_does_not_stop_the_others(folder, capsys):
    Path("in/b.png").write_bytes(Path("in/a.png").read_bytes()[:500])
    assert segment("--vis", "pred") == 1
    assert files_below("out") == ["pred/a.png", "pred/dog and cat.png"]
    assert "b.png is truncated" in capsys.readouterr().err


def test_pictures_of_one_stem_keep_their_suffix(folder):
    shutil.copy("in/a.png", "in/a.webp")
    assert segment("--vis", "mask") == 0
    assert files_below("out") == ["mask/a.png.png", "mask/a.webp.png", "mask/dog and cat.png"]


def test_existing_files_are_kept_unless_overwrite_is_given(folder, capsys):
    assert segment("--vis", "all_groups", "pred") == 0
    assert segment("--vis", "all_groups") == 2
    said = capsys.readouterr().err
    assert "out/all_groups/a_layer0.jpg exists already" in said
    assert segment("--vis", "all_groups", "--overwrite") == 0


def test_without_vis_names_are_written_into_the_pictures(folder):
    assert segment("--no_background") == 0
    assert files_below("out") == ["input_pred_label/a.jpg", "input_pred_label/dog and cat.jpg"]


def test_an_overlay_with_legend_works_for_the_other_method_too(folder):
    words = [*OVS, "--input", "in/a.png", "--output", "o.png", "--textual_categories", "cat,dog"]
    assert Segment.main([*words, "--save_mask", "m.png"]) == 0
    assert segment("--vis", "mask") == 0
    assert np.array_equal(read("m.png"), read("out/mask/a.png"))
    with Image.open("m.png") as mask:
        record = json.loads(mask.text["talk2dino"])
    assert record["classes"] == ["background", "cat", "dog"]
    assert record["segmenter"] == {
        **{"model": "ovsegmentor_toy", "weights": "seeded:0"},
        "template": "simple",
    }
    assert shlex.split(record["command"])[2:10] == [*OVS, "--input", "in/a.png"]


def test_a_named_talk2dino_is_its_recipe(folder):
    words = ["--input", "in/a.png", "--output", "o.png", "--vocab", "cat", "dog", "--no_pamr"]
    assert Segment.main([*TOY, *words]) == 0
    with Image.open("o.png") as overlay:
        record = json.loads(overlay.text["talk2dino"])
    assert record["classes"] == ["cat", "dog"]
    assert record["segmenter"]["vision_model"] == "toy"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vis", "input_seg"], "unknown vis mode 'input_seg'. Known: input, pred, input_pred,"),
        (["--vis", "last_group"], "first_group, final_group"),
        (["--output_folder", "in/out"], "lies in in, where the pictures are"),
        (["--output_folder", "in"], "nothing is written there"),
        (["--image_folder", "none"], "--input none: there is no such file or folder"),
        (["--textual_categories", "cat"], "--textual_categories or with --vocab, one of them"),
        (["--pamr"], "--pamr means nothing for ovsegmentor_toy"),
        (["--vision_weights", "x"], "--vision_weights means nothing for ovsegmentor_toy"),
        (["--clean_background"], "--clean_background means nothing for ovsegmentor_toy"),
        (["--model", "ovsegmentor_vitl"], "unknown model 'ovsegmentor_vitl'. Known: vitb"),
        (["--resume", "seeded:1"], "--resume and --weights are the same"),
        (["--opts", "model.type=x"], "--opts model.type=x: unknown. Known: evaluate.seg.template"),
        (["--opts", "test_cfg.bg_thresh=low"], "'low' is no number"),
        (["--no_background", "--bg_thresh", "0.5"], "no effect with --no_background"),
        (["--no_background", "--with_background"], "contradict each other"),
        (["--bg_thresh", "1.5"], "bg_thresh must lie in [0, 1]"),
        (["--weights", "absent"], "absent: no OVSegmentor weights there"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(folder, capsys, flags, message):
    assert message in refused(capsys, *flags)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (["coc"], "unknown vocabulary 'coc'. Known: voc, coco, ade, drawn_world, or class names"),
        (["ade20k"], "unknown vocabulary 'ade20k'"),
        (["cat", " "], "class name number 2 is empty"),
        (["cat", "Cat"], "'Cat' is there twice"),
        (["cat", "background"], "'background' is added by itself"),
        (["background"], "no class names given"),
        ([f"class {number}" for number in range(256)], "at most 256 classes, there are 257"),
    ],
)
def test_vocabularies_that_make_no_sense_are_refused(folder, capsys, vocab, message):
    assert message in refused(capsys, "--vis", "mask", vocab=vocab)


def test_a_folder_without_pictures_is_named(folder, capsys):
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    message = refused(capsys, "--image_folder", "empty")
    assert "--input empty holds no image files (.avif, .bmp" in message


def test_output_or_its_folder_is_needed(folder, capsys):
    words = [*OVS, "--vocab", "cat", "--input", "in"]
    assert Segment.main(words) == 2
    assert "--output is missing" in capsys.readouterr().err
    assert Segment.main([*words, "--vis", "mask"]) == 2
    assert "--vis writes folders: give --output_folder" in capsys.readouterr().err


class Stages:
    """Two stages of groups: left and right, then upper, lower and never."""

    def window_scores(self, windows, query):
        self.window = windows
        left = torch.zeros(len(windows), 2, *windows.shape[-2:])
        left[:, 0, :, : windows.shape[-1] // 2] = 1
        left[:, 1, :, windows.shape[-1] // 2 :] = 1
        return with_background(left, query, dim=1)

    def embed_classes(self, names):
        return torch.eye(2)

    def group_maps(self, windows):
        maps = torch.zeros(1, 3, *windows.shape[-2:])
        half = windows.shape[-2] // 2
        maps[:, 0, :half] = 1
        maps[:, 1, half:] = 1
        return [self.window_scores(windows, ClassQuery.of_rows(torch.eye(2))), maps]


def test_every_stage_of_groups_is_drawn_in_colours_of_its_own(tmp_path):
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    rules = SimpleNamespace(demo=SimpleNamespace(protocol=Protocol(), refines=()))
    job = SegmentJob(Segment(), rules, "ab", class_colours(2), torch.device("cpu"))
    job.segmenter, job.query = Stages(), ClassQuery.of_rows(torch.eye(2))
    outputs = {mode: tmp_path / mode / "a.png" for mode in MODES if "group" in mode}
    outputs["all_groups"] = tmp_path / "all_groups" / "a_layer0.png"
    job.segment(tmp_path / "a.png", outputs)
    stages = [read(tmp_path / "all_groups" / f"a_layer{index}.png") for index in (0, 1)]
    assert np.array_equal(read(tmp_path / "first_group" / "a.png"), stages[0])
    assert np.array_equal(read(tmp_path / "final_group" / "a.png"), stages[1])
    half = group_colours(5) // 2
    assert stages[0][30, [5, 75]].tolist() == half[:2].tolist()
    assert stages[1][[5, 55], 40].tolist() == half[2:4].tolist()


def test_pictures_are_scored_at_the_benchmarks_size_and_back(tmp_path):
    segmenter = Stages()
    query = ClassQuery.of_rows(torch.eye(2), 0.5)
    scores = picture_scores(segmenter, torch.zeros(3, 60, 80), query)
    assert scores.shape == (3, 60, 80)
    assert segmenter.window.shape[-2:] == (448, 448)


def test_half_the_colour_is_blended_and_the_background_is_left():
    image = np.full((1, 2, 3), 200, np.uint8)
    painted = np.full((1, 2, 3), 100, np.uint8)
    assert blend(image, painted)[0, :, 0].tolist() == [150, 150]
    assert blend(image, painted, np.array([[True, False]]))[0, :, 0].tolist() == [200, 150]


def test_names_stand_at_the_centre_of_their_class():
    labels = np.zeros((60, 200), np.uint8)
    labels[10:20, 100:140] = 1
    drawn = np.asarray(write_names(Image.new("RGB", (200, 60), "white"), labels, ["bg", "cat"], 0))
    rows, columns = np.nonzero((drawn != 255).any(axis=-1))
    assert (rows.min(), columns.min()) >= (14, 119) and rows.max() < 60
    assert [255, 69, 0] in drawn.reshape(-1, 3).tolist()
    assert [127, 127, 127] in drawn.reshape(-1, 3).tolist()  # half transparent black on white
    plain = write_names(Image.new("RGB", (200, 60)), labels * 0, ["bg"], 0)
    assert not np.asarray(plain).any()


def test_class_lists_and_colours_are_those_of_the_benchmarks():
    pytest.importorskip("mmseg")
    from talk2dino.benchmarks.datasets import load_openmmlab

    datasets = load_openmmlab()[0]
    stuff, ade, voc = (
        getattr(datasets, f"{name}Dataset") for name in ("COCOStuff", "ADE20K", "PascalVOC")
    )
    for word, names, palette in (
        ("voc", voc.CLASSES[1:], voc.PALETTE[1:]),
        ("coco", stuff.CLASSES[:80], stuff.PALETTE[:80]),
        ("ade", ade.CLASSES, ade.PALETTE),
    ):
        found = find_vocabulary([word])
        assert list(found.names) == list(names)
        assert found.colours.tolist() == [list(colour) for colour in palette]
    cityscapes = datasets.CityscapesDataset.PALETTE
    rows = [*cityscapes, *voc.PALETTE[1:], *ade.PALETTE[:25], *voc.PALETTE[1:], *ade.PALETTE[25:]]
    assert group_colours(210).tolist() == [list(row[::-1]) for row in [*rows, rows[0]]]


def test_more_names_than_colours_get_other_ones():
    found = find_vocabulary([f"class {number}" for number in range(151)])
    assert len({tuple(colour) for colour in found.colours.tolist()}) == 151
