"""What a wheel holds: installed elsewhere, the commands need nothing of the checkout."""

from pathlib import Path

import pytest
from setuptools import Distribution

from talk2dino import files
from talk2dino.methods.talk2dino.method import MODELS
from talk2dino.methods.talk2dino.recipe import load_recipe


@pytest.fixture
def wheel(root, monkeypatch):
    """The names of the files in the wheel, as setuptools would write them."""
    monkeypatch.chdir(root)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    outputs = build.get_outputs(include_bytecode=False)
    return {Path(path).relative_to(build.build_lib).as_posix() for path in outputs}


def test_the_wheel_has_every_module_recipe_and_template_and_nothing_else(wheel, root):
    package = root / "src" / "talk2dino"
    expected = {f"talk2dino/{p.relative_to(package)}" for p in package.rglob("*.py")}
    recipes = [path for path in (root / "configs").rglob("*") if path.is_file()]
    expected |= {f"talk2dino/configs/{p.relative_to(root / 'configs')}" for p in recipes}
    words = [path.name for path in (root / "vocabularies").iterdir()]
    expected |= {f"talk2dino/vocabularies/{name}" for name in words}
    expected |= {f"talk2dino/assets/{n}.png" for n in ("astronaut", "chelsea", "coffee")}
    expected |= {f"talk2dino/app/{name}" for name in ("parts.html", "style.css")}
    expected |= {"talk2dino/report/page.html"}
    expected |= {"talk2dino/methods/talk2dino/hub/card.md"}
    expected.add("talk2dino/backbones/imagenet_templates.txt")
    assert wheel == expected


def test_recipes_of_an_installed_package_are_found_from_any_folder(tmp_path, monkeypatch, root):
    package = tmp_path / "site-packages" / "talk2dino"
    package.mkdir(parents=True)
    (package / "configs").symlink_to(root / "configs")
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    monkeypatch.chdir(tmp_path)
    for recipe in MODELS.values():
        assert load_recipe(recipe).path.is_file()
