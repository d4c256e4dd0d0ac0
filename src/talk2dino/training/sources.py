"""Opens what `--train_dataset` names: stored features, or images to encode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from talk2dino.config import FeatureConfig
from talk2dino.features.captions import CaptionInput
from talk2dino.features.store import read_features
from talk2dino.training.dataset import FeatureChoice, Pairs, StoredPairs

FEATURE_SUFFIXES = (".pth", ".pt")


@dataclass(frozen=True)
class ImageOptions:
    """How to encode images and captions when a dataset holds no features."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    """The two frozen models and the image size."""
    data_dir: Path = Path("../coco/")
    """Where the image files of a COCO JSON are."""
    workers: int = 0
    """Decoding processes."""


def check_source(path: str, choice: FeatureChoice, images: ImageOptions) -> None:
    """Raise unless there is something at `path` that `open_pairs` can read; opens nothing large.

    Raises:
        FileNotFoundError, ValueError: nothing there, or of an unknown kind.
    """
    CaptionInput(path, images.data_dir)  # finds the file or the tars


def open_pairs(
    path: str, choice: FeatureChoice, images: ImageOptions, device: torch.device
) -> Pairs:
    """The pairs of a caption and its image's features at `path`.

    Raises:
        ValueError: the file is damaged, or lacks a feature; the message names the command for it.
    """
    if Path(path).suffix in FEATURE_SUFFIXES:
        return StoredPairs(read_features(path), choice, path, device)
    collection = CaptionInput(path, images.data_dir).split(0, 1)
    return StoredPairs(collection.features, choice, path, device)
