"""The state file of an unfinished training."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from talk2dino.methods.talk2dino.training.loop import KIND, TrainingState
from talk2dino.training.run import StateFile, load_state


def save(size: int, path: Path) -> None:
    state = asdict(TrainingState(epoch=1, records=[{"epoch": 1, "train_loss": 0.5}]))
    StateFile(path, {"lr": 1}).save(
        {"kind": KIND, "state": state, "weights": {"w": torch.ones(size)}}
    )


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_full_disk_is_named_and_the_previous_state_stays(tmp_path):
    import resource

    path = tmp_path / "w.resume.pth"
    save(4, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # every larger write fails
    try:
        with pytest.raises(OSError, match=r"could not write the file .*w\.resume\.pth"):
            save(100_000, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(load_state(path, KIND)["weights"]["w"]) == 4
    assert os.listdir(tmp_path) == ["w.resume.pth"]


def test_a_state_without_anything_special_comes_back(tmp_path):
    save(3, tmp_path / "s.pth")
    loaded = load_state(tmp_path / "s.pth", KIND)
    state = TrainingState(**loaded["state"])
    assert vars(state) == vars(TrainingState(epoch=1, records=[{"epoch": 1, "train_loss": 0.5}]))
    assert loaded["settings"] == {"lr": 1}
