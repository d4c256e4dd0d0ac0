"""The state file of an unfinished training."""

import os
from pathlib import Path

import pytest
import torch

from talk2dino.methods.talk2dino.training.state import (
    Checkpoint,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint(TrainingState(epoch=1), {"w": torch.ones(size)}, {}, {"lr": 1})


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_full_disk_is_named_and_the_previous_state_stays(tmp_path):
    import resource

    path = tmp_path / "w.resume.pth"
    save_checkpoint(checkpoint(4), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # every larger write fails
    try:
        with pytest.raises(OSError, match=r"could not write the file .*w\.resume\.pth"):
            save_checkpoint(checkpoint(100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(load_checkpoint(path).weights["w"]) == 4
    assert os.listdir(tmp_path) == ["w.resume.pth"]


def test_a_state_without_anything_special_comes_back(tmp_path):
    save_checkpoint(checkpoint(3), tmp_path / "s.pth")
    loaded = load_checkpoint(tmp_path / "s.pth")
    assert vars(loaded.state) == vars(TrainingState(epoch=1))
    assert loaded.settings == {"lr": 1}
