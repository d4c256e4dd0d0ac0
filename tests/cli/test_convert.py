"""`python -m talk2dino convert`."""

import pytest
import torch

from talk2dino.__main__ import main
from talk2dino.methods.ovsegmentor.checkpoints import read_checkpoint, seeded_weights
from talk2dino.methods.ovsegmentor.config import get_preset


@pytest.fixture
def published(tmp_path):
    state = seeded_weights(get_preset("ovsegmentor_toy"), 0, "stage1")
    torch.save({"model": state | {"extra": torch.ones(1)}, "epoch": 3}, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def test_a_published_file_becomes_a_folder(tmp_path, published, capsys):
    command = ["convert", "ovsegmentor", str(published), str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "ovsegmentor_toy, stage1:" in printed.out
    assert "1 tensors that no ovsegmentor_toy has were left out: extra" in printed.err
    assert read_checkpoint(tmp_path / "out").config.name == "ovsegmentor_toy"
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ovsegmentor", "absent.pth", "out"], "absent.pth: no such checkpoint file"),
        (["groupvit", "a.pth", "out"], "invalid choice: 'groupvit'"),
        (["ovsegmentor", ".", "out"], ". is a folder, not a file"),
    ],
)
def test_wrong_arguments_are_named(published, capsys, arguments, message):
    arguments = [word.replace("{file}", str(published)) for word in arguments]
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
