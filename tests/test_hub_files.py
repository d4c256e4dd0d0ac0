"""What other sites read of the checkout: PyTorch Hub, Spaces, citation tools, a notebook."""

import json
import re
import runpy

import pytest
import torch
import yaml

import talk2dino
from talk2dino import Talk2DINO


def test_pytorch_hub_finds_the_models(root):
    assert isinstance(torch.hub.load(str(root), "talk2dino", "toy", source="local"), Talk2DINO)
    other = torch.hub.load(str(root), "method", "clearclip_toy", source="local")
    assert callable(other.segment)


def test_the_hubs_notebook_runs_with_a_local_folder(root, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    folder = Talk2DINO.from_pretrained("toy", device="cpu").save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("TALK2DINO_MODEL", str(folder))
    monkeypatch.chdir(root / "notebooks")
    cells = json.loads((root / "notebooks" / "hf_demo.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "cup" in capsys.readouterr().out
    assert names["auto"].encode_text(["a cup"]).shape[0] == 1


def test_a_space_opens_the_page_to_everybody_with_the_chosen_model(root, monkeypatch):
    given = []
    monkeypatch.setattr("talk2dino.cli.app.App.main", lambda words: given.extend(words) or 0)
    monkeypatch.setenv("TALK2DINO_MODEL", "toy")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(root / "spaces" / "app.py"), run_name="__main__")
    assert given == ["--model", "toy", "--server_name", "0.0.0.0"]


def test_versions_and_citations_agree(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["version"] == talk2dino.__version__
    assert [paper["year"] for paper in citation["references"]] == [2025, 2023]
    front = yaml.safe_load((root / "spaces" / "README.md").read_text().split("---")[1])
    page = (root / "requirements-app.txt").read_text()
    assert f"gradio=={front['sdk_version']}\n" in page
    needed = (root / "spaces" / "requirements.txt").read_text()
    assert f"talk2dino-{talk2dino.__version__}-py3" in needed
    assert f"gradio=={front['sdk_version']}\n" in needed


def test_the_lock_has_every_pinned_package(root):
    locked = (root / "requirements.lock").read_text().lower().replace("_", "-")
    for name in ("requirements.txt", "requirements-app.txt"):
        for pin in re.findall(r"^([\w.-]+==[\w.]+)", (root / name).read_text(), re.MULTILINE):
            assert re.search(rf"^{re.escape(pin.lower().replace('_', '-'))}\b", locked, re.M), pin
