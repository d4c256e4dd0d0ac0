"""The shipped recipes: strict, trainable, and each opening with a command that parses."""

import re
import shlex

import pytest

from talk2dino.cli.train import Train
from talk2dino.methods.talk2dino.projection import build_projection
from talk2dino.methods.talk2dino.recipe import load_recipe
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice

NAMES = {
    "vitb_mlp_infonce": ("dinov2_vitb14_reg", 984_576),
    "vitl_mlp_infonce": ("dinov2_vitl14_reg", 1_574_912),
    "dinov3_vitb_mlp_infonce": ("vit_base_patch16_dinov3.lvd1689m", 984_576),
    "dinov3_vitl_mlp_infonce": ("vit_large_patch16_dinov3.lvd1689m", 1_574_912),
    "toy": ("toy", 135_552),
}


def test_every_recipe_is_listed_here(root):
    recipes = {path.stem for path in (root / "configs").glob("*.yaml")}
    assert {name for name in recipes if not name.startswith("ovsegmentor_")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_the_model_it_describes(root, name):
    recipe = load_recipe(root / "configs" / f"{name}.yaml")
    backbone, parameters = NAMES[name]
    assert recipe.features.vision_model == backbone
    assert sum(p.numel() for p in build_projection(recipe.model).parameters()) == parameters
    assert FeatureChoice(config=recipe.model).visual == "disentangled_self_attn"
    assert recipe.features.crop_dim <= recipe.features.resize_dim


@pytest.mark.parametrize("name", [name for name in NAMES if name != "toy"])
def test_the_published_recipes_train_as_published(root, name):
    train = load_recipe(root / "configs" / f"{name}.yaml").train
    assert (train.lr, train.ltype, train.num_epochs, train.batch_size) == (
        1e-4,
        "infonce",
        100,
        128,
    )
    assert train.shuffle
    assert not train.save_best_model


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_its_command_hardware_time_and_expectation(root, name):
    text = (root / "configs" / f"{name}.yaml").read_text()
    opening = text[: text.index("\nmodel:")]
    for word in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert word in opening
    lines = re.search(r"Command:\s+((?:.*\\\n)*.*)", opening).group(1)
    python, script, *flags = shlex.split(lines.replace("\\\n#", " "))
    assert (python, script) == ("python", "train.py")
    assert Train.parse(flags).model == f"configs/{name}.yaml"
