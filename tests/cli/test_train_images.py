"""`train.py` straight from images: the same numbers as on extracted features."""

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from talk2dino.cli.extract import Extract, ExtractText
from talk2dino.cli.train import Train
from talk2dino.features.extract import ImageExtraction
from talk2dino.features.job import Job
from talk2dino.methods.talk2dino.training.loop import TrainingRun
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = ("red", "green", "blue", "grey", "black", "white")
RECIPE = {
    "model": {"dino_embed_dim": 192, "num_attn_head": 3, "hidden_layer": True},
    "train": {"lr": 0.003, "num_epochs": 2, "batch_size": 4, "save_best_model": False},
    "features": {"vision_model": "toy", "text_model": "toy", "resize_dim": 56, "crop_dim": 56},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with recipe.yaml, and pictures/ with six images and captions.json."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0)
    for number, colour in enumerate(COLOURS):
        speckles = noise.integers(0, 64, (60, 70, 3), dtype=np.uint8)
        picture = Image.new("RGB", (70, 60), colour)
        Image.blend(picture, Image.fromarray(speckles), 0.5).save(pictures / f"{number}.png")
    captions = [
        (n, f"a {colour} picture" + " again" * k)
        for k in (0, 1)
        for n, colour in enumerate(COLOURS)
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(len(COLOURS))],
        "annotations": [
            {"id": 90 + number, "image_id": image, "caption": caption}
            for number, (image, caption) in enumerate(captions)
        ],
    }
    (pictures / "captions.json").write_text(json.dumps(content))
    return tmp_path


def train(dataset, *flags):
    return Train.main(
        [
            "--model",
            "recipe.yaml",
            "--train_dataset",
            dataset,
            "--val_dataset",
            dataset,
            "--workers",
            "0",
            "--device",
            "cpu",
            *flags,
        ]
    )


def losses(path):
    rows = csv.DictReader(path.read_text().splitlines())
    return [float(row[key]) for row in rows for key in ("train_loss", "val_loss")]


def test_images_give_the_losses_and_weights_of_their_extracted_features(folder):
    flags = ["--ann_path", "pictures/captions.json", "--out_path", "f.pth", "--device", "cpu"]
    keys = ["--extract_disentangled_self_attn", "--extract_avg_self_attn"]
    sizes = ["--resize_dim", "56", "--crop_dim", "56", "--model", "toy", "--workers", "0"]
    assert Extract.main([*flags, *keys, *sizes, "--data_dir", "pictures"]) == 0
    assert ExtractText.main(["--ann_path", "f.pth", "--model", "toy", "--device", "cpu"]) == 0
    assert train("f.pth", "--out", "stored.pth") == 0
    stored = torch.load("stored.pth")

    json_and_dir = ("pictures/captions.json", "--data_dir", "pictures")
    for out, arguments in {
        "folder": ("pictures",),
        "tested": (*json_and_dir, "--test_dataset", "pictures/captions.json"),
    }.items():
        assert train(*arguments, "--out", f"{out}.pth") == 0
        assert losses(folder / f"{out}.losses.csv") == losses(folder / "stored.losses.csv")
        for name, value in torch.load(f"{out}.pth").items():
            assert torch.equal(value, stored[name])
    summary = json.loads((folder / "tested.json").read_text())
    assert summary["settings"]["features.vision_model"] == "toy"
    assert summary["retrieval"]["image_to_text"]["queries"] == 6


def test_web_tars_of_images_and_captions_train_directly(folder):
    with tarfile.open("web.tar", "w") as tar:
        for number, colour in enumerate(COLOURS):
            description = folder / "d.json"
            description.write_text(json.dumps({"key": str(number), "caption": f"a {colour} one"}))
            tar.add(f"pictures/{number}.png", f"{number}.png")
            tar.add(description, f"{number}.json")
    assert train("web.tar") == 0
    assert (folder / "weights/recipe.pth").is_file()


def test_the_last_layer_of_the_text_encoder_is_where_its_training_starts(folder):
    from talk2dino.backbones.text import load_text
    from talk2dino.methods.talk2dino.projection import ProjectionConfig
    from talk2dino.methods.talk2dino.recipe import FeatureConfig
    from talk2dino.methods.talk2dino.training.job import first_model

    config = ProjectionConfig(dino_embed_dim=192, model_class="CLIPLastLayer")
    model = first_model(config, 0, FeatureConfig(text_model="toy"))
    tower = load_text("toy").model
    block = tower.transformer.resblocks[-1].state_dict()
    assert all(torch.equal(model.last_block.state_dict()[name], block[name]) for name in block)
    assert torch.equal(model.text_projection, tower.text_projection)


def test_missing_images_are_counted_before_anything_is_encoded(folder, capsys):
    (folder / "pictures/2.png").unlink()
    assert train("pictures/captions.json", "--data_dir", "pictures") == 1
    message = capsys.readouterr().err
    assert "1 of 6 images are missing: the first was looked for at pictures/2.png." in message
    assert "dino_extraction_v2.py leaves such images out" in message


def test_stored_features_are_looked_at_before_anything_is_encoded(folder, capsys):
    torch.save({"images": []}, folder / "val.pth")
    assert train("pictures", "--val_dataset", "val.pth") == 1
    assert "val.pth" in capsys.readouterr().err
    assert not [*folder.glob("weights/*.resume.features")]


def test_an_unreadable_image_is_named(folder, capsys):
    (folder / "pictures/2.png").write_bytes(b"")
    assert train("pictures") == 1
    message = capsys.readouterr().err
    assert "image 2 (2.png): " in message
    assert not [*(folder / "weights").iterdir()]


def test_features_that_do_not_fit_in_memory_are_read_from_their_file(folder):
    assert train("pictures", "--out", "held.pth") == 0
    assert train("pictures", "--out", "mapped.pth", "--cache_gb", "0") == 0
    assert (folder / "held.pth").read_bytes() == (folder / "mapped.pth").read_bytes()
    assert not [*folder.glob("*.features")]


def test_what_is_encoded_is_kept_until_the_training_is_complete(folder):
    assert train("pictures", "--out", "calm.pth") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "take", lambda *_: torch.tensor([float("nan")]))
        assert train("pictures", "--out", "w.pth") == 1
    assert len([*(folder / "w.resume.features").iterdir()]) == 2  # training and validation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageExtraction, "results", lambda *_: pytest.fail("encodes again"))
        assert train("pictures", "--out", "w.pth", "--resume") == 0
    assert (folder / "w.pth").read_bytes() == (folder / "calm.pth").read_bytes()
    assert not [*folder.glob("*.features")]


def test_a_changed_image_is_encoded_again(folder):
    (folder / "pictures/2.png").rename(folder / "good.png")
    (folder / "pictures/2.png").write_bytes(b"")
    assert train("pictures", "--out", "w.pth") == 1
    (folder / "good.png").rename(folder / "pictures/2.png")
    assert train("pictures", "--out", "w.pth") == 0
    assert train("pictures", "--out", "calm.pth") == 0
    assert (folder / "w.pth").read_bytes() == (folder / "calm.pth").read_bytes()


def test_other_pairs_of_the_same_images_and_captions_are_other_data(folder):
    pairs = json.loads((folder / "pictures/captions.json").read_text())
    ids = [text["image_id"] for text in pairs["annotations"]]
    for text, other in zip(pairs["annotations"], ids[1:] + ids[:1], strict=True):
        text["image_id"] = other
    (folder / "other.json").write_text(json.dumps(pairs))
    json_and_dir = ("pictures/captions.json", "--data_dir", "pictures", "--test_dataset")
    for name in ("pictures/captions.json", "other.json"):
        out = f"{Path(name).stem}_w.pth"
        assert train(*json_and_dir, name, "--out", out) == 0
    one, two = (json.loads((folder / f"{n}_w.json").read_text()) for n in ("captions", "other"))
    assert one["retrieval"] != two["retrieval"]


def test_what_another_place_or_batch_began_to_encode_is_made_anew(folder):
    def killed(*_):
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "make", killed)
        patch.setattr(Job, "__exit__", lambda *_: None)
        assert train("pictures", "--out", "w.pth") == 1
    assert [*(folder / "w.resume.features").glob("*.parts")]
    (folder / "pictures").rename(folder / "moved")
    assert train("moved", "--out", "w.pth") == 0
    assert not [*folder.glob("*.features")]


def test_a_folder_of_somebody_else_is_left_alone(folder, capsys):
    theirs = folder / "w.resume.features"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("precious")
    assert train("pictures", "--out", "w.pth") == 0
    assert (theirs / "notes.txt").read_text() == "precious"
    (folder / "pictures").rename(folder / "v.resume.features")
    flags = ("v.resume.features/captions.json", "--data_dir", "v.resume.features")
    assert train(*flags, "--out", "v.pth") == 2
    assert "v.resume.features is an input" in capsys.readouterr().err


def test_two_processes_divide_the_encoding(folder, fork_server):
    assert train("pictures", "--out", "one.pth", "--workers", "0") == 0
    flags = ["--model", "recipe.yaml", "--train_dataset", "pictures", "--workers", "0"]
    flags += ["--device", "cpu", "--val_dataset", "pictures", "--out", "two.pth"]
    codes, said = run_ranks(fork_server, Train.main, flags, 2, folder)
    assert codes == [0, 0], said
    assert losses(folder / "two.losses.csv") == pytest.approx(losses(folder / "one.losses.csv"))


def test_an_input_in_the_folder_of_what_is_encoded_is_refused(folder, capsys):
    assert train("w.resume.features/train.pth", "--out", "w.pth") == 2
    assert "w.resume.features is an input" in capsys.readouterr().err


def test_a_recipe_for_another_backbone_is_refused_before_images_are_read(folder, capsys):
    (folder / "pictures/2.png").write_bytes(b"")
    RECIPE_768 = {**RECIPE, "model": {**RECIPE["model"], "dino_embed_dim": 768}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE_768))
    assert train("pictures") == 1
    assert "recipe.yaml says dino_embed_dim: 768" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crop_dim", "60"], "--crop_dim 60 is larger than --resize_dim 56"),
        (["--vision_weights", "no.pth"], "no.pth"),
        (["--text_weights", "pretrained"], "has no pretrained weights"),
        (["--text_features", "bert-base_features"], "does not come from text_model toy"),
        (["--workers", "-1"], "workers must be at least 0"),
    ],
)
def test_models_that_cannot_encode_the_images_are_refused(folder, capsys, flags, message):
    assert train("pictures", *flags) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_captions_is_refused(folder, capsys):
    (folder / "pictures/captions.json").unlink()
    assert train("pictures") == 2
    assert "neither .tar files nor exactly one captions .json (0 found)" in capsys.readouterr().err


def test_resuming_with_other_frozen_models_is_refused(folder, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "take", lambda *_: torch.tensor([float("nan")]))
        assert train("pictures") == 1  # leaves an unfinished training
    (folder / "pictures/2.png").write_bytes(b"")
    capsys.readouterr()
    assert train("pictures", "--resume", "--vision_weights", "seeded:1") == 1
    message = capsys.readouterr().err  # without encoding anything: nothing about image 2
    assert "features.vision_weights was None, now 'seeded:1'" in message


def test_features_of_another_backbone_than_the_recipe_names_are_warned_of(folder, caplog):
    flags = ["--ann_path", "pictures/captions.json", "--out_path", "f.pth", "--device", "cpu"]
    sizes = ["--resize_dim", "56", "--crop_dim", "56", "--model", "toy", "--workers", "0"]
    assert Extract.main([*flags, *sizes, "--data_dir", "pictures"]) == 0
    assert ExtractText.main(["--ann_path", "f.pth", "--model", "toy", "--device", "cpu"]) == 0
    other = {**RECIPE, "features": {"vision_model": "dinov2_vitb14_reg", "text_model": "toy"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(other))
    assert train("f.pth", "--feature_name", "dino_features") == 0
    assert "vision model is toy, not vit_base_patch14_reg4_dinov2" in caplog.text
