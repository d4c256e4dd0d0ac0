import math
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from talk2dino.files import save_torch
from talk2dino.methods.talk2dino.alignment import strategies
from talk2dino.methods.talk2dino.projection import (
    ProjectionConfig,
    ProjectionLayer,
    build_projection,
)
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import Batch, FeatureChoice, StoredPairs
from talk2dino.methods.talk2dino.training.loop import (
    BatchLoss,
    LoopSettings,
    TrainingRun,
)
from talk2dino.training.run import (
    Hooks,
    RunState,
    epoch_order,
    load_state,
)
from tests.literal.training import PairDataset, Projection, make_loader, train_epoch

TINY = {"dino_embed_dim": 6, "clip_embed_dim": 64, "num_attn_head": 3, "hidden_layer": True}
FAST = {"lr": 0.01, "num_epochs": 4, "batch_size": 8, "save_best_model": False}


def make_run(features, model=None, train=None, text=None, validation=None, **loop):
    config = ProjectionConfig(**{**TINY, **(model or {})})
    choice = FeatureChoice(config=config, text=text)
    torch.manual_seed(0)
    projection = build_projection(config)
    held_out = validation and StoredPairs(validation, choice.for_validation(), "val.pth")
    settings = LoopSettings(TrainConfig(**{**FAST, **(train or {})}), **loop)
    return TrainingRun(projection, StoredPairs(features, choice, "f.pth"), held_out, settings)


def saving(path, **hooks):
    """Hooks that keep the state in a file."""
    return Hooks(save=lambda state: save_torch({**state, "settings": {}}, path), **hooks)


def train_losses(run):
    return [record["train_loss"] for record in run.state.records]


@pytest.mark.parametrize("strategy", strategies())
@pytest.mark.parametrize("loss", ["infonce", "triplet"])
def test_every_alignment_trains_with_both_losses(tiny_features, strategy, loss):
    run = make_run(tiny_features(), {"alignment_strategy": strategy}, {"ltype": loss})
    run.run(Hooks())
    losses = train_losses(run)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"model_class": "VisualProjectionLayer"}, None),
        ({"model_class": "DoubleMLP"}, None),
        ({"model_class": "CLIPLastLayer"}, None),
        ({"weight_attn_heads": "static"}, None),
        ({"weight_attn_heads": "conditioned"}, None),
        ({"hidden_layer": 2, "act": "relu"}, "clip_txt_out_tokens_avg"),
        ({"alignment_strategy": "mean"}, "clip_txt_out_tokens"),
        ({"alignment_strategy": "nucleus-sampling"}, "clip_txt_out_tokens"),
        ({"alignment_strategy": "max-row_sum", "keep_cls": True}, "clip_txt_out_tokens"),
        ({"act": None, "cosine": False}, "bert-base_features"),
    ],
)
def test_every_model_class_and_text_trains_and_reloads(tiny_features, model, text):
    run = make_run(tiny_features(), model, text=text, validation=tiny_features(seed=1))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    weights = run.run(Hooks())
    losses = train_losses(run)
    assert losses[-1] < losses[0]
    assert all(math.isfinite(record["val_loss"]) for record in run.state.records)
    assert any(not torch.equal(before[name], value) for name, value in weights.items())
    build_projection(run.model.config).load_state_dict(weights, strict=True)


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_both_optimisers_follow_both_schedules(tiny_features, scheduler, optimizer):
    run = make_run(tiny_features(), scheduler=scheduler, optimizer=optimizer, warmup=2)
    run.run(Hooks())
    rates = [record["learning_rate"] for record in run.state.records]
    if scheduler == "linear":
        assert rates == [0.01] * 4
    else:
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.001
    assert train_losses(run)[-1] < train_losses(run)[0]


def test_every_step_is_taken_with_the_scheduled_learning_rate(tiny_features):
    run = make_run(tiny_features(), scheduler="cosine", warmup=2)
    rates = []

    def watch(steps, epoch, total):
        for step in steps:
            yield step
            rates.append(run.optimizer.param_groups[0]["lr"])

    run.run(Hooks(progress=watch))
    assert rates == [run.schedule(step) for step in range(12)]


def test_every_step_draws_from_its_own_generator(tiny_features):
    run, seeds = make_run(tiny_features(), {"alignment_strategy": "sampled_attn_map"}), []
    for run.state.epoch in (0, 1):
        seeds += [run._seeded(step).initial_seed() for step in range(3)]
    assert len(set(seeds)) == len(seeds) == 6


def test_weight_decay_pulls_adamw_but_not_adam(tiny_features):
    norms = {}
    for optimizer, decay in (("Adam", 0.0), ("Adam", 9.0), ("AdamW", 0.0), ("AdamW", 9.0)):
        weights = make_run(tiny_features(), optimizer=optimizer, weight_decay=decay).run(Hooks())
        norms[optimizer, decay] = weights["linear_layer.weight"].norm().item()
    assert norms["Adam", 0.0] == norms["Adam", 9.0] == norms["AdamW", 0.0]
    assert norms["AdamW", 9.0] < norms["AdamW", 0.0]


def test_the_recorded_loss_is_the_mean_over_batches_with_a_smaller_last_one(tiny_features):
    run = make_run(tiny_features(), train={"batch_size": 10, "num_epochs": 1})
    assert run.steps_per_epoch == 3  # 10, 10 and 4 of 24 captions
    steps = []

    def watch(numbers, epoch, total):
        assert (epoch, total) == (1, 3)
        for number in numbers:
            yield number
            run.collect()
            steps.append(run.state.losses[-1])

    run.run(Hooks(progress=watch))
    assert len(steps) == 3
    assert train_losses(run) == [pytest.approx(sum(steps) / 3)]


def test_the_order_of_an_epoch_depends_on_the_seed_and_the_epoch_only():
    order = epoch_order(50, seed=3, epoch=2)
    assert torch.equal(order, epoch_order(50, seed=3, epoch=2))
    assert not torch.equal(order, epoch_order(50, seed=3, epoch=1))
    assert not torch.equal(order, epoch_order(50, seed=2, epoch=2))
    assert torch.equal(order.sort().values, torch.arange(50))
    assert torch.equal(epoch_order(5, 3, 2, shuffle=False), torch.arange(5))


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(tiny_features):
    first, second = (make_run(tiny_features(), seed=5).run(Hooks()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = make_run(tiny_features(), seed=6).run(Hooks())
    assert not torch.equal(first["linear_layer.weight"], other["linear_layer.weight"])


def test_the_best_model_is_the_one_with_the_lowest_validation_loss(tiny_features):
    validation = tiny_features(seed=1)
    texts = validation.caption_features["ann_feats"]
    validation.caption_features["ann_feats"] = texts.roll(12, dims=0)  # of other images: gets worse
    train = {"save_best_model": True, "lr": 0.05, "num_epochs": 6}
    seen = []
    run = make_run(tiny_features(), train=train, validation=validation)
    weights = run.run(
        Hooks(on_epoch=lambda _: seen.append(run.model.linear_layer.weight.detach().clone()))
    )
    losses = [record["val_loss"] for record in run.state.records]
    best = losses.index(min(losses))
    assert run.state.best_epoch == best + 1 != 6
    assert torch.equal(weights["linear_layer.weight"], seen[best])


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_state(tiny_features, tmp_path):
    run = make_run(tiny_features(), train={"num_epochs": 3})

    def spoil_the_second_epoch(steps, epoch, total):
        for step in steps:
            if (epoch, step) == (2, 1):
                with torch.no_grad():
                    run.model.linear_layer.bias.fill_(float("nan"))
            yield step

    with pytest.raises(RuntimeError, match=r"epoch 2, step 2 of 3: train_loss is nan"):
        run.run(saving(tmp_path / "w.resume.pth", progress=spoil_the_second_epoch))
    kept = load_state(tmp_path / "w.resume.pth")
    assert (kept["state"]["epoch"], kept["state"]["step"]) == (1, 0)
    assert all(bool(value.isfinite().all()) for value in kept["weights"].values())


def test_infinite_features_stop_the_training_before_a_bad_state_is_kept(tiny_features, tmp_path):
    features = tiny_features()
    features.caption_features["ann_feats"][0] = float("inf")
    run = make_run(features)
    with pytest.raises(RuntimeError, match=r"epoch 1, step \d of 3: train_loss is nan"):
        run.run(saving(tmp_path / "s.pth", seconds=0))
    assert load_state(tmp_path / "s.pth")["state"]["epoch"] == 0


def test_a_validation_loss_that_is_not_a_number_is_named(tiny_features):
    validation = tiny_features(seed=1)
    validation.caption_features["ann_feats"][0] = float("nan")
    run = make_run(tiny_features(), validation=validation)
    with pytest.raises(RuntimeError, match="epoch 1, step 3 of 3: val_loss is nan"):
        run.run(Hooks())


@pytest.mark.parametrize("strategy", ["max_score", "sampled_attn_map"])
def test_continuing_from_any_step_reaches_the_same_weights(tiny_features, tmp_path, strategy):
    model, train = {"alignment_strategy": strategy}, {"batch_size": 5, "save_best_model": True}
    validation = tiny_features(seed=1)

    def new_run():
        return make_run(tiny_features(), model, train, validation=validation, scheduler="cosine")

    class Killed(Exception):
        pass

    undisturbed = new_run()
    expected = undisturbed.run(Hooks())
    path = tmp_path / "s.pth"
    for last in (0, 3, 4, 5, 12, 19):
        steps_done = 0

        def die(steps, epoch, total, last=last):
            nonlocal steps_done
            for step in steps:
                if steps_done == last:
                    raise Killed
                steps_done += 1
                yield step

        with pytest.raises(Killed):
            new_run().run(saving(path, seconds=0, progress=die))
        resumed = new_run()
        resumed.restore(load_state(path))
        weights = resumed.run(Hooks())
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert resumed.state.records == undisturbed.state.records
        assert resumed.state.best_epoch == undisturbed.state.best_epoch


def test_a_file_of_another_kind_is_not_resumed_from(tmp_path):
    torch.save({"linear_layer.weight": torch.ones(1)}, tmp_path / "s.pth")
    with pytest.raises(ValueError, match="not the state of an unfinished training"):
        load_state(tmp_path / "s.pth")


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'.*Known: Adam, AdamW.*Did you mean 'Adam"),
        ({"scheduler": "cosinus"}, "unknown scheduler 'cosinus'"),
        ({"weight_decay": -1.0}, "weight_decay must lie in"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"warmup": -1}, "warmup must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(loop, message):
    with pytest.raises(ValueError, match=message):
        LoopSettings(**loop)


CONFIG = ProjectionConfig(dino_embed_dim=6, clip_embed_dim=64, num_attn_head=3, hidden_layer=True)
TRAIN = TrainConfig(lr=0.01, num_epochs=1, batch_size=7, save_best_model=False)


def test_an_epoch_ends_with_the_weights_of_the_literal_training(tiny_features):
    features = tiny_features()
    heads, texts = (
        features.image_features["disentangled_self_attn"],
        features.caption_features["ann_feats"],
    )
    literal = Projection(64, 6)
    model = ProjectionLayer(CONFIG)
    model.load_state_dict(literal.state_dict())
    order = torch.from_numpy(np.random.default_rng([123, 0]).permutation(24))
    dataset = PairDataset(heads, texts, features.caption_rows)
    losses = train_epoch(literal, make_loader(dataset, order, 7, workers=0), lr=0.01)
    pairs = StoredPairs(features, FeatureChoice(config=CONFIG), "f.pth")
    run = TrainingRun(model, pairs, None, LoopSettings(TRAIN))
    weights = run.run(Hooks())
    assert run.state.records[0]["train_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    for name, value in literal.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


class FakeGraphs:
    """Stands for `torch.cuda.make_graphed_callables`: counts, and runs the module as it is."""

    def __init__(self, error=None):
        self.recorded, self.replayed, self.error = 0, 0, error

    def __call__(self, module, example):
        if self.error:
            raise RuntimeError(self.error)
        self.recorded += 1
        assert [value.shape for value in example] == [(7, 3, 6), (7, 64)]

        def replay(*inputs):
            self.replayed += 1
            return module(*inputs)

        return replay


def batch_of(size):
    generator = torch.Generator().manual_seed(size)
    visual = torch.randn(size, 3, 6, generator=generator)
    return Batch(visual, torch.randn(size, 64, generator=generator))


def gradients(loss, model, batch):
    model.zero_grad()
    loss(batch, len(batch.text), None).backward()
    return [parameter.grad for parameter in model.parameters()]


def test_full_batches_are_replayed_and_others_are_not(monkeypatch):
    graphs, model = FakeGraphs(), ProjectionLayer(CONFIG)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs)
    plain, captured = BatchLoss(model, TRAIN), BatchLoss(model, TRAIN, capture=True)
    for size in (7, 7, 3):
        expected = gradients(plain, model, batch_of(size))
        found = gradients(captured, model, batch_of(size))
        assert all(map(torch.equal, expected, found))
    with torch.no_grad():
        captured(batch_of(7), 7, None)  # validation
    assert (graphs.recorded, graphs.replayed) == (1, 2)


def test_a_graph_is_recorded_on_the_device_of_the_batch(monkeypatch):
    """On another one than the current, nothing would be recorded and nothing trained."""
    batch, model, current = batch_of(7), ProjectionLayer(CONFIG), []

    class DeviceOf:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            current.append(self.tensor)

        def __exit__(self, *_):
            current.pop()

    def record(module, example):
        assert current == [batch.visual]
        return module

    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    gradients(BatchLoss(model, TRAIN, capture=True), model, batch)
    assert current == []


def test_what_cannot_be_recorded_is_launched_as_it_is(monkeypatch, caplog):
    graphs, model = FakeGraphs("operation not permitted"), ProjectionLayer(CONFIG)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs)
    captured = BatchLoss(model, TRAIN, capture=True)
    for _ in range(2):
        gradients(captured, model, batch_of(7))
    assert [record.message for record in caplog.records] == [
        "no CUDA graph, every step is launched op by op: operation not permitted"
    ]


def test_nothing_is_recorded_where_heads_are_drawn(monkeypatch):
    graphs = FakeGraphs()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs)
    model = ProjectionLayer(
        ProjectionConfig(**{**vars(CONFIG), "alignment_strategy": "sampled_attn_map"})
    )
    loss = BatchLoss(model, TRAIN, capture=True)
    loss(batch_of(7), 7, torch.Generator().manual_seed(0))
    assert graphs.recorded == 0


def save(size: int, path: Path) -> None:
    state = asdict(RunState(epoch=1, records=[{"epoch": 1, "train_loss": 0.5}]))
    weights = {"w": torch.ones(size)}
    kept = {"state": state, "best": None, "weights": weights, "optimizer": {}, "settings": {}}
    save_torch(kept, path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_full_disk_is_named_and_the_previous_state_stays(tmp_path):
    import resource

    path = tmp_path / "w.resume.pth"
    save(4, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # every larger write fails
    try:
        with pytest.raises(OSError, match=r"could not write the file .*w\.resume\.pth"):
            save(100_000, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(load_state(path)["weights"]["w"]) == 4
    assert os.listdir(tmp_path) == ["w.resume.pth"]


def test_a_state_without_anything_special_comes_back(tmp_path):
    save(3, tmp_path / "s.pth")
    loaded = load_state(tmp_path / "s.pth")
    state = RunState(**loaded["state"])
    assert vars(state) == vars(RunState(epoch=1, records=[{"epoch": 1, "train_loss": 0.5}]))
