"""What is said where the library of the text encoders is missing."""

import importlib.util

import pytest

from talk2dino.backbones import seeded
from talk2dino.cli.pretrain import Pretrain


def test_without_transformers_a_pretraining_ends_before_it_begins(
    root, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seeded, "find_spec", lambda name: None)
    assert importlib.util.find_spec("transformers") is not None  # only hidden
    recipe = root / "configs" / "ovsegmentor_toy_stage1.yaml"
    assert Pretrain.main(["--config", str(recipe)]) != 0
    assert "OVSegmentor needs transformers: pip install transformers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_with_transformers_nothing_is_said():
    seeded.require_transformers("BERT")
    with (
        pytest.raises(ImportError, match="pip install transformers"),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(seeded, "find_spec", lambda name: None)
        seeded.require_transformers("BERT")
