"""The worked examples of the documents: their edits fit the source, and their commands then run."""

import filecmp
import json
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest
import torch
from PIL import Image

from talk2dino.__main__ import main
from talk2dino.features.store import FeatureFile, read_features, write_features
from talk2dino.toy.world import WorldConfig, write_world

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = {
    "dino_extraction_v2.py": "extract",
    "text_features_extraction.py": "extract-text",
    "train.py": "train",
}
PAGES = ("change_the_loss", "add_a_backbone", "extending")


def sections(page):
    """The sections of a page with an edit: heading -> text."""
    parts = re.split(r"^## ", (DOCS / f"{page}.md").read_text(), flags=re.MULTILINE)[1:]
    return {text.splitlines()[0]: text for text in parts if "```diff" in text}


EXAMPLES = {heading: text for page in PAGES for heading, text in sections(page).items()}


@pytest.fixture
def tree(root, tmp_path):
    """A copy of what a checkout has that the examples use."""
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "configs"):
        shutil.copytree(root / name, tmp_path / name, ignore=skipped)
    for script in ("train.py", "dino_extraction_v2.py"):
        shutil.copy(root / script, tmp_path)
    return tmp_path


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def apply(tree, diff):
    """Make an edit, whose context must be found exactly once."""
    for part in re.split(r"^\+\+\+ ", diff, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        path = tree / name
        for hunk in body.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            text = path.read_text() if path.exists() else ""
            assert text.count(before) == 1 if before else not text, f"{name}: {before}"
            path.write_text(text.replace(before, after) if before else after)


def differing(one, other):
    """Files of `other` that `one` lacks or has with another content."""
    files = [p.relative_to(other) for p in other.rglob("*.py")]
    return [f for f in files if not ((one / f).exists() and filecmp.cmp(one / f, other / f, False))]


@pytest.fixture
def follow(root, tree, run_python):
    """Make the edits of a section, count them, and run its commands; returns what they print."""
    return lambda heading: _follow(heading, root, tree, run_python)


def _follow(heading, root, tree, run_python):
    text = EXAMPLES[heading]
    for diff in blocks(text, "diff"):
        apply(tree, diff)
    (count,) = re.findall(r"Source files that change: (\d)\.", text)
    changed = differing(root / "src", tree / "src")
    assert len(changed) == int(count)
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check", "-q"], ["format", "-q", "--check"]) if changed else ():
        words = [*ruff, *check, "--config", root / "pyproject.toml", *changed]
        subprocess.run(words, cwd=tree / "src", check=True)
    printed = ""
    for line in "".join(blocks(text, "bash")).splitlines():
        done = run_python(shlex.split(line)[1:], tree, tree / "src")
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed += done.stdout
    return printed


def write_quickstart(tree):
    """What `make quickstart` leaves, in little."""
    folder = tree / "quickstart"
    write_world(folder / "data", WorldConfig(train_images=2, val_images=1, evaluation_images=1))
    (folder / "features").mkdir()
    for seed, split in enumerate(("train", "val")):
        random = torch.Generator().manual_seed(seed)
        heads = torch.randn(8, 3, 192, generator=random)
        write_features(
            FeatureFile(
                images=[{"id": n, "file_name": f"{n}.jpg"} for n in range(8)],
                annotations=[{"id": n, "image_id": n, "caption": "a"} for n in range(8)],
                image_features={
                    "disentangled_self_attn": heads,
                    "avg_self_attn_out": heads.mean(dim=1),
                },
                caption_features={"ann_feats": torch.randn(8, 512, generator=random)},
            ),
            folder / "features" / f"{split}.pth",
        )


def test_every_edit_is_of_a_section_that_is_followed_here():
    source = Path(__file__).read_text()
    assert all(f'follow("{heading}"' in source for heading in EXAMPLES)


def test_a_new_loss_has_its_keys_in_the_recipe(follow, tree):
    write_quickstart(tree)
    follow("A new loss")
    settings = json.loads((tree / "weights" / "sigmoid.json").read_text())["settings"]
    found = {key: settings[f"train.{key}"] for key in ("ltype", "scale", "bias")}
    assert found == {"ltype": "sigmoid", "scale": 20.0, "bias": -10.0}


def test_a_new_alignment_trains_and_is_evaluated(follow, tree):
    write_quickstart(tree)
    follow("A new alignment strategy")
    settings = json.loads((tree / "weights" / "two.json").read_text())["settings"]
    assert settings["model.alignment_strategy"] == "two_closest"
    assert len(list((tree / "results").glob("toy_*.json"))) == 1


def test_another_vit_of_timm_needs_three_keys(follow, tree):
    write_quickstart(tree)
    follow("Another ViT of timm")
    (result,) = (tree / "results").glob("toy_*.json")
    assert json.loads(result.read_text())["settings"]["segmenter"]["mean"] == [0.5, 0.5, 0.5]


def test_a_short_name_is_known_to_the_extraction(follow, tree):
    write_quickstart(tree)
    follow("A short name")
    found = read_features(tree / "val_dino.pth").image_features
    assert found["avg_self_attn_out"].shape == (1, 384)


def test_a_vit_of_ones_own_is_known_to_the_extraction(follow, run_python, tree):
    write_quickstart(tree)
    follow("A ViT that timm does not have")
    found = read_features(tree / "val_micro.pth").image_features
    assert found["avg_self_attn_out"].shape == (1, 96)
    code = "from talk2dino.backbones.vision import normalisation as n; print(n('{}'))"
    done = run_python(["-c", code.format("vit_micro_patch16.mine")], tree, tree / "src")
    assert done.stdout.startswith("((0.45,")


def test_six_pictures_of_ones_own_are_evaluated_and_reported(root, tmp_path, run_python):
    text = (DOCS / "data_sets.md").read_text().split("## The keys")[0]
    (tmp_path / "mine.yaml").write_text(*blocks(text, "yaml"))
    printed = ""
    for line in "".join(blocks(text, "bash")).splitlines():
        done = run_python(shlex.split(line)[1:], tmp_path, root / "src")
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed += done.stdout
    assert "6 images, 6 labels" in printed and "1 of 1 benchmarks can be evaluated" in printed
    (result,) = (tmp_path / "results").glob("mine_*.json")
    content = json.loads(result.read_text())
    assert content["num_images"] == 6 and content["classes"][:3] == ["apple", "lemon", "heart"]
    assert content["settings"]["prompted"][2] == "heart; red heart"
    assert "mine" in (tmp_path / "results" / "report.html").read_text()


def test_a_projection_is_trained_on_after_another_and_compared(tmp_path, monkeypatch, capsys):
    """The page as it stands, with few pictures and epochs."""
    text = (DOCS / "own_training.md").read_text().replace("num_epochs: 25", "num_epochs: 1")
    monkeypatch.chdir(tmp_path)
    Path("photos.yaml").write_text(*blocks(text, "yaml"))
    for line in "".join(blocks(text, "bash")).splitlines():
        words = shlex.split(line.replace("--images 512", "--images 10"))[1:]
        if words[2] == "quickstart":
            words += ["--device", "cpu"]
        words = [found for word in words for found in sorted(glob(word)) or [word]]
        command = words[2:] if words[0] == "-m" else [SCRIPTS[words[0]], *words[1:]]
        assert main(command) == 0, f"{line}\n{capsys.readouterr().err}"
    settings = json.loads(Path("weights/photos.json").read_text())["settings"]
    assert settings["model.starting_checkpoint"] == "world0/weights/toy.pth"
    assert "points of mIoU, 95 % interval" in capsys.readouterr().out
    (old,) = Path("after").glob("toy_*.json")
    assert json.loads(old.read_text())["num_images"] == 1


def test_pictures_are_labelled_for_other_programs(root, tmp_path, run_python):
    write_world(tmp_path / "mine", WorldConfig(train_images=1, val_images=1, evaluation_images=2))
    text = (DOCS / "data_sets.md").read_text().split("## Into other programs")[1]
    for line in "".join(blocks(text, "bash")).splitlines():
        done = run_python(shlex.split(line)[1:], tmp_path, root / "src")
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    content = json.loads((tmp_path / "first" / "coco.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["apple", "lemon", "grass"]
    assert len(content["images"]) == 2 and content["annotations"]
    tasks = json.loads((tmp_path / "second" / "labelstudio.json").read_text())
    assert {m["from_name"] for task in tasks for m in task["predictions"][0]["result"]} == {"tag"}
    assert list((tmp_path / "third" / "masks").glob("*/00?_*.png"))


def test_the_smallest_method_is_evaluated_and_segments(follow, root, tree):
    write_quickstart(tree)
    shutil.copytree(root / "assets", tree / "assets")
    assert "luma" in follow("The smallest one")
    assert Image.open(tree / "coffee_luma.png").size[0] >= 600
