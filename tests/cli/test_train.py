"""`train.py` as a user calls it: what it writes and what it refuses."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from talk2dino.cli.train import Train
from talk2dino.features.store import read_features, write_features
from talk2dino.methods.talk2dino.projection import load_projection

from .small_training import features, train, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_training_writes_weights_losses_plot_and_summary(folder, capsys):
    code = train("--val_dataset", "val.pth", "--test_dataset", "val.pth", "--warmup", "2")
    assert code == 0
    printed = capsys.readouterr().out
    assert "epoch 3  train loss " in printed
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
        "python train.py --model recipe.yaml --train_dataset train.pth --device cpu "
        "--val_dataset val.pth --test_dataset val.pth --warmup 2"
    )
    assert summary["settings"]["warmup"] == 2
    assert summary["settings"]["train.lr"] == 0.01
    assert summary["retrieval"]["text_to_image"]["queries"] == 24
    with Image.open("weights/recipe.losses.png") as plot:
        assert plot.width > 100


def test_the_published_flag_name_and_pedix_choose_the_weights(folder):
    assert (
        Train.main(
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


def test_a_loss_that_is_not_a_number_exits_1_and_keeps_the_state(folder, capsys, monkeypatch):
    unchecked = "talk2dino.methods.talk2dino.training.dataset.check_finite"
    monkeypatch.setattr(unchecked, lambda *args: None)  # or such features are refused at once
    broken = features()
    broken.caption_features["ann_feats"][3] = float("nan")
    write_features(broken, folder / "train.pth")
    assert train() == 1
    message = capsys.readouterr().err
    assert "epoch 1, step " in message
    assert "train_loss is nan" in message
    assert "weights/recipe.resume.pth" in message
    assert not (folder / "weights/recipe.pth").exists()
    assert (folder / "weights/recipe.resume.pth").is_file()


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
    from talk2dino.features.tars import shard_paths, write_shards

    (folder / "tars").mkdir()
    write_shards(features(0), shard_paths(folder / "tars", 30))  # some are empty
    assert train("--out", "file.pth") == 0
    for number, source in enumerate(("tars", "tars/shard{00000..00029}.tar")):
        out = f"tars{number}.pth"
        assert Train.main(["--model", "recipe.yaml", "--train_dataset", source, "--out", out]) == 0
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
        (["--warmup", "-3"], "warmup must be at least 0"),
        (["--cache_gb", "inf"], "cache_gb must lie in [0, 1000000]"),
        (["--cache_gb", "nan"], "cache_gb must lie in [0, 1000000]"),
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


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_time_between_saves_that_is_none_is_refused(folder, capsys, seconds):
    assert train("--checkpoint_seconds", seconds) == 2
    assert "checkpoint_seconds must lie in [0, " in capsys.readouterr().err


def test_a_section_given_twice_exits_2(folder, capsys):
    (folder / "recipe.yaml").write_text("model: {act: tanh}\ntrain: {lr: 1}\ntrain: {lr: 2}\n")
    assert train() == 2
    assert "recipe.yaml: 'train' is given twice, in lines 2 and 3" in capsys.readouterr().err


def test_a_recipe_or_dataset_that_is_not_there_is_named(folder, capsys):
    assert Train.main(["--model", "no.yaml", "--train_dataset", "train.pth"]) == 2
    assert "no.yaml: no such file" in capsys.readouterr().err
    assert Train.main(["--model", "recipe.yaml", "--train_dataset", "no.pth"]) == 2
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
    assert not list((folder / "weights").iterdir())  # no lock either
    assert "python text_features_extraction.py --ann_path train.pth" in message


def test_a_starting_checkpoint_that_does_not_fit_names_the_keys(folder, capsys):
    torch.save({"linear_layer.weight": torch.ones(6, 64)}, folder / "start.pth")
    write_recipe(folder / "recipe.yaml", model={"starting_checkpoint": "start.pth"})
    assert train() == 1
    assert "missing keys: linear_layer.bias" in capsys.readouterr().err


def test_the_help_shows_an_example_and_refuses_short_forms(capsys):
    assert Train.main(["--help"]) == 0
    assert "python train.py --model configs/vitb_mlp_infonce.yaml" in capsys.readouterr().out
    assert Train.main(["--mod", "recipe.yaml", "--train_dataset", "train.pth"]) == 2


def test_what_made_the_features_is_recorded_and_differences_are_warned_of(folder, caplog):
    stored = read_features("train.pth", mmap=False)
    stored.settings["vision"] = {"model": "toy", "weights": "seeded:4", "resize_dim": 224}
    write_features(stored, "made.pth")
    arguments = ["--model", "recipe.yaml", "--train_dataset", "made.pth", "--out", "made_w.pth"]
    assert Train.main(arguments) == 0
    summary = json.loads(Path("made_w.json").read_text())
    assert summary["trained_on"]["vision"]["weights"] == "seeded:4"
    for part in ("vision model is toy", "vision weights is seeded:4, not pretrained"):
        assert part in caplog.text


def test_the_batch_size_can_be_given(folder, capsys):
    assert train("--batch_size", "24") == 0
    summary = json.loads(Path("weights/recipe.json").read_text())
    assert summary["settings"]["train.batch_size"] == 24
    assert train("--out", "w.pth", "--batch_size", "0") == 2
    assert "batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "data"),
    [("train.pth", "train.pth"), ("captions.pth", "captions.json"), ("link.pth", "train.pth")],
    ids=["the features", "the captions, by the summary", "by another name"],
)
def test_no_output_is_an_input(folder, capsys, out, data):
    (folder / "captions.json").write_text('{"images": [{"id": 1}], "annotations": [{"id": 1}]}')
    (folder / "link.pth").symlink_to(folder / "train.pth")
    before = (folder / data).read_bytes()
    flags = ["--model", "recipe.yaml", "--train_dataset", data, "--val_dataset", "train.pth"]
    assert Train.main([*flags, "--device", "cpu", "--out", out, "--overwrite"]) == 2
    assert "is an input. Choose another place" in capsys.readouterr().err
    assert (folder / data).read_bytes() == before
