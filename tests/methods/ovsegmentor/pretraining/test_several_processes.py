"""Two processes take one process's step, and go on after an interruption to the same weights."""

import pytest
import torch

from talk2dino.methods.ovsegmentor.config import load_pretraining_recipe
from talk2dino.methods.ovsegmentor.pretraining.loop import PretrainingRun
from talk2dino.methods.ovsegmentor.text import Tokenizer, toy_tokenizer
from talk2dino.training.run import load_state
from tests.methods.ovsegmentor.conftest import make_batch, rows, seeded_toy
from tests.ranks import run_ranks

from .conftest import write_captions


def one_step(recipe, part):
    """Values, gradients, statistics and teacher of an optimiser step on some rows of a batch.

    Projectors are in training mode; there is no dropout, noise or statistic of one process.
    """
    model = seeded_toy("stage2")
    model.img_projector.train()
    model.text_projector.train()
    batch = make_batch(Tokenizer(toy_tokenizer(), 96), 6)
    run = PretrainingRun(model, recipe, [None] * 64)
    values = run.update([rows(batch, part)], [0], rate=1e-3)
    found = {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    teacher = {f"teacher {n}": p for n, p in model.img_encoder_momentum.named_parameters()}
    statistics = {f"buffer {n}": b for n, b in model.named_buffers() if "running" in n}
    return {"values": values, **found, **statistics, **teacher}


class Stop(Exception):
    pass


def run_and_stop(recipe, folder, processes):
    """An undisturbed run, and one that is stopped before its last step and goes on."""
    from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob
    from talk2dino.training.job import carry_out

    carry_out(PretrainingJob(recipe, folder / "whole", "cpu"), processes=processes)
    real, calls = PretrainingRun.update, []

    def step(self, *arguments):
        calls.append(None)
        if len(calls) == 3:
            raise Stop
        return real(self, *arguments)

    PretrainingRun.update = step
    stopped = PretrainingJob(recipe, folder / "stopped", "cpu", checkpoint_seconds=0)
    with pytest.raises(Stop):
        carry_out(stopped, processes=processes)
    if processes.rank == 0:  # the bridge's statistics are each process's own, and all are kept
        every = load_state(folder / "stopped" / "unfinished.pth")["every"]
        means = [own["bridge_projector.linear_hidden.1.running_mean"] for _, own in every]
        assert not torch.equal(*means)
    done = carry_out(
        PretrainingJob(recipe, folder / "stopped", "cpu", resume=True), processes=processes
    )
    assert processes.gather(len(done.state.records)) == [1, 1]


def work(folder):
    """What each process does."""
    from talk2dino.processes import joined_processes

    torch.set_num_threads(1)
    recipe = load_pretraining_recipe(folder / "tiny.yaml")
    with joined_processes() as processes:
        rank = processes.rank
        found = one_step(recipe, slice(3 * rank, 3 * rank + 3))
        every = processes.gather(found["values"].tolist())
        if rank == 0:
            found["values"] = torch.tensor(every).mean(dim=0)
            torch.save({n: v.detach() for n, v in found.items()}, folder / "two.pth")
        run_and_stop(recipe, folder, processes)


def test_two_processes_step_like_one_and_resume_exactly(fork_server, write_recipe, tmp_path):
    few = write_captions(tmp_path / "held_out", 4)
    held_out = {"metafile": str(few), "images": str(few.parent)}
    recipe = write_recipe(train={"batch_size": 2, "epochs": 1}, selection=held_out)
    codes, said = run_ranks(fork_server, work, tmp_path, 2, tmp_path)
    assert codes == [0, 0], said
    together = torch.load(tmp_path / "two.pth", weights_only=True)
    alone = one_step(load_pretraining_recipe(recipe), slice(None))
    assert together.keys() == alone.keys()
    gradients = [name for name in alone if name.startswith("gradient")]
    assert len(gradients) > 100
    largest = max(float(alone[name].abs().max()) for name in gradients)
    for name, value in alone.items():
        atol = 1e-4 * largest if name in gradients else 1e-5
        torch.testing.assert_close(
            together[name], value.detach(), rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in ("model.safetensors", "losses.csv"):
        whole, stopped = (tmp_path / run / name for run in ("whole", "stopped"))
        assert whole.read_bytes() == stopped.read_bytes()
