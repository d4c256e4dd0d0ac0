"""What the project promises as a whole: layers, silent import, public names, published code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import talk2dino

ROWS = [
    {
        *("autoload", "config", "devices", "files", "attention"),
        *("templates", "seeded", "checkpoints", "processes"),
    },
    {
        *("vision", "text", "projection", "alignment", "losses"),
        *("background", "pamr", "pamr_bags", "pamr_triton", "images", "drawing", "metrics"),
    },
    {"features", "inference", "segmenter_config", "segmentation", "vocabularies"},
    {"segmenter", "ovsegmentor", "training"},
    {"benchmarks", "group_maps", "toy", "published_methods"},
    {"hub"},
    {"registry"},
    {"api"},
    {"app", "export", "huggingface"},
    {"cli"},
    {"__main__"},
]
# Inside one row, these may use the module beside them that they are built on.
SIDEWAYS = {
    ("devices", "config"),
    ("templates", "config"),
    ("checkpoints", "files"),
    ("projection", "alignment"),
    ("pamr", "pamr_bags"),
    ("pamr", "pamr_triton"),
    ("ovsegmentor", "training"),
}


def row_of(name: str) -> int:
    for index, names in enumerate(ROWS):
        if name in names:
            return index
    raise AssertionError(f"talk2dino.{name} has no row: add it to ROWS and to the design")


def imported_modules(path: Path) -> set[str]:
    """First name below talk2dino of everything a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("talk2dino."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            names |= {p[1] for p in parts if p[0] == "talk2dino" and len(p) > 1}
    return names


def test_modules_import_only_from_lower_rows(root):
    package = root / "src" / "talk2dino"
    for path in package.rglob("*.py"):
        importer = path.relative_to(package).with_suffix("").parts[0]
        if importer == "__init__":
            continue
        for imported in imported_modules(path):
            allowed = (
                imported == importer
                or (importer, imported) in SIDEWAYS
                or row_of(imported) < row_of(importer)
            )
            assert allowed, f"{path.relative_to(root)} imports talk2dino.{imported}"


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
