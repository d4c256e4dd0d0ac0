"""The two training augmentations of the paper, and their randomness kept apart from everyone's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]
"""An RGB picture -> (3, size, size) float32, normalised with ImageNet's mean and deviation."""


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are changed."""

    deit: bool = True
    """DeiT's augmentation (stage 1), or only crop and flip (stage 2)."""
    smallest_crop: float = 0.08
    """Smallest share of an image's area that a crop takes: 0.08 in stage 1, 0.4 in stage 2."""
    size: int = 224
    """Side of the result in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop must lie in (0, 1], got {self.smallest_crop}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")


def training_transform(config: AugmentConfig) -> Transform:
    """A random transform; it draws from the generators of Python, NumPy and torch."""
    scale = (config.smallest_crop, 1.0)
    if config.deit:
        return create_transform(
            input_size=config.size,
            is_training=True,
            scale=scale,
            ratio=(3 / 4, 4 / 3),
            interpolation="bilinear",
            hflip=0.5,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(config.size, scale),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """The global generators of Python, NumPy and torch (CPU) start from `seed`, and are put back.

    Args:
        seed: below 2**32.
    """
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
