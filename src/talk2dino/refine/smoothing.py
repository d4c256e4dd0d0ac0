"""Attention of patches among themselves: features are averaged over those that are alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_attention(features: Tensor, gamma: float, beta: float) -> tuple[Tensor, float]:
    """How much each patch of one window counts for each other.

    Args:
        features: (P, D), of any length.
        gamma: makes differences of similarity larger.
        beta: similarities below this multiple of their mean do not count.

    Returns:
        (P, P) with rows that sum to one, and the mean similarity. A patch always counts for itself:
        where everything resembles everything, with a mean above 1 / beta, it is the only one.
    """
    unit = F.normalize(features, dim=-1)
    similarity = unit @ unit.T
    mean = similarity.mean()
    own = gamma * (similarity.diagonal() - beta * mean)
    logits = similarity.sub_(beta * mean).mul_(gamma)
    logits.masked_fill_(logits < 0, -torch.inf)
    logits.diagonal().copy_(own)
    return logits.softmax(dim=-1), float(mean)


def smooth(features: Tensor) -> Tensor:
    """Every patch as the mean of those of its window that resemble it more than the average.

    One step without parameters, the self-correlating aggregation of RADSeg.

    Args:
        features: (B, P, D), not normalised.

    Returns:
        (B, P, D).
    """
    return torch.stack([mean_attention(one, 10.0, 1.0)[0] @ one for one in features])
