"""Recipes are read strictly, and the shipped ones are the published ones."""

import pytest

from talk2dino.methods.ovsegmentor.config import (
    LossConfig,
    SelectionConfig,
    TrainConfig,
    load_pretraining_recipe,
)
from talk2dino.methods.ovsegmentor.pretraining.loop import make_schedule


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"trian": {}}, "unknown key of tiny.yaml 'trian'.*Did you mean 'train'"),
        ({"train": {"epoch": 3}}, "tiny.yaml: train: unknown key 'epoch'. Did you mean 'epochs'"),
        ({"data": {"compat": True}}, "data: unknown key 'compat'"),
        ({"augment": {"smallest_crop": 0}}, "smallest_crop must lie in"),
        ({"data": {"metafile": ""}}, "data: 'metafile:' is empty"),
        ({"data": []}, r"data: expected 'key: value' lines, found \[\]"),
        ({"stage": None}, "tiny.yaml: 'stage:' is missing"),
        ({"stage": 3}, "tiny.yaml: stage must be 1 or 2, got 3"),
        ({"compat": "yes"}, "compat must be bool, got 'yes'"),
        ({"model": "ovsegmentor_vitx"}, "unknown OVSegmentor model 'ovsegmentor_vitx'"),
        ({"train": {"text_length": 97}}, "text_length 97 is more than the 96 positions"),
        ({"stage": 2, "start": {"stage1": None}}, "give its folder as start: stage1"),
        ({"stage": 2, "start": {"stage1": "x", "text": "y"}}, "starts from stage 1 alone"),
        ({"start": {"stage1": "x"}}, "stage1 is for stage 2"),
        ({"data": {"entities": "a cat, dog"}}, "entities must be single words, got 'a cat'"),
        ({"compat": True}, "entities cannot be chosen under compat"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(write_recipe, sections, message):
    with pytest.raises(ValueError, match=message):
        load_pretraining_recipe(write_recipe(**sections))


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TrainConfig, {"accumulate": 0}, "accumulate must be at least 1"),
        (TrainConfig, {"seed": -1}, "seed must be at least 0"),
        (TrainConfig, {"base_lr": float("inf")}, "base_lr must lie in"),
        (TrainConfig, {"min_lr": -1.0}, "min_lr must lie in"),
        (TrainConfig, {"warmup_epochs": 30}, "warmup_epochs 30 leave nothing"),
        (TrainConfig, {"amp": "bf16"}, "unknown amp 'bf16'"),
        (LossConfig, {"mask": -0.1}, "mask must lie in"),
        (LossConfig, {"ema": 1.1}, "ema must lie in"),
        (SelectionConfig, {"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_values_out_of_range_are_refused(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_values_are_replaced_from_the_command_line(write_recipe):
    changes = ["train.epochs=5", "data.images=a=b", "compat=false", "start.dino=null"]
    recipe = load_pretraining_recipe(write_recipe(), changes)
    assert (recipe.train.epochs, recipe.data.images, recipe.start.dino) == (5, "a=b", None)
    assert recipe.train.batch_size == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs", "write section.key=value"),
        ("epochs=3", "unknown key in --set 'epochs'"),
        ("train=3", "write section.key=value"),
        ("stage.x=3", "write section.key=value"),
        ("train.epochs=[", "is not valid YAML"),
        ("train.epohcs=3", "Did you mean 'epochs'"),
    ],
)
def test_a_wrong_replacement_is_refused(write_recipe, change, message):
    with pytest.raises(ValueError, match=message):
        load_pretraining_recipe(write_recipe(), [change])


def test_compat_reaches_the_loader_and_the_mask_loss(root):
    path = root / "configs" / "ovsegmentor_stage2.yaml"
    corrected, published = (load_pretraining_recipe(path, [f"compat={c}"]) for c in (False, True))
    assert (corrected.compat, corrected.mask_batch) == (False, 128)
    assert (published.compat, published.mask_batch) == (True, None)


def test_the_published_recipes_train_as_published(root):
    first, second = (
        load_pretraining_recipe(root / "configs" / f"ovsegmentor_stage{n}.yaml") for n in (1, 2)
    )
    assert (first.train.epochs, first.train.batch_size) == (30, 256)
    assert (second.train.epochs, second.train.batch_size) == (10, 128)
    assert (first.augment.deit, first.augment.smallest_crop) == (True, 0.08)
    assert (second.augment.deit, second.augment.smallest_crop) == (False, 0.4)
    assert (first.train.freeze_text, second.train.freeze_text) == (False, True)
    assert (second.losses.entity, second.losses.mask, second.losses.ema) == (1.0, 0.1, 0.99)
    assert (second.losses.threshold, second.losses.group_ratio) == (0.6, 0.5)
    schedule = make_schedule(first.train, world=8, steps_per_epoch=1000)
    expected = {0: 8e-6, 1: 8.156e-6, 1000: 1.64e-4, 1999: 3.19844e-4, 2000: 3.173777e-4}
    for time, rate in (expected | {15000: 2.0e-4, 29999: 8.0e-5}).items():
        assert schedule(time) == pytest.approx(rate, rel=1e-5)
    schedule = make_schedule(second.train, world=8, steps_per_epoch=1000)
    for time, rate in {0: 2.5e-6, 5000: 1.375e-6, 9999: 2.5e-7}.items():
        assert schedule(time) == pytest.approx(rate, rel=1e-4)


def test_rates_grow_with_the_samples_of_a_step_however_they_are_divided():
    values = {"batch_size": 64, "base_lr": 0.4, "min_lr": 0.1, "warmup_lr": 0.2}
    one = make_schedule(TrainConfig(**values), world=1, steps_per_epoch=10)
    assert (one(0), one(300)) == (0.2 / 64, 0.1 / 64)
    two = make_schedule(TrainConfig(**values, accumulate=2), world=1, steps_per_epoch=10)
    other = make_schedule(TrainConfig(**values), world=2, steps_per_epoch=10)
    for step in (0, 7, 20, 150, 300):
        assert two(step) == other(step) == pytest.approx(2 * one(step))


@pytest.mark.parametrize(
    "name",
    [
        "ovsegmentor_stage1",
        "ovsegmentor_stage2",
        "ovsegmentor_toy_stage1",
        "ovsegmentor_toy_stage2",
    ],
)
def test_a_recipe_opens_with_its_command(root, name):
    opening = (root / "configs" / f"{name}.yaml").read_text().split("\nmodel:")[0]
    assert f"pretrain --config configs/{name}.yaml" in opening
    for word in ("Command:", "Data:", "Hardware:", "Time:", "Expected:"):
        assert word in opening
