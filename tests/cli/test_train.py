"""`train.py` as a user calls it: what it writes, what it refuses, and going on after a kill."""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from talk2dino.cli import train as train_command
from talk2dino.cli.train import main
from talk2dino.features.store import FeatureFile, read_features, write_features
from talk2dino.projection import load_projection

RECIPE = {
    "model": {"dino_embed_dim": 6, "clip_embed_dim": 64, "num_attn_head": 3, "hidden_layer": 1},
    "train": {"lr": 0.01, "num_epochs": 3, "batch_size": 8, "save_best_model": False},
}


@pytest.fixture(autouse=True)
def one_thread():
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


def features(seed=0, images=8, per_image=3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(images).repeat_interleave(per_image)
    heads = torch.randn(images, 3, 6, generator=generator)
    to_text = torch.randn(6, 64, generator=torch.Generator().manual_seed(99))
    return FeatureFile(
        images=[{"id": n, "file_name": f"{n}.jpg"} for n in range(images)],
        annotations=[
            {"id": 50 + n, "image_id": int(row), "caption": "a"} for n, row in enumerate(rows)
        ],
        image_features={
            "disentangled_self_attn": heads,
            "avg_self_attn_out": heads.mean(dim=1),
        },
        caption_features={"ann_feats": heads.mean(dim=1)[rows] @ to_text},
    )


def write_recipe(path, **sections):
    content = {name: {**RECIPE[name], **sections.get(name, {})} for name in RECIPE}
    path.write_text(
        yaml.safe_dump({**content, **{k: v for k, v in sections.items() if k not in content}})
    )


def train(*flags):
    return main(
        ["--model", "recipe.yaml", "--train_dataset", "train.pth", "--device", "cpu", *flags]
    )


def test_a_training_writes_weights_losses_plot_and_summary(folder, capsys):
    code = train("--val_dataset", "val.pth", "--test_dataset", "val.pth", "--warmup", "2")
    assert code == 0
    printed = capsys.readouterr().out
    assert "epoch 3/3  train " in printed
    assert "text to image: R@1 " in printed
    assert "weights/recipe.pth" in printed
    names = ["recipe.json", "recipe.losses.csv", "recipe.losses.png", "recipe.pth"]
    assert sorted(p.name for p in (folder / "weights").iterdir()) == names
    load_projection("recipe.yaml", "weights/recipe.pth")  # strict
    rows = list(csv.DictReader((folder / "weights/recipe.losses.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    assert all(row["val_loss"] for row in rows)
    summary = json.loads((folder / "weights/recipe.json").read_text())
    assert summary["command"] == (
        "python train.py --model recipe.yaml --train_dataset train.pth --val_dataset val.pth "
        "--test_dataset val.pth --warmup 2 --device cpu"
    )
    assert summary["settings"]["warmup"] == 2
    assert summary["settings"]["train.lr"] == 0.01
    assert summary["retrieval"]["text_to_image"]["queries"] == 24
    with Image.open("weights/recipe.losses.png") as plot:
        assert plot.width > 100


def test_the_published_flag_name_and_pedix_choose_the_weights(folder):
    assert (
        main(
            [
                "--model_config",
                "recipe.yaml",
                "--train_dataset",
                "train.pth",
                "--name_pedix",
                "mine",
            ]
        )
        == 0
    )
    assert (folder / "weights/recipe_mine.pth").is_file()


def test_weights_are_not_overwritten_unasked(folder, capsys):
    (folder / "weights").mkdir()
    (folder / "weights/recipe.pth").write_bytes(b"precious")
    assert train() == 2
    message = capsys.readouterr().err
    assert "weights/recipe.pth exists already" in message
    assert all(flag in message for flag in ("--out", "--overwrite", "--resume"))
    assert (folder / "weights/recipe.pth").read_bytes() == b"precious"
    assert train("--overwrite") == 0
    load_projection("recipe.yaml", "weights/recipe.pth")


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
        patch.setattr(train_command, "step_bar", interrupting_bar(epoch=3))
        assert train() == 130
    captured = capsys.readouterr()
    assert "add --resume to the same command" in captured.err
    assert "epoch 2/3" in captured.out
    assert train("--resume") == 0
    printed = capsys.readouterr().out
    assert "epoch 3/3" in printed
    assert "epoch 2/3" not in printed
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


def test_a_loss_that_is_not_a_number_exits_1_and_keeps_the_state(folder, capsys):
    broken = features()
    broken.caption_features["ann_feats"][3] = float("nan")
    write_features(broken, folder / "train.pth")
    assert train() == 1
    message = capsys.readouterr().err
    assert "epoch 1, step " in message
    assert "the loss is nan" in message
    assert "weights/recipe.resume.pth" in message
    assert not (folder / "weights/recipe.pth").exists()
    assert (folder / "weights/recipe.resume.pth").is_file()


def test_resuming_under_other_settings_is_refused_and_names_them(folder, capsys):
    broken = features()
    broken.caption_features["ann_feats"][3] = float("nan")
    write_features(broken, folder / "train.pth")
    assert train() == 1
    write_recipe(folder / "recipe.yaml", train={"lr": 0.5})
    capsys.readouterr()
    assert train("--resume", "--optimizer", "AdamW") == 1
    message = capsys.readouterr().err
    assert "optimizer was 'Adam', now 'AdamW'; train.lr was 0.01, now 0.5" in message


def test_head_activations_name_image_and_head_of_every_caption(folder):
    assert train("--save_head_activations") == 0
    chosen = json.loads((folder / "weights/recipe.heads.json").read_text())
    stored = read_features("train.pth")
    assert list(chosen) == [str(a["id"]) for a in stored.annotations]
    for annotation in stored.annotations:
        entry = chosen[str(annotation["id"])]
        assert entry["image_id"] == annotation["image_id"]
        assert entry["head"] in (0, 1, 2)
    assert len({entry["head"] for entry in chosen.values()}) > 1


def test_training_starts_from_a_checkpoint(folder):
    assert train("--out", "first.pth") == 0
    write_recipe(
        folder / "recipe.yaml",
        model={"starting_checkpoint": "first.pth"},
        train={"lr": 1e-12, "num_epochs": 1},
    )
    assert train("--out", "second.pth") == 0
    first, second = (torch.load(f"{name}.pth") for name in ("first", "second"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-9)


def test_the_best_weights_are_kept_and_named(folder, capsys):
    write_recipe(folder / "recipe.yaml", train={"save_best_model": True})
    assert train("--val_dataset", "val.pth") == 0
    assert "kept the weights of epoch " in capsys.readouterr().out


def test_feature_shards_train_like_the_feature_file(folder):
    from talk2dino.features.shards import shard_paths, write_shards

    (folder / "tars").mkdir()
    write_shards(features(0), shard_paths(folder / "tars", 30))  # some are empty
    assert train("--out", "file.pth") == 0
    for number, source in enumerate(("tars", "tars/shard{00000..00029}.tar")):
        out = f"tars{number}.pth"
        assert main(["--model", "recipe.yaml", "--train_dataset", source, "--out", out]) == 0
        assert (folder / out).read_bytes() == (folder / "file.pth").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer", "SGD"], "unknown optimizer 'SGD'. Known: Adam, AdamW"),
        (["--scheduler", "step"], "unknown scheduler 'step'. Known: linear, cosine"),
        (["--logger", "wand"], "unknown logger 'wand'"),
        (["--logger", "tensorboard", "--use_wandb"], "--use_wandb contradicts --logger"),
        (["--feature_name", "dino"], "unknown image feature (--feature_name) 'dino'"),
        (["--text_features", "ann_feat"], "Did you mean 'ann_feats'?"),
        (["--text_features", "clip_second_last_out"], "CLIPLastLayer is the one"),
        (["--val_dataset", "vall.pth"], "vall.pth: no such file or folder"),
        (["--out", "w.bin"], "must end in .pth"),
        (["--out", "train.pth/w.pth"], "is a file, so the folder"),
        (["--overwrite", "--resume"], "pass one of them"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--warmup", "-3"], "--warmup must not be negative"),
        (
            ["--save_head_activations", "--feature_name", "avg_self_attn_out"],
            "--save_head_activations needs alignment_strategy: max_score",
        ),
    ],
)
def test_wrong_arguments_exit_2_before_anything_is_written(folder, capsys, flags, message):
    assert train(*flags) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == ["recipe.yaml", "train.pth", "val.pth"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused(folder, capsys):
    assert train("--device", "cuda") == 2
    assert "PyTorch sees no cuda device here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"hiden_layer": 1}}, "unknown key 'hiden_layer'. Did you mean 'hidden_layer'?"),
        ({"trian": {}}, "unknown section 'trian'"),
        ({"model": {"model_class": "Projection"}}, "unknown model_class 'Projection'. Known: "),
        ({"model": {"alignment_strategy": "max"}}, "unknown alignment_strategy 'max'"),
        ({"train": {"ltype": "contrastive"}}, "unknown loss (ltype) 'contrastive'"),
        ({"train": {"save_best_model": True}}, "Pass --val_dataset"),
        ({"model": {"starting_checkpoint": "no.pth"}}, "starting_checkpoint: no.pth: no such file"),
    ],
)
def test_a_wrong_recipe_exits_2_and_names_what_is_wrong(folder, capsys, sections, message):
    write_recipe(folder / "recipe.yaml", **sections)
    assert train() == 2
    assert message in capsys.readouterr().err


def test_a_recipe_or_dataset_that_is_not_there_is_named(folder, capsys):
    assert main(["--model", "no.yaml", "--train_dataset", "train.pth"]) == 2
    assert "no.yaml: no such configuration file" in capsys.readouterr().err
    assert main(["--model", "recipe.yaml", "--train_dataset", "no.pth"]) == 2
    assert "no.pth: no such file" in capsys.readouterr().err


def test_a_recipe_for_another_backbone_names_both_widths(folder, capsys):
    write_recipe(folder / "recipe.yaml", model={"dino_embed_dim": 768})
    assert train() == 1
    message = capsys.readouterr().err
    assert "recipe.yaml says dino_embed_dim: 768" in message
    assert "train.pth" in message
    assert "have 6" in message


def test_missing_text_features_name_the_command(folder, capsys):
    without = features()
    del without.caption_features["ann_feats"]
    write_features(without, folder / "train.pth")
    assert train() == 1
    message = capsys.readouterr().err
    assert "train.pth holds no 'ann_feats'" in message
    assert "python text_features_extraction.py --ann_path train.pth" in message


def test_a_starting_checkpoint_that_does_not_fit_names_the_keys(folder, capsys):
    torch.save({"linear_layer.weight": torch.ones(6, 64)}, folder / "start.pth")
    write_recipe(folder / "recipe.yaml", model={"starting_checkpoint": "start.pth"})
    assert train() == 1
    assert "missing keys: linear_layer.bias" in capsys.readouterr().err


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
    sys.exit(main([*flags, "--resume"]))


def saved_at(path):
    return path.stat().st_mtime_ns if path.exists() else None


def test_killed_at_random_moments_and_resumed_the_result_is_the_same(folder):
    train = {"num_epochs": 25, "batch_size": 2, "lr": 0.001, "save_best_model": True}
    write_recipe(folder / "recipe.yaml", train=train)
    flags = ["--model", "recipe.yaml", "--train_dataset", "train.pth", "--val_dataset", "val.pth"]
    flags += ["--device", "cpu", "--checkpoint_seconds", "0", "--save_head_activations"]
    assert main([*flags, "--out", "calm/w.pth"]) == 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["talk2dino.cli.train", "talk2dino.training.job"])
    unfinished = folder / "killed/w.resume.pth"
    moments, steps_at_death = random.Random(0), []
    for seconds in [*(moments.uniform(0.0, 0.2) for _ in range(8)), None]:
        arguments = ([*flags, "--out", "killed/w.pth"], unfinished, seconds)
        process = context.Process(target=run_and_die, args=arguments)
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        steps_at_death.append(torch.load(unfinished)["state"]["step"])
    assert process.exitcode == 0
    assert sum(step > 0 for step in steps_at_death) >= 3  # killed within an epoch
    for name in ("w.pth", "w.losses.csv", "w.losses.png", "w.heads.json"):
        assert (folder / "killed" / name).read_bytes() == (folder / "calm" / name).read_bytes()
    calm, killed = ({p.name for p in (folder / name).iterdir()} for name in ("calm", "killed"))
    assert killed == calm  # nothing is left of the interrupted ones


def test_the_help_shows_an_example_and_refuses_short_forms(capsys):
    assert main(["--help"]) == 0
    assert "python train.py --model configs/vitb_mlp_infonce.yaml" in capsys.readouterr().out
    assert main(["--mod", "recipe.yaml", "--train_dataset", "train.pth"]) == 2


def test_declaring_the_flags_does_not_import_torch():
    code = (
        "import sys, talk2dino.cli.train as t; t.COMMAND.parser(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_made_the_features_is_recorded_and_differences_are_warned_of(folder, caplog):
    stored = read_features("train.pth", mmap=False)
    stored.settings["vision"] = {"model": "toy", "weights": "seeded:4", "resize_dim": 224}
    write_features(stored, "made.pth")
    arguments = ["--model", "recipe.yaml", "--train_dataset", "made.pth", "--out", "made_w.pth"]
    assert main(arguments) == 0
    summary = json.loads(Path("made_w.json").read_text())
    assert summary["trained_on"]["vision"]["weights"] == "seeded:4"
    for part in ("vision model is toy", "vision weights is seeded:4", "resize_dim is 224"):
        assert part in caplog.text


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


def test_two_processes_go_on_to_what_one_would_write(folder, root, monkeypatch):
    write_recipe(folder / "recipe.yaml", train={"num_epochs": 3, "batch_size": 7})
    flags = ["--val_dataset", "val.pth", "--test_dataset", "val.pth", "--save_head_activations"]
    assert train("--out", "one/w.pth", *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "step_bar", interrupting_bar(epoch=2))
        assert train("--out", "two/w.pth", *flags) == 130

    def together(*more):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2", str(root / "train.py"), "--model", "recipe.yaml"]
        command += ["--train_dataset", "train.pth", "--device", "cpu", "--out", "two/w.pth"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *flags, *more], capture_output=True, text=True, env=environment
        )

    stopped = together("--resume", "--seed", "5")  # the first process finds it out
    assert stopped.returncode != 0
    assert "seed was 123, now 5" in stopped.stderr
    done = together("--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3") == 1  # only one process prints
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


def test_the_batch_size_can_be_given(folder, capsys):
    assert train("--batch_size", "24") == 0
    summary = json.loads(Path("weights/recipe.json").read_text())
    assert summary["settings"]["train.batch_size"] == 24
    assert train("--out", "w.pth", "--batch_size", "0") == 2
    assert "batch_size" in capsys.readouterr().err
