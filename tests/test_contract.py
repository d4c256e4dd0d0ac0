"""What the project promises as a whole: layers, silent import, public names, published code."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import talk2dino

LAYERS = {
    "doors": {"cli", "app", "__main__"},
    "methods": {"methods"},
    "engines": {"features", "benchmarks", "report", "training", "predict", "toy"},
    "parts": {"backbones", "refine", "pictures"},
    "ground": {
        *("segmenter", "inference", "sizes", "config", "files", "textfiles"),
        *("devices", "processes", "progress"),
    },
}
"""Each may import itself and what is below it; a method imports no other method."""
LAYER_OF = {name: place for place, names in enumerate(LAYERS.values()) for name in names}
SHARED_BY_METHODS = {"base", "clip_words", "dense", "options"}


def imports_of(root: Path, typing: bool = True) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, at any depth of its code.

    With `typing=False` without those that only a type checker sees.
    """
    package = root / "src" / "talk2dino"
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = set()
        tree = ast.parse(path.read_text())
        unseen = [
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing
            for inner in ast.walk(node)
        ]
        for node in ast.walk(tree):
            if node in unseen:
                continue
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("talk2dino"):
                inside = (node.module or "").removeprefix("talk2dino").removeprefix(".")
                found[name] |= {f"{inside}.{alias.name}".strip(".") for alias in node.names}
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                found[name] |= {n[10:] for n in names if n.startswith("talk2dino.")}
    modules = set(found)
    for name, imported in found.items():  # `module.Class` is the module, `package.module` itself
        found[name] = {m if m in modules else m.rpartition(".")[0] for m in imported} - {"", name}
    return found


def test_modules_import_only_what_is_below_them(root):
    wrong = []
    for importer, imported in imports_of(root).items():
        if importer == "__init__":
            continue
        for name in imported:
            first, second = importer.split("."), name.split(".")
            below = LAYER_OF[second[0]] >= LAYER_OF[first[0]]
            sideways = (
                len(first) > 1
                and first[0] == second[0] == "methods"
                and first[1] not in ("registry", *SHARED_BY_METHODS)
                and second[1] not in (first[1], *SHARED_BY_METHODS)
            )
            if not below or sideways:
                wrong.append(f"{importer} imports {name}")
    assert not wrong, "\n".join(sorted(wrong))


def circles(imports: dict[str, set[str]]) -> set[str]:
    """Modules that import each other, directly or through others; none if the order exists."""
    left = dict(imports)
    while free := [name for name, imported in left.items() if not imported & set(left)]:
        left = {name: imported for name, imported in left.items() if name not in free}
    while unused := set(left) - set().union(*left.values()):
        left = {name: imported & set(left) for name, imported in left.items() if name not in unused}
    return set(left)


def test_modules_do_not_import_each_other_in_a_circle(root):
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"b", "c"}
    assert not circles(imports_of(root, typing=False))


OWN_COMMANDS = {
    "talk2dino": {
        *("ablate", "train", "export", "evaluate_published", "quickstart", "retrieve"),
    },
    "ovsegmentor": {"pretrain", "prepare_captions", "convert"},
    "freeda": {"convert"},
}
"""Method -> the commands that are about it."""


def test_only_methods_and_their_own_commands_know_a_method_by_name(root):
    package = root / "src" / "talk2dino"
    modules = {path.stem for path in (package / "methods").iterdir()} - SHARED_BY_METHODS
    modules -= {"__init__", "__pycache__", "registry"}
    assert {"ovsegmentor", "talk2dino"} < modules
    for path in package.rglob("*.py"):
        place = path.relative_to(package).parts
        if place[0] in ("methods", "__init__.py"):
            continue
        text = path.read_text()
        own = {name for name in modules if path.stem in OWN_COMMANDS.get(name, ())}
        own = own if place[0] == "cli" else set()
        known = {n for n in modules - {"talk2dino"} if re.search(n, text, re.IGNORECASE)}
        # `talk2dino` is the package and Talk2DINO, on the page, the project; of the method:
        if re.search(r"methods\.talk2dino|Talk2Dino", text):
            known.add("talk2dino")
        if LAYER_OF[place[0].removesuffix(".py")] > LAYER_OF["methods"]:
            assert "Talk2D" not in text, f"{path} knows of Talk2DINO"
        assert known <= own, f"{path} knows of the methods {known - own}"


def test_nothing_imports_the_package_through_src(root):
    for path in [*root.glob("*.py"), *(root / "src").rglob("*.py")]:
        assert "src.talk2dino" not in path.read_text(), path


def test_importing_the_package_is_silent_and_loads_nothing(root):
    code = (
        "import sys; before = set(sys.modules); import talk2dino; "
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "foreign = loaded - set(sys.stdlib_module_names); "
        "assert foreign == {'talk2dino'} and len(loaded) < 40, loaded"
    )
    environment = {"PYTHONPATH": str(root / "src")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, env=environment, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_public_names_are_there():
    for name in talk2dino.__all__:
        assert getattr(talk2dino, name) is not None
    assert "Segmenter" in dir(talk2dino)
    modules = {path.stem for path in Path(talk2dino.__file__).parent.iterdir()}
    assert not modules & set(talk2dino.__all__), "a public name would hide a module"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        talk2dino.nothing  # noqa: B018


def test_the_published_import_works_from_a_checkout(root):
    code = (
        "from src.model import ProjectionLayer; import torch; "
        "layer = ProjectionLayer.from_config('configs/vitb_mlp_infonce.yaml'); "
        "layer.load_state_dict(dict(layer.state_dict())); "
        "print(tuple(layer.project_clip_txt(torch.zeros(3, 512)).shape))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=root, text=True, check=True
    )
    assert result.stdout.strip() == "(3, 768)"


def test_both_names_of_the_package_give_one_class(root):
    sys.path.insert(0, str(root))
    try:
        from src.model import ProjectionLayer
    finally:
        sys.path.remove(str(root))
    assert ProjectionLayer is talk2dino.ProjectionLayer


def test_published_weights_load_through_the_published_import(root, tmp_path):
    layer = talk2dino.ProjectionLayer.from_config(root / "configs" / "vitb_mlp_infonce.yaml")
    torch.save(layer.state_dict(), tmp_path / "vitb_mlp_infonce.pth")
    layer.load_state_dict(torch.load(tmp_path / "vitb_mlp_infonce.pth", weights_only=True))


def test_recipes_open_with_their_command_hardware_time_and_number(root):
    for path in (root / "configs").glob("*.yaml"):
        opening = path.read_text().split("\nmodel:")[0].lower()
        command = "pretrain --config" if path.name.startswith("ovsegmentor") else "train.py"
        for word in (command, "hardware", "time", "expect"):
            assert word in opening, f"{path.name} does not say its {word}"


@pytest.mark.parametrize("package", ["tests", "speed"])
def test_tests_and_measurements_use_the_package_beside_them(package, root, tmp_path):
    (tmp_path / "talk2dino").mkdir()
    (tmp_path / "talk2dino" / "__init__.py").touch()  # as an installation of another checkout
    again = "subprocess.check_output([sys.executable, '-c', 'import talk2dino as t; print(t)'])"
    code = f"import {package}, subprocess, sys, talk2dino as t; print(t, {again})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=environment
    )
    assert done.stdout.count(str(root / "src" / "talk2dino")) == 2, done.stderr
