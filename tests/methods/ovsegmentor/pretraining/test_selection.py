"""Held-out captions: what is wrong with them is said before the first step."""

import pytest
import torch

from talk2dino.methods.ovsegmentor.pretraining import job as jobs
from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob, first_tokenizer, pretrain
from talk2dino.methods.ovsegmentor.pretraining.selection import HeldOut
from talk2dino.processes import Processes

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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_held_out_image_that_cannot_be_read_ends_the_run_before_its_first_step(
    held_out, tmp_path, monkeypatch, workers
):
    recipe = held_out(5, broken=[3])
    monkeypatch.setattr(jobs, "first_model", lambda _: pytest.fail("a model was made"))
    with pytest.raises(RuntimeError, match=r"^a held-out image: 3\.png: "):
        pretrain(PretrainingJob(recipe, tmp_path / "out", "cpu", workers=workers))


def test_a_held_out_image_that_breaks_later_ends_the_run(held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(HeldOut, "check_images", lambda self: None)
    with pytest.raises(RuntimeError, match=r"a held-out image: 3\.png: "):
        pretrain(PretrainingJob(held_out(4, broken=[3]), tmp_path / "out", "cpu"))


class Parts(Processes):
    """One of several processes, of which the others find nothing wrong."""

    def gather(self, value):
        return [value if rank == self.rank else "" for rank in range(self.count)]


def test_processes_divide_the_held_out_images(held_out):
    recipe = held_out(5, broken=[0, 4])
    tokenizer = first_tokenizer(recipe)
    before = torch.get_rng_state()
    said = []
    for rank in range(3):
        try:
            HeldOut(recipe, tokenizer, Parts(rank, 3), 0).check_images()
        except RuntimeError as error:
            said.append((rank, str(error).split(": ")[1]))
    assert said == [(0, "0.png"), (1, "4.png")]
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_with_several_captions_is_read_once(held_out, monkeypatch):
    recipe = held_out(4)
    held = HeldOut(recipe, first_tokenizer(recipe), Processes(), 0)
    read = []
    rows = held.samples.rows
    monkeypatch.setattr(rows, "name", lambda row: f"{row // 2}.png")
    real = rows.source
    monkeypatch.setattr(rows, "source", lambda row: read.append(row) or real(row))
    held.check_images()
    assert read == [0, 2]


def test_fewer_held_out_captions_than_processes_are_counted(held_out):
    recipe = held_out(2)
    message = r"captions\.json holds 2 captions that can be used; at least 3 are needed"
    with pytest.raises(ValueError, match=message):
        HeldOut(recipe, first_tokenizer(recipe), Processes(0, 3), 0)
