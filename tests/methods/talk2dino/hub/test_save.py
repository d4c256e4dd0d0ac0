"""A saved model is the same model, and its card says where it comes from."""

import copy
import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from talk2dino import Talk2DINO
from talk2dino.backbones.text import load_text
from talk2dino.methods.talk2dino.hub import save
from talk2dino.methods.talk2dino.hub.find import FoundModel
from talk2dino.methods.talk2dino.hub.save import (
    _own_results,
    _saved_config,
    model_card,
)
from talk2dino.methods.talk2dino.projection import build_projection
from talk2dino.methods.talk2dino.recipe import write_recipe

from .test_find import same_model

TRAINING = {
    "command": "python train.py --model configs/toy.yaml",
    "recipe": "configs/toy.yaml",
    "settings": {"train_dataset": "../coco/train.pth", "captions": 566747},
    "epochs": 100,
    "best_epoch": None,
    "train_loss": 0.25,
}


@pytest.fixture(scope="module")
def trained(toy):
    """The toy model as if `train.py` had trained it."""
    config = dataclasses.replace(toy.segmenter.config, projection_weights="weights/mine.pth")
    found = FoundModel(config, 0.5, "weights/mine.pth", TRAINING)
    return Talk2DINO(toy.segmenter.variant(projection_weights="weights/mine.pth"), found)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    return trained.save_pretrained(tmp_path_factory.mktemp("saved") / "mine")


def test_a_saved_model_is_the_same_model(trained, saved):
    model = Talk2DINO.from_pretrained(saved, device="cpu")
    same_model(model, trained)
    assert model.loaded.background_threshold == 0.5
    assert model.loaded.training == TRAINING and model.is_trained


def test_a_model_trained_with_soft_routing_is_saved_with_its_temperature(toy, tmp_path):
    changes = {"alignment_strategy": "soft_routing", "routing_temperature": 0.2}
    write_recipe("configs/toy.yaml", changes, tmp_path / "toy.yaml")
    torch.save(toy.projection.state_dict(), tmp_path / "mine.pth")
    source, config = tmp_path / "mine.pth", tmp_path / "toy.yaml"
    model = Talk2DINO.from_pretrained(source, "cpu", config=config)
    loaded = Talk2DINO.from_pretrained(model.save_pretrained(tmp_path / "routed"), device="cpu")
    found = loaded.projection.config
    assert (found.alignment_strategy, found.routing_temperature) == ("soft_routing", 0.2)
    same_model(loaded, toy)


def test_nothing_of_an_earlier_save_is_overwritten_unasked(trained, saved):
    with pytest.raises(FileExistsError, match="model.safetensors exists already"):
        trained.save_pretrained(saved)
    trained.save_pretrained(saved, overwrite=True)


def test_the_projection_can_be_saved_alone(toy, tmp_path):
    folder = toy.save_pretrained(tmp_path / "small", projection_only=True)
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    model = Talk2DINO.from_pretrained(folder, device="cpu")
    same_model(model, toy)
    assert not model.is_trained
    assert "untrained: what it segments means nothing" in (folder / "README.md").read_text()
    assert model.loaded.background_threshold == 0.52


def test_parts_that_others_cannot_get_are_not_left_out(toy, tmp_path):
    mine = Talk2DINO(toy.segmenter.variant(vision_weights="/home/me/dino.pth"), toy.loaded)
    with pytest.raises(ValueError, match="come from /home/me/dino.pth, which others do not have"):
        mine.save_pretrained(tmp_path / "x", projection_only=True)
    assert not (tmp_path / "x").exists()


def test_the_card_tells_training_and_its_own_numbers(trained, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    own = trained.segmenter.config.projection_weights
    run = {
        "format": 1,
        "benchmark": "voc20",
        "title": "VOC20",
        "bg_thresh": None,
        "per_class": {"cat": 84.25},
        "data_root": "data",
        "model": "mine",
        "pamr": True,
        "mIoU": 84.25,
        "mIoU_interval": [83.0, 85.0],
        "mAcc": 90.0,
        "aAcc": 95.0,
        "num_images": 1449,
        "published": 88.5,
        "timing": None,
        "settings": {"segmenter": {"projection_weights": own}},
    }
    (results / "voc20_pamr.json").write_text(json.dumps(run))
    (results / "notes.json").write_text("[]")
    other = {**run, "mIoU": 3.16, "settings": {"segmenter": {"projection_weights": "seeded:9"}}}
    (results / "voc20_untrained.json").write_text(json.dumps(other))
    folder = trained.save_pretrained(tmp_path / "m", projection_only=True, results=results)
    card = (folder / "README.md").read_text()
    assert "\nlibrary_name: talk2dino\n" in card
    for part in (
        TRAINING["command"],
        "* training data: ../coco/train.pth",
        "* captions: 566747",
        "background threshold: 0.5.",
        "With PAMR:",
        "84.25",
        "1449",
    ):
        assert part in card
    assert "best epoch" not in card and "Without PAMR" not in card
    assert "3.16" not in card and "mean" not in card.split("\n---\n")[1]
    (number,) = ModelCard(card).data.eval_results  # as the Hub reads it
    assert (number.dataset_name, number.metric_name) == ("VOC20", "mIoU with PAMR")
    assert number.metric_value == 84.25
    (results / "voc20_pamr_2.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="two results of this model on voc20"):
        trained.save_pretrained(tmp_path / "n", projection_only=True, results=results)
    for path in results.glob("voc20_pamr*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no results of these weights\. Evaluate what is saved"):
        trained.save_pretrained(tmp_path / "n", projection_only=True, results=results)
    assert not (tmp_path / "n").exists()


def test_what_a_training_says_of_itself_is_text_in_the_card(trained):
    bad = "<script>alert(1)</script>\n# Title"
    training = {"command": "train.py\n```\n# Title", "recipe": bad, "settings": {"captions": bad}}
    card = model_card(dataclasses.replace(trained.loaded, training=training), "./m", [])
    assert "<script" not in card and "\n# Title" not in card and "\n```\n#" not in card
    assert "* recipe: &lt;script&gt;alert(1)&lt;/script&gt; # Title" in card
    assert "    train.py\n    ```\n    # Title" in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"format": 1, "benchmark": "voc20", "mIoU": "84"}',
            "voc20.json.*(mIoU must be|title is missing)",
        ),
        ("{", "is not JSON .*evaluate again"),
        ("[]", "holds no results of these weights"),
    ],
)
def test_results_that_are_none_are_named(trained, tmp_path, content, message):
    (tmp_path / "voc20.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        _own_results(tmp_path, trained.segmenter.config, "mine")


def test_a_mixture_of_two_saves_is_refused_until_it_is_saved_again(toy, tmp_path):
    folder = toy.save_pretrained(tmp_path / "m", projection_only=True)
    (folder / "config.json").write_text('{"talk2dino_unfinished": "x"}')  # killed while they move
    with pytest.raises(ValueError, match=r"config.json: writing was interrupted"):
        Talk2DINO.from_pretrained(folder, device="cpu")
    toy.save_pretrained(folder, projection_only=True)
    same_model(Talk2DINO.from_pretrained(folder, device="cpu"), toy)


class RecordingApi(HfApi):
    """Keeps what would be uploaded."""

    def create_repo(self, repo_id, **settings):
        self.created = (repo_id, settings)

    def upload_folder(self, *, repo_id, folder_path, commit_message, **settings):
        self.uploaded = (repo_id, sorted(p.name for p in Path(folder_path).iterdir()))
        self.message = commit_message
        self.card = (Path(folder_path) / "README.md").read_text()


def test_pushing_uploads_the_three_files_under_the_name_of_the_repository(trained, monkeypatch):
    api = RecordingApi(endpoint="https://hub.example")
    monkeypatch.setattr(save, "HfApi", lambda token: api)
    settings = {"commit_message": "First", "private": True, "projection_only": True}
    assert trained.push_to_hub("me/great-1.5", **settings) == "https://hub.example/me/great-1.5"
    assert api.created == ("me/great-1.5", {"private": True, "exist_ok": True})
    assert api.uploaded == ("me/great-1.5", ["README.md", "config.json", "model.safetensors"])
    assert api.message == "First"
    assert "# great-1.5\n" in api.card
    assert 'from_pretrained("me/great-1.5")' in api.card
    assert "weights/mine" not in api.card


def test_pushing_without_network_says_what_to_do_and_leaves_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="could not upload to me/mine .*(?i:offline).*by hand"):
        toy.push_to_hub("me/mine", projection_only=True, token=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my model!", "mine"])
def test_a_wrong_repository_is_refused_before_anything_is_written(toy, name):
    with pytest.raises(ValueError, match=f"'{name}' is no repository of an owner"):
        toy.push_to_hub(name)


def test_the_card_of_a_folder_is_called_like_the_folder(toy, tmp_path):
    card = (toy.save_pretrained(tmp_path / "toy", projection_only=True) / "README.md").read_text()
    assert "# toy\n" in card
    assert 'from_pretrained("./toy")' in card  # "toy" alone is a model of the package


@pytest.mark.parametrize(
    ("vision", "projection_only", "licence"),
    [
        ("dinov2_vitb14_reg", False, "license: apache-2.0\n"),
        ("vit_base_patch14_dinov2.lvd142m", False, "license: apache-2.0\n"),
        ("vit_base_patch16_dinov3.lvd1689m", True, "license: apache-2.0\n"),
        (
            "dinov3_vitb16",
            False,
            "license: other\nlicense_name: dinov3-license\nlicense_link: http",
        ),
        ("vit_base_patch16_224.mae", False, "license: unknown\n"),
    ],
)
def test_the_licence_is_that_of_the_projection_or_of_a_backbone_in_the_folder(
    toy, vision, projection_only, licence
):
    config = _saved_config(toy.segmenter.variant(vision_model=vision), (), projection_only)
    card = model_card(FoundModel(config, 0.5, "x"), "me/mine", [])
    assert f"\n{licence}" in card.split("\n---\n")[0]
    assert "## Licences\n\nThe projection and the code are Apache-2.0." in card
    assert "DINOv3 the DINOv3 licence, OpenAI's CLIP MIT." in card


def test_a_saved_folder_has_no_paths_of_its_maker(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "talk2dino"
    weights = {k: v for k, v in config["segmenter"].items() if k.endswith("_weights")}
    assert set(weights.values()) == {"included"}
    assert torch.is_tensor(Talk2DINO.from_pretrained(saved).encode_text("x"))


def changed(projection):
    """A copy that was trained further."""
    other = copy.deepcopy(projection)
    with torch.no_grad():
        other.linear_layer.bias.add_(0.01)
    return other


@pytest.mark.parametrize("how", ["assigned", "loaded"])
def test_what_was_changed_in_python_is_used_saved_and_described(toy, how, tmp_path):
    model = copy.deepcopy(toy)
    before, other = model.encode_text("a"), changed(model.projection)
    if how == "assigned":
        model.projection = other
    else:
        model.projection.load_state_dict(other.state_dict())
    assert not torch.equal(model.encode_text("a"), before) and model.is_trained
    folder = model.save_pretrained(tmp_path / "m", projection_only=True)
    card = (folder / "README.md").read_text()
    assert "untrained" not in card and "changed in Python afterwards" in card
    again = Talk2DINO.from_pretrained(folder, device="cpu")
    assert again.is_trained and torch.equal(again.encode_text("a"), model.encode_text("a"))
    with pytest.raises(ValueError, match="are of the projection as it was loaded"):
        model.save_pretrained(tmp_path / "n", results=tmp_path)


def test_a_replaced_frozen_model_goes_with_the_whole_model_only(toy, tmp_path):
    model = Talk2DINO(toy.segmenter.variant(), toy.loaded)
    model.text = load_text("toy", "seeded:5")
    assert not torch.equal(model.encode_text("a"), toy.encode_text("a"))
    with pytest.raises(ValueError, match="text model's weights come from a change in Python"):
        model.save_pretrained(tmp_path / "m", projection_only=True)
    again = Talk2DINO.from_pretrained(model.save_pretrained(tmp_path / "m"), device="cpu")
    assert torch.equal(again.encode_text("a"), model.encode_text("a"))


def test_a_part_that_does_not_fit_is_refused(toy):
    with pytest.raises(ValueError, match="projection is a ProjectionLayer, found Linear"):
        toy.projection = torch.nn.Linear(2, 2)
    narrow = dataclasses.replace(toy.projection.config, dino_embed_dim=64)
    with pytest.raises(ValueError, match="vectors of width 192, but the projection expects 64"):
        toy.projection = build_projection(narrow)
