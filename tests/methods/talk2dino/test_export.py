"""The ONNX files give the numbers of PyTorch, for any batch."""

import dataclasses
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from talk2dino import Talk2DINO
from talk2dino.__main__ import main
from talk2dino.backbones.vision import VisionBackbone, create_toy
from talk2dino.methods.talk2dino import export
from talk2dino.methods.talk2dino.export import (
    FILES,
    FixedSizeBackbone,
    check_exportable,
    export_onnx,
)
from talk2dino.methods.talk2dino.hub.find import TOY_THRESHOLD, FoundModel, find_model
from talk2dino.methods.talk2dino.segmenter import build_segmenter

onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
pytest.importorskip("onnxscript", reason="the export extra is not installed")


@pytest.fixture(scope="module")
def model():
    """The toy pair with a small input, so that tracing is quick, and a map on both sides."""
    config = find_model("toy").config
    projection = dataclasses.replace(config.projection, model_class="DoubleMLP")
    segmenter = build_segmenter(dataclasses.replace(config, projection=projection, input_size=56))
    return Talk2DINO(segmenter, FoundModel(segmenter.config, TOY_THRESHOLD, "toy"))


@pytest.fixture(scope="module")
def command(model, tmp_path_factory):
    """The folder that the command wrote for the small model, and what it printed."""
    source = model.save_pretrained(tmp_path_factory.mktemp("small") / "m", projection_only=True)
    out, printed = tmp_path_factory.mktemp("exported"), io.StringIO()
    with redirect_stdout(printed):
        assert (
            main(["export", "--format", "onnx", "--model", str(source), "--output", str(out)]) == 0
        )
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def folder(command):
    return command[0]


def test_the_command_writes_three_files_and_says_how_well_they_agree(command):
    folder, printed = command
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert "agrees with PyTorch: relative error" in printed
    errors = json.loads((folder / "talk2dino.json").read_text())["relative_errors"]
    assert set(errors) == {"patches", "attention_logits", "classes"}
    assert max(errors.values()) < 1e-4


@cache
def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, **inputs):
    return session(path).run(None, inputs)


def relative_error(found, expected):
    return float((torch.from_numpy(found) - expected).norm() / expected.norm())


@pytest.mark.parametrize("batch", [1, 3])
def test_the_image_side_agrees_for_every_batch(model, folder, batch):
    pictures = (torch.rand(batch, 3, 56, 56) * 255).to(torch.uint8)
    patches, logits = run(folder / "image.onnx", pixels=pictures.float().numpy())
    assert relative_error(patches, model.encode_image(pictures)) < 1e-4
    with torch.no_grad():
        features = model.segmenter.patch_features(pictures.float())
    assert relative_error(logits, features.attention_logits) < 1e-4


@pytest.mark.parametrize(("names", "template"), [(["cat"], "subset"), (["a", "b", "c"], "simple")])
def test_the_text_side_agrees_for_every_number_of_classes_and_prompts(
    model, folder, names, template
):
    tokens = model.build_dataset_class_tokens(template, names)
    (classes,) = run(folder / "text.onnx", tokens=tokens.numpy())
    assert relative_error(classes, model.build_text_embedding(tokens)) < 1e-4


def test_the_description_tells_how_to_get_scores(model, folder):
    description = json.loads((folder / "talk2dino.json").read_text())
    assert description["image.onnx"]["inputs"]["pixels"].startswith(
        "(batch, 3, 56, 56) float32 RGB"
    )
    assert len(description["templates"]) == 7 and description["background_threshold"] == 0.52
    assert description["scores"].startswith("sigmoid(patches / |patches| @ classes.T), resized")
    assert "aligned corners" in description["scores"]
    picture = (torch.rand(1, 3, 56, 56) * 255).to(torch.uint8)
    tokens = model.build_dataset_class_tokens("subset", ["cup", "spoon"])
    patches = run(folder / "image.onnx", pixels=picture.float().numpy())[0]
    classes = run(folder / "text.onnx", tokens=tokens.numpy())[0]
    unit = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    scores = 1 / (1 + np.exp(-(unit @ classes.T)))
    pixels = picture.float().flip(1)
    cosines = model.generate_masks(pixels, None, torch.from_numpy(classes))[1]
    assert relative_error(scores[0].T.reshape(2, 4, 4), cosines[0].sigmoid()) < 1e-4


def test_the_documented_example_gives_the_labels_of_segment(
    model, folder, root, tmp_path, monkeypatch
):
    (block,) = [b for b in documented_blocks(root / "docs" / "api.md") if "onnxruntime" in b]
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "toy").symlink_to(folder)
    (tmp_path / "assets").symlink_to(root / "assets")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "docs/api.md", "exec"), names)
    expected = model.segment("assets/coffee.png", names["names"], refine=False)
    assert min(expected.areas()["cup"], expected.areas()["table"]) > 10
    assert (names["labels"] == expected.labels.numpy()).mean() >= 0.995


def documented_blocks(page):
    return re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)


def test_existing_files_are_kept_unless_told(model, folder):
    with pytest.raises(FileExistsError, match="image.onnx exists already"):
        export_onnx(model, folder)


def test_a_graph_that_differs_is_not_kept(model, folder, tmp_path, monkeypatch):
    def traced_before(side, example, path, **settings):
        shutil.copy(folder / Path(path).name, path)

    monkeypatch.setattr(torch.onnx, "export", traced_before)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"onnxruntime differs .*patches.*Nothing was kept"):
        export_onnx(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_good_graph_is_not_kept_without_the_other(model, tmp_path, monkeypatch):
    def write_the_first(side, example, path, free):
        if side.names[0] == "tokens":
            raise RuntimeError("the text side differs")
        path.write_bytes(b"image side")
        return {}

    monkeypatch.setattr(export, "_write_graph", write_the_first)
    with pytest.raises(RuntimeError, match="the text side differs"):
        export_onnx(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("registers", [0, 4])
def test_positions_as_a_constant_are_those_of_every_image(registers):
    vision = VisionBackbone(create_toy(registers), "toy", "random")
    pictures = torch.randn(2, 3, 56, 56)
    fixed = FixedSizeBackbone(vision, 56)
    with torch.no_grad():
        torch.testing.assert_close(fixed(pictures).patches, vision(pictures).patches)


def test_what_the_graphs_cannot_express_is_refused(model, monkeypatch):
    averaging = model.segmenter.variant(average_tokens=True)
    with pytest.raises(ValueError, match="end-of-text vector"):
        check_exportable(averaging)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs onnx and onnxscript: pip install"):
        check_exportable(model.segmenter)


def test_the_command_refuses_before_it_loads(tmp_path, capsys):
    (tmp_path / "text.onnx").touch()
    assert main(["export", "--model", "toy", "--output", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "--model", "toyy", "--output", str(tmp_path / "new")]) == 1
    assert "Did you mean 'toy'" in capsys.readouterr().err


def test_missing_packages_are_named_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert main(["export", "--model", "toy", "--output", str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert "needs onnx and onnxscript: pip install" in captured.err
    assert captured.out == ""
