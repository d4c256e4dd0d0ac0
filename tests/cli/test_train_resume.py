"""`train.py` stopped, killed, gone on with, and run by two processes."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from talk2dino.cli.train import Train
from talk2dino.features.store import write_features
from talk2dino.training import job
from tests.ranks import run_ranks

from .small_training import features, train, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_unfinished_training_is_not_overwritten_unasked(folder, capsys):
    (folder / "w.resume.pth").write_bytes(b"state")
    assert train("--out", "w.pth") == 2
    assert "unfinished training. Go on with --resume" in capsys.readouterr().err
    assert train("--out", "w.pth", "--resume") == 1  # that one is damaged
    assert "w.resume.pth is damaged" in capsys.readouterr().err
    assert train("--out", "w.pth", "--overwrite") == 0
    assert not (folder / "w.resume.pth").exists()


def test_an_interrupted_training_goes_on_where_it_was(folder, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("talk2dino.cli.train.step_bar", interrupting_bar(epoch=3))
        assert train() == 130
    captured = capsys.readouterr()
    assert "add --resume to the same command" in captured.err
    assert "epoch 2 " in captured.out
    assert train("--resume") == 0
    printed = capsys.readouterr().out
    assert "epoch 3 " in printed
    assert "epoch 2 " not in printed
    assert train("--out", "calm.pth") == 0
    assert (folder / "calm.pth").read_bytes() == (folder / "weights/recipe.pth").read_bytes()


def test_resuming_a_complete_training_does_nothing(folder, capsys):
    assert train("--resume") == 0  # nothing to resume: starts
    before = (folder / "weights/recipe.pth").read_bytes()
    capsys.readouterr()
    assert train("--resume") == 0
    assert "complete: nothing to resume" in capsys.readouterr().out
    assert (folder / "weights/recipe.pth").read_bytes() == before
    assert train("--resume", "--seed", "5") == 1
    assert "seed was 123, now 5" in capsys.readouterr().err


def test_resuming_under_other_settings_is_refused_and_names_them(folder, capsys, monkeypatch):
    unchecked = "talk2dino.methods.talk2dino.training.dataset.check_finite"
    monkeypatch.setattr(unchecked, lambda *args: None)  # or such features are refused at once
    broken = features()
    broken.caption_features["ann_feats"][3] = float("nan")
    write_features(broken, folder / "train.pth")
    assert train() == 1
    write_recipe(folder / "recipe.yaml", train={"lr": 0.5})
    capsys.readouterr()
    assert train("--resume", "--optimizer", "AdamW") == 1
    message = capsys.readouterr().err
    assert "optimizer was 'Adam', now 'AdamW'; train.lr was 0.01, now 0.5" in message


def test_an_epoch_that_was_shown_but_not_saved_is_in_the_curve_once(
    folder, monkeypatch, a_second_later
):
    save, flags = job.save_torch, ("--logger", "tensorboard")

    def dying(snapshot, path):
        if snapshot["state"]["epoch"] == 2:
            raise KeyboardInterrupt
        save(snapshot, path)

    with monkeypatch.context() as patch:
        patch.setattr(job, "save_torch", dying)
        assert train(*flags) == 130
    a_second_later()
    assert train(*flags, "--resume") == 0
    events = EventAccumulator(str(folder / "weights/recipe.tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3]


def run_and_die(flags, unfinished, seconds):
    """Resume in a process that SIGKILLs itself some seconds after its first saved state."""
    torch.set_num_threads(1)
    before = saved_at(unfinished)

    def die():
        pause = threading.Event()
        while saved_at(unfinished) == before:
            pause.wait(0.001)
        pause.wait(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    if seconds is not None:
        threading.Thread(target=die, daemon=True).start()
    sys.exit(Train.main([*flags, "--resume"]))


def saved_at(path):
    return path.stat().st_mtime_ns if path.exists() else None


def test_killed_at_random_moments_and_resumed_the_result_is_the_same(folder, fork_server):
    train = {"num_epochs": 10, "batch_size": 2, "lr": 0.001, "save_best_model": True}
    write_recipe(folder / "recipe.yaml", train=train)
    flags = ["--model", "recipe.yaml", "--train_dataset", "train.pth", "--val_dataset", "val.pth"]
    flags += ["--device", "cpu", "--checkpoint_seconds", "0", "--save_head_activations"]
    assert Train.main([*flags, "--out", "calm/w.pth"]) == 0
    unfinished = folder / "killed/w.resume.pth"
    moments, steps_at_death = random.Random(0), []
    for seconds in [*(moments.uniform(0.0, 0.2) for _ in range(5)), None]:
        arguments = ([*flags, "--out", "killed/w.pth"], unfinished, seconds)
        process = fork_server.Process(target=run_and_die, args=arguments)
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        steps_at_death.append(torch.load(unfinished)["state"]["step"])
    assert process.exitcode == 0
    assert sum(step > 0 for step in steps_at_death) >= 2  # killed within an epoch
    for name in ("w.pth", "w.losses.csv", "w.losses.png", "w.heads.json"):
        assert (folder / "killed" / name).read_bytes() == (folder / "calm" / name).read_bytes()
    calm, killed = ({p.name for p in (folder / name).iterdir()} for name in ("calm", "killed"))
    assert killed == calm  # nothing is left of the interrupted ones


def test_two_trainings_do_not_write_the_same_files(folder, capsys):
    pytest.importorskip("fcntl")
    Path("weights").mkdir(exist_ok=True)
    code = (
        "import fcntl; f = open('weights/recipe.lock', 'w'); fcntl.lockf(f, 6); "
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline()
        assert train() == 1
        holder.communicate(b"\n")
    assert "another process is at work on weights/recipe.lock" in capsys.readouterr().err
    assert train() == 0
    assert not Path("weights/recipe.lock").exists()


def test_resuming_on_a_dataset_that_was_replaced_is_refused(folder, capsys):
    assert train() == 0
    content = Path("train.pth").read_bytes()
    Path("train.pth").write_bytes(content + b" ")
    assert train("--resume") == 1
    assert "train_dataset_digest" in capsys.readouterr().err


def test_two_processes_go_on_to_what_one_would_write(
    folder, monkeypatch, fork_server, tmp_path_factory
):
    write_recipe(folder / "recipe.yaml", train={"num_epochs": 3, "batch_size": 7})
    flags = ["--val_dataset", "val.pth", "--test_dataset", "val.pth", "--save_head_activations"]
    assert train("--out", "one/w.pth", *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr("talk2dino.cli.train.step_bar", interrupting_bar(epoch=2))
        assert train("--out", "two/w.pth", *flags) == 130

    flags += ["--model", "recipe.yaml", "--train_dataset", "train.pth", "--device", "cpu"]
    flags += ["--out", "two/w.pth", "--resume"]
    logs = [tmp_path_factory.mktemp(name) for name in ("stopped", "done")]
    codes, said = run_ranks(fork_server, Train.main, [*flags, "--seed", "5"], 2, logs[0])
    assert all(codes)
    assert "seed was 123, now 5" in said[0]  # the first process finds it out
    codes, said = run_ranks(fork_server, Train.main, flags, 2, logs[1])
    assert codes == [0, 0], said
    assert said[0].count("epoch 3 ") == 1 and "epoch" not in said[1]  # only one prints
    one, two = ({p.name for p in (folder / name).iterdir()} for name in ("one", "two"))
    assert one == two
    weights, theirs = (torch.load(f"{name}/w.pth") for name in ("one", "two"))
    for name, value in weights.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-5)
    heads = [(folder / name / "w.heads.json").read_text() for name in ("one", "two")]
    assert heads[0] == heads[1]


def interrupting_bar(epoch):
    """Stands for the progress bar: Ctrl-C at the start of an epoch."""

    def bar(steps, number, total):
        if number == epoch:
            raise KeyboardInterrupt
        return steps

    return bar
