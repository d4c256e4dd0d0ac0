"""The segment command as a user runs it, with the toy models."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.cli.segment import Segment
from talk2dino.methods.talk2dino.projection import build_projection
from talk2dino.methods.talk2dino.recipe import load_recipe
from talk2dino.pictures.drawing import class_colours

TOY = """
model: {dino_embed_dim: 192, hidden_layer: true, num_attn_head: 3}
features: {vision_model: toy, text_model: toy}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a recipe of the toy models and one photograph."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    picture("photo.png")
    return tmp_path


def picture(path, size=(60, 40), colour=None):
    if colour is None:
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    else:
        Image.new("RGB", size, colour).save(path)


def segment(*changes, categories="cat,polar_bear", source=("photo.png",), output="out.png"):
    """Run the command on the toy models."""
    flags = ["--input", *source, "--output", output, "--textual_categories", categories]
    return Segment.main([*flags, "--config", "toy.yaml", "--weights", "seeded:0", *changes])


def refused(capsys, *changes, code=2, **settings):
    """Run the command, which must fail before a model is loaded; returns the message."""
    assert segment(*changes, **settings) == code
    captured = capsys.readouterr()
    assert "loading" not in captured.out and "Traceback" not in captured.err
    return captured.err


def test_an_overlay_a_mask_and_scores_are_written_and_agree(folder, capsys):
    assert segment("--with_background", "--bg_thresh", "0.5", "--save_mask", "--save_scores") == 0
    said = capsys.readouterr().out
    assert "untrained" in said and "photo.png -> out.png" in said
    with Image.open("out.png") as overlay, Image.open("out_mask.png") as mask:
        assert mask.mode == "P" and mask.size == (60, 40) and overlay.width >= 60
        record = json.loads(mask.text["talk2dino"])
        labels = np.asarray(mask)
        legend = np.asarray(overlay.convert("RGB"))[40:].reshape(-1, 3).tolist()
    assert record["classes"] == ["background", "cat", "polar bear"]
    assert record["background"] == 0.5 and record["segmenter"]["clean_background"] is True
    assert all(colour in legend for colour in class_colours(3, background=True).tolist())
    with np.load("out_scores.npz") as saved:
        assert saved["scores"].shape == (3, 40, 60) and saved["scores"].dtype == np.float32
        assert saved["classes"].tolist() == ["background", "cat", "polar bear"]
        assert np.array_equal(saved["scores"].argmax(axis=0), labels)
        assert json.loads(str(saved["settings"]))["image"] == "photo.png"
    assert sorted(p.name for p in folder.iterdir()) == [
        "out.png",
        "out_mask.png",
        "out_scores.npz",
        "photo.png",
        "toy.yaml",
    ]


def test_that_a_single_class_is_everywhere_is_said(folder, capsys):
    assert segment(categories="cat dog") == 0
    assert "note: 'cat dog' is the only class; commas separate names" in capsys.readouterr().out


def test_a_folder_with_one_damaged_picture_writes_the_others_and_exits_with_1(folder, capsys):
    (folder / "in").mkdir()
    for name in ("a.png", "b.jpg", "c.png"):
        picture(folder / "in" / name)
    data = (folder / "in" / "c.png").read_bytes()
    (folder / "in" / "c.png").write_bytes(data[: len(data) // 2])
    (folder / "in" / "empty.png").touch()
    (folder / "in" / "notes.txt").write_text("no picture")
    assert segment("--no_pamr", "--save_mask", "masks", source=["in"], output="out/new") == 1
    assert sorted(p.name for p in (folder / "out" / "new").iterdir()) == ["a.png", "b.png"]
    assert sorted(p.name for p in (folder / "masks").iterdir()) == ["a_mask.png", "b_mask.png"]
    errors = capsys.readouterr().err
    assert "c.png is truncated" in errors and "empty.png is empty (0 bytes)" in errors
    assert "2 of 4 pictures failed" in errors


def test_max_side_scores_small_and_writes_at_full_size(folder):
    assert segment("--max_side", "20", "--save_scores", "s.npz", output="out.jpg") == 0
    with np.load("s.npz") as saved:
        assert saved["scores"].shape == (2, 40, 60)
    with Image.open("out.jpg") as overlay:
        assert overlay.format == "JPEG"


def named(text):
    """The classes that a command line names."""
    words = ["--input", "x.png", "--model", "toy", "--textual_categories", text]
    _, vocabulary, _ = Segment.parse(words).read_model()
    return vocabulary.names


def test_underscores_are_spaces_and_names_are_trimmed():
    assert named("cat,polar_bear, big  dog ") == ("cat", "polar bear", "big dog")
    assert named("background") == ("background",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class names given"),
        (" , _", "no class names given"),
        ("cat,,dog", "number 2 is empty"),
        ("cat,dog,", "number 3 is empty"),
        ("polar_bear,cat,polar bear", "name 'polar bear' is there twice"),
        ("Cat,cat", "name 'cat' is there twice"),
    ],
)
def test_categories_that_make_no_sense_are_refused(folder, capsys, text, message):
    assert message in refused(capsys, categories=text)


def test_a_class_called_background_beside_the_background_is_refused(folder, capsys):
    message = refused(capsys, "--with_background", categories="cat,background")
    assert "'background' is added by itself" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bg_thresh", "0.5"], "--bg_thresh has no effect without --with_background"),
        (["--with_background", "--bg_thresh", "1.5"], "bg_thresh must lie in [0, 1]"),
        (["--with_background", "--bg_thresh", "nan"], "bg_thresh must lie in [0, 1]"),
        (["--opacity", "-1"], "opacity must lie in [0, 1]"),
        (["--max_side", "0"], "max_side must be at least 1"),
        (["--protocol", "unifed"], "unknown protocol 'unifed'. Known: native, unified"),
        (["--protocol", "unified", "--with_background"], "the unified protocol has none"),
        (["--template", "subzet"], "unknown template 'subzet'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--weights", "nowhere.pth"], "there are no projection weights at nowhere.pth"),
        (["--weights", "seeded:x"], "an integer >= 0 must follow 'seeded:'"),
        (["--vision_weights", "nowhere.pth"], "no vision weights at 'nowhere.pth'"),
        (["--text_weights", "nowhere.pt"], "no text weights at 'nowhere.pt'"),
        (["--save_mask", "mask.jpg"], "--save_mask mask.jpg needs one of the suffixes .png"),
        (["--save_scores", "scores.pt"], "--save_scores scores.pt needs one of the suffixes .npz"),
        (["--save_mask", "out.png"], "out.png would be written more than once"),
        (["--save_mask", "photo.png", "--overwrite"], "photo.png is an input"),
        (["--clean_background", "--no_clean_background"], "contradict each other"),
        (["--model", "toy", "--config=toy.yaml"], "--config and --model are one flag"),
        (["--image_folder", "."], "--image_folder and --input are one flag"),
        (["--with_back"], "unrecognized arguments: --with_back"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(folder, capsys, flags, message):
    assert message in refused(capsys, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none_is_refused(folder, capsys):
    assert "PyTorch sees no cuda device here" in refused(capsys, "--device", "cuda")


def test_unknown_models_of_a_recipe_are_refused(folder, capsys):
    (folder / "toy.yaml").write_text(TOY.replace("vision_model: toy", "vision_model: dinov9"))
    assert "unknown vision model 'dinov9'" in refused(capsys)
    (folder / "toy.yaml").write_text(TOY.replace("vision_model", "vison_model"))
    assert "unknown key 'vison_model'. Did you mean 'vision_model'?" in refused(capsys)


def test_missing_and_unreadable_pictures_are_refused(folder, capsys):
    message = refused(capsys, source=["none.png"])
    assert "--input none.png: there is no such file or folder" in message
    (folder / "text.png").write_text("no picture")
    assert "text.png is not an image" in refused(capsys, source=["text.png"])
    (folder / "empty").mkdir()
    assert "--input empty holds no image files" in refused(capsys, source=["empty"], output="o")


def test_a_single_truncated_picture_is_found_before_anything_is_loaded(folder, capsys):
    data = (folder / "photo.png").read_bytes()
    (folder / "photo.png").write_bytes(data[: len(data) // 2])
    assert "photo.png is truncated or damaged" in refused(capsys)


def test_a_picture_too_large_for_the_memory_is_refused(folder, capsys):
    Image.new("1", (13_000, 13_000)).save("big.png")
    many = ",".join(f"class{i}" for i in range(3000))
    message = refused(capsys, categories=many, source=["big.png"])
    assert "big.png: 13000 x 13000 pixels and 3000 classes need about" in message
    assert "--max_side 2048" in message


def test_more_classes_than_a_mask_holds_are_refused(folder, capsys):
    many = ",".join(f"class{i}" for i in range(257))
    assert "at most 256 classes, there are 257" in refused(capsys, "--save_mask", categories=many)


def test_existing_output_is_kept_unless_overwrite_is_given(folder, capsys):
    (folder / "out.png").write_text("precious")
    message = refused(capsys)
    assert "out.png exists already" in message and "--overwrite" in message
    assert (folder / "out.png").read_text() == "precious"
    assert segment("--overwrite", "--no_pamr") == 0
    with Image.open("out.png") as overlay:
        assert overlay.format == "PNG"


def test_an_output_without_suffix_becomes_a_png(folder):
    assert segment("--no_pamr", output="custom_output_seg") == 0
    assert (folder / "custom_output_seg.png").is_file()


def test_output_that_can_never_be_written_is_refused(folder, capsys):
    assert "needs one of the suffixes .png" in refused(capsys, output="out.gif")
    assert "photo.png is a file, so the folder" in refused(capsys, output="photo.png/out.png")
    assert "photo.png is an input" in refused(capsys, "--overwrite", output="photo.png")


def test_defaults_follow_the_published_demo(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vitb_mlp_infonce.pth").touch()
    flags = ["--input", "a.png", "--output", "b.png", "--textual_categories", "cat"]
    plain = Segment.parse(flags).read_model()[0].config
    assert plain.vision_model == "dinov2_vitb14_reg" and plain.text_model == "ViT-B/16"
    assert plain.pamr and not plain.clean_background and plain.template == "subset"
    assert plain.projection_weights.endswith("weights/vitb_mlp_infonce.pth")
    flags += ["--with_background", "--no_pamr"]
    changed = Segment.parse(flags).read_model()[0].config
    assert changed.clean_background and not changed.pamr


def test_other_models_than_those_of_the_training_are_noted(folder, capsys):
    model = build_projection(load_recipe("toy.yaml").model)
    torch.save(model.state_dict(), "mine.pth")
    made_with = {
        "vision": {"model": "toy", "weights": "seeded:3"},
        "text": {"model": "toy", "weights": "seeded:0"},
    }
    (folder / "mine.json").write_text(json.dumps({"trained_on": made_with}))
    assert segment("--weights", "mine.pth", "--no_pamr") == 0
    said = capsys.readouterr().out
    assert "trained, vision weights is seeded:3, not seeded:0 as now" in said
    assert "text" not in said.split("note:", 1)[1].splitlines()[0]
    assert segment("--weights", "mine.pth", "--vision_weights", "seeded:3", "--overwrite") == 0
    assert "note:" not in capsys.readouterr().out


COMMAS = ["cup\uff0ctable", "cup\u3001table", "cup\u060ctable", "cup,table"]


@pytest.mark.parametrize("text", COMMAS)
def test_commas_of_other_keyboards_separate_names(text):
    assert named(text) == ("cup", "table")


def test_a_picture_whose_name_is_not_utf_8_is_segmented_with_the_others(folder, capsys):
    (folder / "in").mkdir()
    picture("in/plain.png")
    picture("in/caf\udce9.png")  # the byte E9, as Latin-1 has it
    assert segment("--save_mask", "--save_scores", source=["in"], output="out") == 0
    assert "caf\\udce9.png" in capsys.readouterr().out
    assert len(list((folder / "out").iterdir())) == 6
    with Image.open("out/caf\udce9.png") as overlay:
        assert json.loads(overlay.text["talk2dino"])["image"] == "in/caf\udce9.png"
    with np.load("out/caf\udce9_scores.npz") as scores:
        assert json.loads(str(scores["settings"]))["image"] == "in/caf\udce9.png"


def test_any_output_is_printed_by_a_strict_terminal(folder, monkeypatch):
    picture("caf\udce9.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert segment(source=["caf\udce9.png"]) == 0
    terminal.flush()
    assert b"caf\\udce9.png" in terminal.buffer.getvalue()


def test_pictures_with_other_suffixes_are_read_or_named(folder, caplog):
    (folder / "in").mkdir()
    for name in ("a.jfif", "b.bak"):
        Image.new("RGB", (20, 20)).save(f"in/{name}", format="JPEG")
    assert segment(source=["in"], output="out") == 0
    assert [path.name for path in (folder / "out").iterdir()] == ["a.png"]
    assert caplog.text.count("'b.bak'") == 1


def with_words(folder, *changes):
    """Run the command on two pictures with a file of words."""
    (folder / "words.txt").write_text("background; sky\ncat; kitten\npolar bear\n")
    picture("other.png")
    flags = ["--input", "photo.png", "other.png", "--output", "out", "--vocab", "words.txt"]
    return Segment.main([*flags, "--config", "toy.yaml", "--weights", "seeded:0", *changes])


def test_classes_of_a_file_are_looked_for_by_all_their_words(folder):
    flags = ["--with_background", "--bg_thresh", "0.4", "--save_scores", "--no_pamr"]
    assert with_words(folder, *flags) == 0
    best = np.load("out/photo_scores.npz")
    assert best["classes"].tolist() == ["background", "cat", "polar bear"]
    assert with_words(folder, *flags, "--overwrite", "--pooling", "lse") == 0
    soft = np.load("out/photo_scores.npz")["scores"]
    assert (soft <= best["scores"] + 1e-6).all() and not np.array_equal(soft, best["scores"])
    np.testing.assert_allclose(soft[2], best["scores"][2], atol=1e-6)  # the class of one word


@pytest.mark.parametrize("kind", ["coco", "labelstudio", "masks"])
def test_all_pictures_are_exported_together(folder, capsys, kind):
    assert with_words(folder, "--export", kind) == 0
    assert f"exported: out/{'masks' if kind == 'masks' else f'{kind}.json'}" in (
        capsys.readouterr().out.replace(str(folder) + "/", "")
    )
    if kind == "masks":
        assert {path.parent.name for path in folder.glob("out/masks/*/*.png")} == {
            "photo.png",
            "other.png",
        }
    else:
        text = (folder / "out" / f"{kind}.json").read_text()
        assert "photo.png" in text and "other.png" in text and "polar bear" in text
    for path in folder.glob("out/*.png"):
        path.unlink()
    assert with_words(folder, "--export", kind) == 2
    assert "overwrite" in capsys.readouterr().err


def test_an_export_of_one_picture_is_named_after_its_overlay(folder, capsys):
    assert segment("--export", "coco") == 0
    assert json.loads((folder / "out_coco.json").read_text())["images"][0]["width"] == 60
    capsys.readouterr()
    assert "--pooling is for the words" in refused(capsys, "--pooling", "lse", "--overwrite")
