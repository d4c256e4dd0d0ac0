"""Fixtures of the tests of `train.py`."""

import pytest
import torch

from talk2dino.features.store import write_features

from .small_training import features, write_recipe


@pytest.fixture
def one_thread():
    """PyTorch computes with one thread: the same numbers in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with recipe.yaml, train.pth and val.pth."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml")
    for seed, name in enumerate(("train", "val")):
        write_features(features(seed), tmp_path / f"{name}.pth")
    return tmp_path
