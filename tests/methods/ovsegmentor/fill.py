"""The deterministic numbers with which the published modules were recorded."""

import math

import numpy as np
import torch
from torch import Tensor

from talk2dino.methods.ovsegmentor.config import OVSegmentorConfig, TextConfig, VisionConfig
from talk2dino.methods.ovsegmentor.model import OVSegmentor

RECORDED = OVSegmentorConfig(
    "recorded",
    VisionConfig(width=48),
    TextConfig(name="toy", width=48, depth=1, num_heads=4, vocabulary=256, positions=96),
)
"""The architecture of the recordings; their text encoder was not involved."""


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 numbers in [-1, 1) that depend on a name and a shape only."""
    shift = sum(name.encode()) % 101
    steps = np.arange(math.prod(shape), dtype=np.float64)
    waves = np.sin(12.9898 * steps + shift) * 43758.5453
    return (2 * (waves - np.floor(waves)) - 1).reshape(shape)


def recorded_input(name: str, shape: tuple[int, ...], amplitude: float = 1.0) -> Tensor:
    return torch.from_numpy((amplitude * uniform(name, shape)).astype(np.float32))


def recorded_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    values = uniform(key, shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        values = 1 + 0.5 * values
    elif key.endswith("running_mean"):
        values = 0.1 * values
    elif key.startswith("logit_scale"):
        values = np.full(shape, math.log(1 / 0.07))
    elif "group_token" in key or "pos_embed" in key:
        values = 0.5 * values
    elif len(shape) <= 1 and key.endswith("weight"):
        values = 1 + 0.1 * values
    elif key.endswith("bias"):
        values = 0.1 * values
    else:
        values = values * math.sqrt(3 / (math.prod(shape) / shape[0]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def recorded_model(stage: str = "stage1") -> OVSegmentor:
    """The model of the recordings, in evaluation mode."""
    model = OVSegmentor(RECORDED, stage)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: recorded_weight(name, shapes[name]) for name in shapes})
    return model.eval()
