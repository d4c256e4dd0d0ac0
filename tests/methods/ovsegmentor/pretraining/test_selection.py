"""Held-out captions: what is wrong with them is said before the first step."""

from pathlib import Path

import pytest
import torch

from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob
from talk2dino.processes import Processes
from talk2dino.progress import silent
from talk2dino.training.job import carry_out

from .conftest import write_captions


@pytest.fixture
def held_out(tmp_path, make_recipe):
    """Make a recipe with so many held-out captions, of which some images are broken."""

    def make(count, broken=()):
        path = write_captions(tmp_path / "held_out", count)
        for number in broken:
            (path.parent / f"{number}.png").write_bytes(b"broken")
        return make_recipe(
            selection={"metafile": str(path), "images": str(path.parent), "batch_size": 2},
            train={"epochs": 1},
        )

    return make


def test_a_held_out_image_that_cannot_be_read_ends_the_run_before_its_first_step(
    held_out, tmp_path
):
    recipe = held_out(4, broken=[3])
    with pytest.raises(RuntimeError, match=r"^a held-out image: 3\.png: "):
        carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu"))
    assert not (tmp_path / "out" / "unfinished.pth").exists()


def open_job(recipe, processes):
    PretrainingJob(recipe, Path("out"), "cpu").open(torch.device("cpu"), processes, silent)


class Parts(Processes):
    """One of two processes, of which the other found a broken image."""

    def gather(self, value):
        return [value, (0.0, [("7.png", "broken")])]


def test_every_process_stops_for_a_held_out_image_of_another(held_out):
    recipe = held_out(4)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"a held-out image: 7\.png: broken"):
        open_job(recipe, Parts(0, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_held_out_captions_than_processes_are_counted(held_out):
    recipe = held_out(2)
    message = r"captions\.json holds 2 captions that can be used; at least 3 are needed"
    with pytest.raises(ValueError, match=message):
        open_job(recipe, Processes(0, 3))
