"""One run that can be stopped at any step and continued to the same weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def epoch_order(count: int, seed: int, epoch: int, shuffle: bool = True) -> Tensor:
    """(count,) the captions of an epoch in order: a function of the seed and the epoch alone."""
    if not shuffle:
        return torch.arange(count)
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def weights_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
