"""Schedules and training against what the published code did with the same inputs."""

import pytest
import torch

from talk2dino.backbones.seeded import seeded_state
from talk2dino.features.store import FeatureFile
from talk2dino.methods.talk2dino.projection import ProjectionConfig, ProjectionLayer
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs
from talk2dino.methods.talk2dino.training.loop import LoopSettings, Schedule, TrainingRun
from talk2dino.training.run import Hooks


@pytest.mark.parametrize(("name", "key"), [("linear", "constant"), ("cosine", "cosine")])
def test_learning_rates_are_the_published_ones(recorded, name, key):
    expected = recorded("core/lr_schedules.npz")
    base, warmup, total = (expected[k].item() for k in ("base_lr", "warmup", "total"))
    schedule = Schedule(name, base, warmup, total)
    rates = [schedule.learning_rate(step) for step in range(total)]
    assert rates == pytest.approx(expected[key].tolist(), rel=1e-12)


def test_training_follows_the_published_trajectory(recorded):
    expected = recorded("core/training_trajectory.npz")
    images, texts = (torch.from_numpy(expected[key]) for key in ("images", "texts"))
    numbers = range(len(texts))
    features = FeatureFile(
        images=[{"id": n} for n in numbers],
        annotations=[{"id": n, "image_id": n, "caption": ""} for n in numbers],
        image_features={"disentangled_self_attn": images},
        caption_features={"ann_feats": texts},
    )
    config = ProjectionConfig(
        hidden_layer=True, dino_embed_dim=64, clip_embed_dim=32, num_attn_head=3
    )
    model = ProjectionLayer(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(seeded_state(0, shapes))
    train = TrainConfig(
        lr=expected["lr"].item(),
        num_epochs=expected["epochs"].item(),
        batch_size=expected["batch_size"].item(),
        shuffle=False,
        save_best_model=False,
    )
    run = TrainingRun(
        model, StoredPairs(features, FeatureChoice(), "features"), None, LoopSettings(train)
    )
    losses: list[float] = []

    def keep_losses(steps, epoch, total):
        yield from steps
        run.collect()
        losses.extend(run.state.losses)

    weights = run.run(Hooks(progress=keep_losses))
    assert losses == pytest.approx(expected["losses"].tolist(), rel=1e-4)
    for name, value in weights.items():
        reference = torch.from_numpy(expected[f"final/{name}"])
        error = (value - reference).norm() / reference.norm()
        assert error <= 1e-4, name
