"""Folders of save_pretrained and names of the Hub on the command line, as in Python."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talk2dino import Talk2DINO
from talk2dino.cli.segment import Segment
from talk2dino.files import save_torch
from talk2dino.methods.registry import find_method

CLASSES = ["cup", "table"]


@pytest.fixture(scope="module")
def toy():
    return Talk2DINO.from_pretrained("toy", device="cpu")


@pytest.fixture(scope="module")
def saved(toy, tmp_path_factory):
    """The toy model as a folder with everything."""
    return toy.save_pretrained(tmp_path_factory.mktemp("saved") / "mine")


@pytest.fixture
def photo(photos, tmp_path, monkeypatch):
    """A small picture in the working folder, where there are no weights."""
    monkeypatch.chdir(tmp_path)
    with Image.open(photos / "coffee.png") as picture:
        picture.resize((150, 100)).save("photo.png")
    return "photo.png"


def segment(photo, *flags):
    words = ["--input", photo, "--output", "out.png", "--save_mask", "--device", "cpu"]
    return Segment.main([*words, "--textual_categories", ",".join(CLASSES), *flags])


def mask_labels():
    with Image.open("out_mask.png") as mask:
        return np.asarray(mask)


@pytest.mark.parametrize("flags", [("--model", "{}"), ("--model", "toy", "--weights", "{}")])
def test_a_saved_folder_segments_as_it_does_in_python(toy, saved, photo, capsys, flags):
    assert segment(photo, *(flag.format(saved) for flag in flags)) == 0
    assert f"from {saved}" in capsys.readouterr().out
    assert np.array_equal(mask_labels(), toy.segment(photo, CLASSES).labels)


def test_the_file_of_a_whole_model_is_taken_too(toy, saved, photo):
    assert segment(photo, "--model", str(saved / "model.safetensors")) == 0
    assert np.array_equal(mask_labels(), toy.segment(photo, CLASSES).labels)


def test_toy_needs_no_files(toy, photo, capsys):
    assert segment(photo, "--model", "toy") == 0
    assert "untrained" in capsys.readouterr().out
    assert np.array_equal(mask_labels(), toy.segment(photo, CLASSES).labels)


def test_one_threshold_for_a_model_wherever_it_is_used(toy, saved):
    python = toy.loaded.background_threshold
    for name in ("toy", str(saved)):
        assert find_method(name).demo.threshold == python
    large = find_method("vitl", {"weights": "large.pth"})
    assert large.demo.threshold == 0.54


def test_without_a_network_a_name_says_what_to_download(photo, capsys):
    assert segment(photo, "--model", "vitb") == 2
    message = capsys.readouterr().err
    assert "lorebianchi98/Talk2DINO-ViTB" in message and "weights/vitb/" in message


def test_a_folder_with_the_published_name_is_found_in_weights(saved, photo):
    (saved.parent / "weights").mkdir(exist_ok=True)
    link = saved.parent / "weights" / "vitb"
    if not link.exists():
        link.symlink_to(saved)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(saved.parent)
        method = find_method("vitb")
    assert (method.model, Path(method.config.whole).name) == ("vitb", "model.safetensors")
    assert method.config.vision_model == "toy"


def test_results_know_a_folder_by_its_weights_not_by_its_card(saved, tmp_path):
    method = find_method(str(saved))
    assert method.model == "mine"
    before = method.settings()
    assert json.loads(json.dumps(before)) == before
    assert before["projection_weights"].startswith("sha256:")
    (saved / "README.md").write_text("another card")
    assert find_method(str(saved)).settings() == before
    (tmp_path / "copy").mkdir()
    for file in saved.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    assert find_method(str(tmp_path / "copy")).settings() == before


def test_a_projection_by_its_file_takes_the_models_of_its_training(tmp_path, toy, photo):
    save_torch(toy.projection.state_dict(), "mine.pth")
    models = {"vision_model": "toy", "text_model": "toy"}
    settings = {"model.hidden_layer": True, "model.dino_embed_dim": 192, "model.num_attn_head": 3}
    (tmp_path / "mine.json").write_text(json.dumps({"settings": settings, "features": models}))
    method = find_method("mine.pth")
    assert (method.model, method.config.whole) == ("mine", None)
    assert method.config.vision_model == "toy"
    assert method.config.projection_weights == "mine.pth"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("{}", {"weights": "seeded:1"}, "has its own weights, so --weights seeded:1 has no place"),
        ("savd", {}, "unknown model 'savd'.*or a folder, a file, owner/name"),
        ("no/such/folder", {}, "unknown model 'no/such/folder'"),
    ],
)
def test_what_cannot_be_meant_is_refused(saved, name, options, message):
    with pytest.raises(ValueError, match=message):
        find_method(name.format(saved), options)


def test_a_folder_of_the_other_method_asks_for_its_size(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"method": "ovsegmentor"}))
    with pytest.raises(ValueError, match=f"--model ovsegmentor_vitb.*--weights {tmp_path}"):
        find_method(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        find_method(str(tmp_path))
