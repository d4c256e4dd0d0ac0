"""A loss or an alignment strategy is one function: what its name alone makes work."""

import json
from pathlib import Path

import pytest
import torch

from talk2dino.config import differences
from talk2dino.features.store import write_features
from talk2dino.methods.talk2dino import alignment
from talk2dino.methods.talk2dino.alignment import PAIRWISE, PER_HEAD, own_products
from talk2dino.methods.talk2dino.losses import LOSSES
from talk2dino.methods.talk2dino.recipe import present_settings
from tests.cli.small_training import features, train, write_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a recipe and features, to work in."""
    monkeypatch.chdir(tmp_path)
    write_features(features(seed=0), tmp_path / "train.pth")
    write_features(features(seed=1), tmp_path / "val.pth")
    return tmp_path


@pytest.fixture
def calls():
    """Whether gradients were wanted, for every call of the new function."""
    return []


def trained(*flags):
    assert train("--val_dataset", "val.pth", "--out", "w.pth", *flags) == 0
    return json.loads(Path("w.json").read_text())


def test_a_new_loss_trains_and_validates_with_its_own_keys(folder, monkeypatch, calls):
    def squared(scores, weight: float = 1.0):
        calls.append(torch.is_grad_enabled() and scores.requires_grad)
        return weight * (scores - torch.eye(len(scores))).square().mean()

    monkeypatch.setitem(LOSSES, "squared", squared)
    write_recipe(folder / "recipe.yaml", train={"ltype": "squared", "weight": 3})
    once = trained()
    assert once["settings"]["train.weight"] == 3.0
    assert "train.temperature" not in once["settings"]
    assert calls.count(True) == 9  # 3 epochs of 3 batches
    assert calls.count(False) >= 9  # the same in validation
    write_recipe(folder / "recipe.yaml", train={"ltype": "squared"})
    plain = trained("--overwrite")
    assert plain["settings"]["train.weight"] == 1.0
    assert plain["train_loss"] < once["train_loss"]


def test_a_new_strategy_that_chooses_trains(folder, monkeypatch, calls):
    def farthest_head(visual, text):
        calls.append(torch.is_grad_enabled())
        heads = own_products(visual, text).argmin(dim=-1)
        return visual[torch.arange(len(visual)), heads]

    write_recipe(folder / "recipe.yaml")
    usual = trained()
    monkeypatch.setitem(PER_HEAD, "farthest", farthest_head)
    write_recipe(folder / "recipe.yaml", model={"alignment_strategy": "farthest"})
    assert trained("--overwrite")["train_loss"] != usual["train_loss"]
    assert calls == [True] * 9  # validation has one vector per image, nothing to choose from


def test_a_new_strategy_on_pairs_trains_and_may_take_alpha(folder, monkeypatch, calls):
    def softened(products, alpha: float = 0.6):
        calls.append(alpha)
        return (products / alpha).logsumexp(dim=(2, 3)) * alpha

    monkeypatch.setitem(PAIRWISE, "softened", softened)
    write_recipe(folder / "recipe.yaml", model={"alignment_strategy": "softened", "alpha": 0.25})
    assert trained()["settings"]["model.alpha"] == 0.25
    assert calls == [0.25] * 9


@pytest.mark.parametrize("section", ["model", "train"])
def test_a_new_name_is_among_those_that_a_refusal_lists(folder, monkeypatch, capsys, section):
    monkeypatch.setitem(LOSSES, "squared", lambda scores: scores.mean())
    monkeypatch.setitem(PER_HEAD, "farthest", lambda visual, text: visual[:, 0])
    key = {"model": "alignment_strategy", "train": "ltype"}[section]
    write_recipe(folder / "recipe.yaml", **{section: {key: "nothing"}})
    assert train() == 2
    assert {"model": "farthest", "train": "squared"}[section] in capsys.readouterr().err


def test_an_edited_infonce_is_what_the_published_recipe_trains_with(folder, monkeypatch, calls):
    def edited(scores, temperature: float = 0.07):
        calls.append(torch.is_grad_enabled() and scores.requires_grad)
        return (scores.diagonal() - 1).square().mean()

    monkeypatch.setitem(LOSSES, "infonce", edited)
    write_recipe(folder / "recipe.yaml", model={"act": "tanh"})
    trained()
    assert calls.count(True) == 9


def test_edited_head_choices_are_what_the_published_recipe_trains_with(folder, monkeypatch):
    monkeypatch.setattr(alignment, "own_products", lambda visual, text: 1 / 0)
    write_recipe(folder / "recipe.yaml")
    with pytest.raises(ZeroDivisionError):
        train()


def test_the_temperature_is_set_in_the_recipe_and_recorded(folder):
    write_recipe(folder / "recipe.yaml")
    usual = trained()
    assert usual["settings"]["train.temperature"] == 0.07
    assert not {"train.margin", "train.max_violation"} & set(usual["settings"])
    write_recipe(folder / "recipe.yaml", train={"temperature": 0.5})
    warm = trained("--overwrite")
    assert warm["settings"]["train.temperature"] == 0.5
    assert warm["train_loss"] != usual["train_loss"]


def test_a_training_from_before_the_temperature_was_recorded_goes_on(folder):
    write_recipe(folder / "recipe.yaml")
    routing = {"model.routing_temperature": 0.1}
    now = {"train.ltype": "infonce", "train.temperature": 0.07, **routing}
    old = {"train.ltype": "infonce", "train.margin": 0.2, "train.max_violation": True}
    before = present_settings(old)
    assert differences(before, now) == ""
    assert "temperature was 0.07, now 0.5" in differences(before, now | {"train.temperature": 0.5})
    both = {"train.ltype": "triplet", "train.margin": 0.2, "train.max_violation": True}
    assert differences(present_settings(both), both | routing) == ""


def test_a_wrong_number_of_heads_is_refused_before_training(folder, capsys):
    write_recipe(folder / "recipe.yaml", model={"num_attn_head": 12})
    assert train() == 1
    assert (
        "num_attn_head: 12, but the attention map features in train.pth" in capsys.readouterr().err
    )
