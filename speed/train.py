"""Training: gathered tensors against a per-sample loader, and against the bare MLP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from speed.case import LITERAL, SHIPPED, Case, Prepare, Step

PAIRS, HEADS, PATCH_DIM, TEXT_DIM = 20_000, 12, 768, 512
BATCH, LR, SEED, WORKERS = 128, 1e-4, 123, 2
MLP = "bare MLP"


def _write(images: int, folder: Path) -> None:
    """A feature file of random numbers, and the weights that all sides start from."""
    from talk2dino.features.store import FeatureFile, write_features

    random = torch.Generator().manual_seed(0)
    rows = torch.arange(PAIRS) % images
    features = FeatureFile(
        [{"id": number} for number in range(images)],
        [{"id": n, "image_id": row, "caption": ""} for n, row in enumerate(rows.tolist())],
        {"disentangled_self_attn": torch.randn(images, HEADS, PATCH_DIM, generator=random)},
        {"ann_feats": torch.randn(PAIRS, TEXT_DIM, generator=random)},
    )
    write_features(features, folder / "features.pth")
    torch.manual_seed(SEED)
    first, second = nn.Linear(TEXT_DIM, PATCH_DIM), nn.Linear(PATCH_DIM, PATCH_DIM)
    weights = {
        **{f"linear_layer.{name}": value for name, value in first.state_dict().items()},
        **{f"hidden_layers.0.{name}": value for name, value in second.state_dict().items()},
    }
    torch.save(weights, folder / "weights.pth")


def _order() -> Tensor:
    """The captions of the first epoch."""
    return torch.from_numpy(np.random.default_rng([SEED, 0]).permutation(PAIRS))


def _shipped(memory_bytes: int) -> Prepare:
    def prepare(device: str, folder: Path) -> Step:
        from talk2dino.features.store import read_features
        from talk2dino.methods.talk2dino.projection import ProjectionConfig, ProjectionLayer
        from talk2dino.methods.talk2dino.recipe import TrainConfig
        from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs
        from talk2dino.methods.talk2dino.training.loop import LoopSettings, TrainingRun
        from talk2dino.training.run import Hooks

        config = ProjectionConfig(dino_embed_dim=PATCH_DIM, hidden_layer=True)
        path, weights = folder / "features.pth", torch.load(folder / "weights.pth")
        choice = FeatureChoice(config=config)
        pairs = StoredPairs(read_features(path), choice, path, device, memory_bytes)
        train = TrainConfig(lr=LR, num_epochs=1, batch_size=BATCH, save_best_model=False)

        def step() -> dict[str, Tensor]:
            model = ProjectionLayer(config).to(device)
            model.load_state_dict(weights)
            return TrainingRun(model, pairs, None, LoopSettings(train, seed=SEED)).run(Hooks())

        return step

    return prepare


def _literal(device: str, folder: Path) -> Step:
    from tests.literal.training import PairDataset, Projection, make_loader, train_epoch

    stored = torch.load(folder / "features.pth")
    images = stored["image_features"]["disentangled_self_attn"]
    texts, rows = stored["caption_features"]["ann_feats"], stored["caption_rows"]
    weights = torch.load(folder / "weights.pth")
    # Its workers live on between the steps, as between the batches of one epoch.
    loader = make_loader(PairDataset(images, texts, rows), _order(), BATCH, WORKERS)

    def step() -> dict[str, Tensor]:
        model = Projection(TEXT_DIM, PATCH_DIM).to(device)
        model.load_state_dict(weights)
        train_epoch(model, loader, LR, device)
        return model.state_dict()

    return step


def _mlp(device: str, folder: Path) -> Step:
    """Forward and backward of the MLP alone, with a given gradient: no loss, no optimiser."""
    texts = torch.load(folder / "features.pth", mmap=True)["caption_features"]["ann_feats"]
    texts = texts.clone().to(device)
    layers = (nn.Linear(TEXT_DIM, PATCH_DIM), nn.Tanh(), nn.Linear(PATCH_DIM, PATCH_DIM))
    model = nn.Sequential(*layers).to(device)
    gradient = torch.randn(BATCH, PATCH_DIM, device=device)
    batches = _order().to(device).split(BATCH)

    def step() -> None:
        for index in batches:
            projected = model(texts.index_select(0, index))
            model.zero_grad()
            projected.backward(gradient[: len(index)])

    return step


def _case(
    title: str, images: int, memory_bytes: int, targets: dict[str, float], resident_mb: float
) -> Case:
    return Case(
        title,
        {SHIPPED: _shipped(memory_bytes), LITERAL: _literal, MLP: _mlp},
        inputs=lambda folder: _write(images, folder),
        targets=targets,
        limits={"resident_mb": resident_mb},
        cuda_rate=1_000_000,
        work=PAIRS,
        unit="pairs",
    )


def _store_mb(images: int) -> float:
    """Megabytes of a store of this many images."""
    return 4 * (images * HEADS * PATCH_DIM + PAIRS * TEXT_DIM) / 2**20


_SIZE = f"H {HEADS}, D {PATCH_DIM}, batch {BATCH}"
CASES = {
    "train": _case(
        f"an epoch of {PAIRS:,} captions, {_SIZE}",
        PAIRS // 5,
        1 << 40,
        {LITERAL: 2.5, MLP: 1 / 1.7},
        resident_mb=_store_mb(PAIRS // 5) + 300,
    ),
    "train_mapped": _case(
        f"the same with {PAIRS:,} images (0.7 GB) left on disk", PAIRS, 0, {}, 600
    ),
}
