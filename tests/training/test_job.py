"""The table, the picture and the loggers of a training's losses."""

import sys
import types

import pytest
from PIL import Image

from talk2dino.training.job import check_logger, open_logger, plot_losses, write_losses

LOSSES = ("train_loss", "val_loss")


def record(epoch, train, validation):
    return {"epoch": epoch, "train_loss": train, "val_loss": validation, "learning_rate": 1e-4}


def test_the_losses_are_a_table_with_one_line_per_epoch(tmp_path):
    write_losses([record(1, 0.5, None), record(2, 0.25, 0.75)], tmp_path / "l")
    assert (tmp_path / "l").read_text().splitlines() == [
        "epoch,train_loss,val_loss,learning_rate",
        "1,0.5,,0.0001",
        "2,0.25,0.75,0.0001",
    ]


def test_the_plot_is_a_picture_with_both_curves(tmp_path):
    plot_losses([record(1, 0.5, 0.6), record(2, 0.4, 0.5)], tmp_path / "l.png", LOSSES)
    with Image.open(tmp_path / "l.png") as image:
        assert image.size == (600, 400)
        assert len(image.getcolors(1 << 20)) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["l.png"]


def test_a_loss_of_zero_and_no_validation_can_be_drawn(tmp_path):
    plot_losses([record(1, 0.0, None)], tmp_path / "l.png", LOSSES)
    assert (tmp_path / "l.png").stat().st_size > 0


def test_no_logger_writes_nothing(tmp_path):
    with open_logger("none", tmp_path / "w.pth", {}) as log:
        log({"loss/train": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_events_lie_beside_the_weights(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_logger("tensorboard", tmp_path / "w.pth", {}) as log:
        log({"loss/train": 0.5}, 1)
        log({"loss/train": 0.25}, 2)
    events = EventAccumulator(str(tmp_path / "w.tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_run_gets_the_settings_the_losses_and_the_end(tmp_path, monkeypatch, package):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finished"),
    )
    fake = types.ModuleType(package)
    fake.__spec__ = types.SimpleNamespace()
    fake.init = lambda **settings: calls.append(settings) or run
    monkeypatch.setitem(sys.modules, package, fake)
    with open_logger(package, tmp_path / "w.pth", {"lr": 1}) as log:
        log({"loss/train": 0.5}, 1)
    settings = {"project": "talk2dino", "name": "w", "config": {"lr": 1}}
    if package == "wandb":
        settings["dir"] = str(tmp_path)
    assert calls == [settings, (1, {"loss/train": 0.5}), "finished"]


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("wandb", r"api_key not configured.*wandb login"),
        ("trackio", r"could not start: api_key[^.]*\.$"),
    ],
)
def test_a_run_that_cannot_start_says_what_to_do(tmp_path, monkeypatch, package, message):
    def init(**settings):
        raise Exception("api_key not configured")

    fake = types.ModuleType(package)
    fake.__spec__ = types.SimpleNamespace()
    fake.init = init
    monkeypatch.setitem(sys.modules, package, fake)
    with (
        pytest.raises(RuntimeError, match=message),
        open_logger(package, tmp_path / "w.pth", {}),
    ):
        pass


def test_an_unknown_logger_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown logger 'wand'.*none, tensorboard, wandb, trackio"
    ):
        check_logger("wand")


def test_a_logger_whose_package_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        check_logger("wandb")


def test_a_resumed_run_shows_one_curve_from_the_first_epoch(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()
    logged = lambda values, step: calls.append((step, values))  # noqa: E731
    fake.init = lambda **settings: types.SimpleNamespace(log=logged, finish=list)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    history = [({"loss/train": 0.5}, 1), ({"loss/train": 0.25, "loss/validation": 0.75}, 2)]
    with open_logger("wandb", tmp_path / "w.pth", {}, 2, history) as log:
        log({"loss/train": 0.1}, 3)
    assert [step for step, _ in calls] == [1, 2, 3]
    assert calls[1][1] == history[1][0]


def test_what_is_logged_is_on_the_disk_at_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_logger("tensorboard", tmp_path / "w.pth", {}) as log:
        log({"loss/train": 0.5}, 1)
        events = EventAccumulator(str(tmp_path / "w.tensorboard")).Reload()  # as after a kill
        assert [e.step for e in events.Scalars("loss/train")] == [1]
