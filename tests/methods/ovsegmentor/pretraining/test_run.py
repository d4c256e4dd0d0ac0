"""Whole runs: both stages, interruption, selection, and what stops one."""

import contextlib
import io
import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from talk2dino import files
from talk2dino.cli.pretrain import Pretrain
from talk2dino.methods.ovsegmentor.checkpoints import read_checkpoint
from talk2dino.methods.ovsegmentor.config import load_pretraining_recipe
from talk2dino.methods.ovsegmentor.data import words
from talk2dino.methods.ovsegmentor.data.samples import EpochBatches
from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob
from talk2dino.methods.ovsegmentor.pretraining.loop import PretrainingRun
from talk2dino.segmenter import ClassQuery
from talk2dino.training.job import carry_out
from talk2dino.training.run import load_state, weights_on_cpu
from tests.methods.ovsegmentor.conftest import load_toy

from .conftest import IMAGES, interrupted, recipe_values, write_captions

FLAGS = ("--device", "cpu", "--workers", "0")


def run_main(recipe, out, *flags):
    return Pretrain.main(["--config", str(recipe), "--out", str(out), *FLAGS, *flags])


@pytest.fixture(scope="module")
def stage1(tmp_path_factory, captions):
    """A finished stage 1, with held-out captions; what runs that are killed end with as well."""
    folder = tmp_path_factory.mktemp("runs")
    held_out = write_captions(folder / "held_out", 6)
    values = recipe_values(captions, accumulate=2, batch_size=2)
    values["selection"] = {"metafile": str(held_out), "images": str(held_out.parent)}
    (folder / "one.yaml").write_text(yaml.safe_dump(values))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run_main(folder / "one.yaml", folder / "one") == 0
    (folder / "said.txt").write_text(said.getvalue())
    return folder / "one"


def test_the_command_says_where_it_is(stage1):
    starts = [line.split("  ")[0] for line in (stage1.parent / "said.txt").read_text().splitlines()]
    assert [start for start in starts if start.startswith("epoch")] == ["epoch 1", "epoch 2"]


def test_stage_1_writes_a_folder_that_segments(stage1, capsys):
    segmenter = load_toy(stage1)
    assert "cat" in segmenter.tokenizer.tokenizer.get_vocab()
    classes = segmenter.embed_classes(["cat", "frog"])
    scores = segmenter.window_scores(torch.zeros(1, 3, 64, 64), ClassQuery.of_rows(classes))
    assert scores.isfinite().all()
    names = {path.name for path in stage1.iterdir()}
    assert names == {
        *("model.safetensors", "config.json", "tokenizer"),
        *("pretraining.json", "losses.csv", "losses.png"),
    }


def test_the_epoch_of_the_lowest_held_out_loss_is_kept(stage1):
    summary = json.loads((stage1 / "pretraining.json").read_text())
    table = [line.split(",") for line in (stage1 / "losses.csv").read_text().splitlines()]
    column = table[0].index("held_out")
    held_out = [float(row[column]) for row in table[1:]]
    assert summary["best_epoch"] == held_out.index(min(held_out)) + 1
    assert "held_out" in summary["selected_by"]
    assert summary["command"].startswith("python -m talk2dino pretrain --config")


def test_stage_2_goes_on_from_stage_1(stage1, write_recipe, tmp_path, capsys):
    recipe = write_recipe(
        2, train={"epochs": 1, "freeze_text": True}, start={"stage1": str(stage1)}
    )
    assert run_main(recipe, tmp_path / "two", "--logger", "tensorboard") == 0
    shown = capsys.readouterr().out
    assert "mask" in shown
    before, after = (load_file(f / "model.safetensors") for f in (stage1, tmp_path / "two"))
    assert "img_encoder_momentum.pos_embed" in after
    student, teacher = (after[f"{n}.pos_embed"] for n in ("img_encoder", "img_encoder_momentum"))
    assert not torch.equal(student, teacher)
    assert not torch.equal(before["img_encoder.pos_embed"], teacher)  # where the teacher began
    frozen = [name for name in before if name.startswith("text_encoder.transformer.")]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert list((tmp_path / "two" / "two.tensorboard").iterdir())
    words = read_checkpoint(tmp_path / "two").tokenizer / "tokenizer.json"
    assert words.read_bytes() == (stage1 / "tokenizer" / "tokenizer.json").read_bytes()


def dies_in_save(arguments, threads, fatal):
    """Run, and be killed before the `fatal`-th state takes its place."""
    torch.set_num_threads(threads)
    replace, count = os.replace, 0

    def replacing(source, target):
        nonlocal count
        count += str(target).endswith("unfinished.pth")
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    files.os.replace = replacing
    Pretrain.main(arguments)


@pytest.mark.parametrize(
    ("fatal", "stands"),
    [(4, (0, 2)), (6, (1, 1))],  # epoch 1 is shown and about to be saved; a step of epoch 2 is
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    fork_server, stage1, tmp_path, fatal, stands, a_second_later
):
    recipe, out = stage1.parent / "one.yaml", tmp_path / "killed"
    arguments = ["--config", str(recipe), "--out", str(out), *FLAGS, "--checkpoint_seconds", "0"]
    arguments += ["--logger", "tensorboard"]
    killed = fork_server.Process(
        target=dies_in_save, args=(arguments, torch.get_num_threads(), fatal)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    snapshot = load_state(out / "unfinished.pth")
    assert (snapshot["state"]["epoch"], snapshot["state"]["step"]) == stands
    a_second_later()
    assert Pretrain.main([*arguments, "--resume"]) == 0
    for name in ("model.safetensors", "losses.csv", "config.json"):
        assert (out / name).read_bytes() == (stage1 / name).read_bytes()
    assert not list(out.glob(".*"))
    (folder,) = out.rglob("*.tensorboard")
    events = EventAccumulator(str(folder)).Reload().Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]  # one curve


def test_an_interrupted_stage_2_goes_on_in_the_middle_of_an_epoch(stage1, make_recipe, tmp_path):
    recipe = make_recipe(2, start={"stage1": str(stage1)}, train={"epochs": 1})
    interrupted(recipe, tmp_path / "stopped", 2, epoch=1)
    snapshot = load_state(tmp_path / "stopped" / "unfinished.pth")
    assert (snapshot["state"]["epoch"], snapshot["state"]["step"]) == (0, 2)
    result = carry_out(PretrainingJob(recipe, tmp_path / "stopped", "cpu", resume=True))
    undisturbed = carry_out(PretrainingJob(recipe, tmp_path / "whole", "cpu"))
    assert result.state == undisturbed.state
    one, other = (tmp_path / name / "model.safetensors" for name in ("stopped", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_resuming_refuses_other_settings_and_knows_a_complete_run(
    stage1, write_recipe, tmp_path, capsys
):
    recipe = load_pretraining_recipe(stage1.parent / "one.yaml")
    assert carry_out(PretrainingJob(recipe, stage1, "cpu", resume=True)) is None
    assert run_main(stage1.parent / "one.yaml", stage1, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out
    code = run_main(stage1.parent / "one.yaml", stage1, "--resume", "--set", "train.seed=9")
    assert code == 1
    assert "train.seed was 0, now 9" in capsys.readouterr().err
    assert run_main(stage1.parent / "one.yaml", stage1) == 2
    assert "exists already. Go on" in capsys.readouterr().err
    tiny = write_recipe(train={"epochs": 1})
    interrupted(load_pretraining_recipe(tiny), tmp_path / "new", 0, epoch=1)
    assert run_main(tiny, tmp_path / "new") == 2
    assert "holds an unfinished training" in capsys.readouterr().err
    assert run_main(tiny, tmp_path / "new", "--resume", "--overwrite") == 2
    assert run_main(tiny, tmp_path / "new", "--overwrite") == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    make_recipe, tmp_path, monkeypatch
):
    recipe = make_recipe()
    real, calls = PretrainingRun.update, []

    def step(self, batches, seeds, rate):
        calls.append(rate)
        values = real(self, batches, seeds, rate)
        return values * float("nan") if len(calls) == 5 else values

    monkeypatch.setattr(PretrainingRun, "update", step)
    message = "epoch 2, step 2 of 3: loss is nan.*Try a lower base_lr.*unfinished.pth"
    with pytest.raises(RuntimeError, match=message):
        carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu"))
    assert load_state(tmp_path / "out" / "unfinished.pth")["state"]["epoch"] == 1


def test_a_weight_that_is_not_finite_is_never_saved(make_recipe, tmp_path, monkeypatch):
    real, calls = PretrainingRun.update, []

    def step(self, batches, seeds, rate):
        calls.append(rate)
        values = real(self, batches, seeds, rate)
        if len(calls) == 3:  # the last step of the epoch, whose losses are still good
            self.parameters[0].data.fill_(float("inf"))
        return values

    monkeypatch.setattr(PretrainingRun, "update", step)
    with pytest.raises(RuntimeError, match="a weight became infinite"):
        carry_out(PretrainingJob(make_recipe(train={"epochs": 1}), tmp_path / "out", "cpu"))


def test_values_are_shown_with_the_steps_so_far(make_recipe, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def open_logger(*_):
        yield lambda values, step: seen.append((step, values))

    monkeypatch.setattr("talk2dino.training.job.open_logger", open_logger)
    recipe = make_recipe(train={"log_every": 2, "warmup_epochs": 1})
    carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu"))
    assert [step for step, _ in seen] == [2, 3, 5, 6]
    assert "train/mask" not in seen[0][1]
    factor = 4 / 4096
    assert seen[0][1]["learning_rate"] == pytest.approx(0.1 * factor)
    assert seen[1][1]["learning_rate"] == pytest.approx((0.1 + 0.4 / 3) * factor)


def test_too_few_samples_for_one_step_are_refused(make_recipe, tmp_path):
    recipe = make_recipe(train={"accumulate": 4})
    with pytest.raises(ValueError, match="12 samples are fewer than one step takes"):
        carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"metafile": "none.csv"}}, "data: metafile: none.csv: no such file"),
        ({"selection": {"metafile": "none.json"}}, "selection: metafile: none.json: no such"),
        ({"start": {"dino": "none.pth"}}, "start: dino: none.pth: no such file"),
        ({"start": {"dino": "pretrained"}}, "no pretrained DINO weights for ovsegmentor_toy"),
        ({"start": {"text": "pretrained"}}, "ovsegmentor_toy has no pretrained weights"),
        ({"stage": 2, "start": {"stage1": "none"}}, "none: no OVSegmentor weights there"),
    ],
)
def test_what_is_not_there_is_said_before_anything_starts(
    write_recipe, tmp_path, capsys, sections, message
):
    assert run_main(write_recipe(**sections), tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_another_file_is_no_state(tmp_path):
    torch.save({"kind": "other"}, tmp_path / "unfinished.pth")
    with pytest.raises(ValueError, match="not the state of an unfinished training"):
        load_state(tmp_path / "unfinished.pth")


def test_a_run_does_not_replace_the_stage_1_it_starts_from(stage1, write_recipe, capsys):
    recipe = write_recipe(2, start={"stage1": str(stage1)})
    before = (stage1 / "model.safetensors").read_bytes()
    assert run_main(recipe, stage1, "--overwrite") == 2
    assert "is an input. Choose another place" in capsys.readouterr().err
    assert (stage1 / "model.safetensors").read_bytes() == before


def test_lost_images_are_counted_and_named_across_an_interruption(tmp_path, make_recipe):
    batches = EpochBatches(range(IMAGES), 4)
    batches.epoch = 1  # the second epoch, of which only the last step is left to the resumed run
    _, lost = next(iter(batches))[0]
    data = write_captions(tmp_path / "data")
    (data.parent / f"{lost}.png").write_bytes(b"broken")
    recipe = make_recipe(data={"metafile": str(data), "images": str(data.parent)})
    interrupted(recipe, tmp_path / "out", 2)
    ((unread, _),) = load_state(tmp_path / "out" / "unfinished.pth")["every"]
    assert list(unread["named"]) == [f"{lost}.png"]
    result = carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu", resume=True))
    assert result.lost == f"2 images of 24 samples could not be read ({lost}.png)"


def test_the_weights_of_the_best_epoch_are_written_when_the_last_is_worse(
    make_recipe, tmp_path, monkeypatch
):
    epochs = []

    def judge(self):
        epochs.append(
            weights_on_cpu(self.model)
        )  # the first ones are those of before the first step
        return float(len(epochs))

    monkeypatch.setattr(PretrainingRun, "judge", judge)
    captions = write_captions(tmp_path / "data", 4)
    files = {"metafile": str(captions), "images": str(captions.parent)}
    recipe = make_recipe(data=files, selection=files)
    result = carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu"))
    assert (result.state.best_epoch, len(epochs)) == (1, 3)
    _, first, last = epochs
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() <= first.keys()
    assert all(torch.equal(value, first[name]) for name, value in written.items())
    assert not torch.equal(written["img_encoder.pos_embed"], last["img_encoder.pos_embed"])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (False, True, "data.lemmas was 'lemminflect', now 'wordnet'"),
        (True, False, "data.lemmas was 'wordnet', now 'lemminflect'"),
    ],
    ids=["appeared", "vanished"],
)
def test_resuming_is_refused_after_the_data_of_wordnet_appeared_or_vanished(
    make_recipe, tmp_path, monkeypatch, before, after, message
):
    recipe = make_recipe(data={"lemmas": "auto"})
    monkeypatch.setitem(words.LEMMA_SOURCES, "wordnet", words.dictionary_lemma)  # without data
    monkeypatch.setattr(words, "_has_wordnet", lambda: before)
    interrupted(recipe, tmp_path / "out", 0, epoch=1)
    monkeypatch.setattr(words, "_has_wordnet", lambda: after)
    with pytest.raises(ValueError, match=message):
        carry_out(PretrainingJob(recipe, tmp_path / "out", "cpu", resume=True))
