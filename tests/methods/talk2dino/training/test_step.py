"""One step: against the paper-literal training, and replayed as a graph."""

import numpy as np
import pytest
import torch

from talk2dino.methods.talk2dino.projection import ProjectionConfig, ProjectionLayer
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import Batch, StoredPairs, choose_features
from talk2dino.methods.talk2dino.training.loop import LoopSettings, TrainingRun
from talk2dino.methods.talk2dino.training.step import BatchLoss
from talk2dino.training.run import Hooks
from tests.literal.training import PairDataset, Projection, make_loader, train_epoch

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
    pairs = StoredPairs(features, choose_features(CONFIG), "f.pth")
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
