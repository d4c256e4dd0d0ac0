"""The README is code: its commands parse or run, its links and its file tree are true."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from speed.run import names_of
from talk2dino.__main__ import COMMANDS, find_command
from talk2dino.cli.evaluate_published import EvaluatePublished
from talk2dino.features.store import read_features
from talk2dino.methods.talk2dino.projection import ProjectionConfig, load_projection
from talk2dino.methods.talk2dino.recipe import FeatureConfig, TrainConfig
from tests.house import drawing

README = Path(__file__).parents[1] / "README.md"
PAGES = [
    *(README.parent / name for name in ("README.md", "CONTRIBUTING.md", "weights/README.md")),
    *(README.parent / "docs").glob("*.md"),
]
SCRIPTS = {
    "dino_extraction_v2.py": "extract",
    "text_features_extraction.py": "extract-text",
    "train.py": "train",
    "demo.py": "segment",
    "app.py": "app",
    "convert_dataset/convert_coco.py": "convert-coco",
}
TREE = re.compile(r"^([\w./]+)\s{2,}\S", re.MULTILINE)


def code_blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def command_lines():
    lines = []
    for page in PAGES:
        for block in code_blocks("bash", page):
            lines += [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line and not line.startswith("#")})


def parse(line):
    """The command with its flags, or a failure that shows the line."""
    script, *rest = shlex.split(line)[1:]
    if script == "-m" and rest[0] == "torch.distributed.run":
        assert rest[1] == "src/open_vocabulary_segmentation/main.py"
        return EvaluatePublished.parse(rest[2:])
    if script == "-m":
        _, name, *rest = [script, *rest][1:]
    else:
        name = SCRIPTS[script]
    return find_command(name).parse(rest)


def test_every_command_is_known_and_its_flags_parse(root):
    targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE)
    lines = command_lines()
    assert len(lines) > 10
    for line in lines:
        while re.match(r"[A-Z]+=\S+ ", line):  # variables before the command
            line = line.split(" ", 1)[1]
        program = line.split()[0]
        if program == "make":
            assert line.split()[1] in targets, line
        elif line.startswith("python -c"):
            continue  # run by test_python_one_liners_are_valid
        elif " -m pytest " in line or " -m tests." in line:
            for word in re.findall(r"tests/\S+", line):
                assert (root / word).exists(), line
        elif line.startswith("python speed/run.py "):
            assert names_of([line.split()[2]], "cpu")
        elif program in ("python", ".venv/bin/python"):
            parse(line)
        elif program == "pip":
            for name in re.findall(r"-r (\S+)", line):
                assert (root / name).is_file(), line
        else:
            assert program in ("python3", "source", "sha256sum", "git", "docker", "hf"), (
                f"unknown program in {line!r}"
            )


def test_python_one_liners_are_valid():
    for line in command_lines():
        if line.startswith("python -c"):
            compile(shlex.split(line)[2], "README", "exec")


@pytest.mark.parametrize("block", [b for page in PAGES for b in code_blocks("python", page)])
def test_python_examples_run_and_their_comments_are_true(block, root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    for expression, comment in re.findall(r"^(.+?)  # (\([\d, ]+\))", block, re.MULTILINE):
        name, _, value = expression.partition(" = ")
        found = eval(name if value else expression, names)
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else tuple(found)
        assert shape == eval(comment), expression


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, f"{page.name} links to {target}"


def test_every_source_file_that_a_page_names_exists(root):
    files = [path.relative_to(root).as_posix() for path in (root / "src").rglob("*.py")]
    for page in PAGES:
        text = re.sub(r"```diff.*?```", "", page.read_text(), flags=re.DOTALL)
        for name in re.findall(r"`([\w/]+/\w+\.py)`", text):
            known = (root / name).exists() or any(file.endswith(f"/{name}") for file in files)
            assert known, f"{page.name} names {name}"


def test_the_file_tree_is_true(root):
    page = (root / "docs" / "architecture.md").read_text()
    section = page.split("## The tree")[1].split("```")[1]
    names = [line.split()[0] for line in section.splitlines() if line.strip()]
    assert len(names) > 8
    for name in names:
        assert (root / name).exists(), name
    for script in root.glob("*.py"):
        assert script.name in names


def test_the_drawing_of_the_house_is_that_of_the_code(root):
    assert f"```mermaid\n{drawing()}\n```" in (root / "docs" / "architecture.md").read_text()


def test_the_readme_is_short_and_the_index_has_every_page(root):
    assert len(README.read_text().splitlines()) <= 150
    index = (root / "docs" / "README.md").read_text()
    for page in (root / "docs").glob("*.md"):
        assert f"({page.name}" in index or page.name == "README.md", page.name


def test_every_key_of_a_recipe_is_described_with_its_default(root):
    page = (root / "docs" / "training.md").read_text()
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| `")]
    described = {
        key: default
        for keys, defaults, *_ in (row for row in rows if len(row) > 2)
        for key, default in zip(
            re.findall(r"`(\w+)`", keys), itertools.cycle(defaults.split(", ")), strict=False
        )
    }
    known = [ProjectionConfig(), TrainConfig(), TrainConfig(ltype="triplet"), FeatureConfig()]
    defaults = {k: v for config in known for k, v in vars(config).items() if k != "loss"}
    defaults |= known[1].loss | known[2].loss | {"ltype": "infonce"}
    assert set(defaults) <= set(described)
    for key, value in defaults.items():
        assert yaml.safe_load(described[key].strip("`")) == value, key


def test_the_entry_point_lists_every_script():
    assert set(SCRIPTS.values()) <= set(COMMANDS)


@pytest.fixture
def coco(tmp_path, photos, monkeypatch, root):
    """A checkout-like folder with a small COCO 2014 beside it, as the README's lines expect."""
    from PIL import Image

    for split, names in {
        "train": ["astronaut", "coffee", "chelsea"],
        "val": ["coffee", "chelsea"],
    }.items():
        folder = tmp_path / "coco" / f"{split}2014"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number, name in enumerate(names):
            file_name = f"COCO_{split}2014_{number:012d}.jpg"
            Image.open(photos / f"{name}.png").convert("RGB").save(folder / file_name)
            images.append({"id": number, "file_name": file_name})
            for i in range(2):
                caption = {"id": 10 * number + i, "image_id": number, "caption": f"a {name} {i}"}
                annotations.append(caption)
        content = {"images": images, "annotations": annotations}
        path = tmp_path / "coco" / f"captions_{split}2014.json"
        path.write_text(json.dumps(content))
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(root / "configs", checkout / "configs")
    monkeypatch.chdir(checkout)
    return checkout


def test_the_five_published_lines_work_as_written(coco):
    section = README.read_text().split("\n## Train\n")[1]
    lines = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].strip().splitlines()
    assert len(lines) == 5
    # Only the weights are replaced: nothing can be downloaded here.
    weights = {"Extract": " --vision_weights seeded:0", "ExtractText": " --text_weights seeded:0"}
    for line in lines:
        command = parse(line + weights.get(type(parse(line)).__name__, ""))
        assert not command.run(command.check()), line
    features = read_features(coco.parent / "coco2014_b14" / "train.pth")
    assert features.image_features["disentangled_self_attn"].shape == (3, 12, 768)
    assert features.image_features["avg_self_attn_out"].shape == (3, 768)
    assert features.caption_features["ann_feats"].shape == (6, 512)
    load_projection("configs/vitb_mlp_infonce.yaml", coco / "weights" / "vitb_mlp_infonce.pth")
