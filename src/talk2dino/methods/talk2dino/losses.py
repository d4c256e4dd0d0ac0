"""The two training losses, on a (B, B) score matrix whose diagonal holds the true pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
"""Constant, not trained."""


def infonce(scores: Tensor) -> Tensor:
    """Symmetric InfoNCE (paper section 3.3), divided by B**2.

    The division is part of the published training: gradients come close to Adam's eps of 1e-8,
    so it is not neutral. For full batches it acts like no division and eps = 1e-8 * B**2.

    Args:
        scores: (B, B) cosines.
    """
    logits = scores / TEMPERATURE
    targets = torch.arange(len(scores), device=scores.device)
    loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    return loss / len(scores) ** 2


def triplet(scores: Tensor, margin: float = 0.2, max_violation: bool = True) -> Tensor:
    """Hinge loss over negatives of rows and of columns, divided by B**2.

    Args:
        scores: (B, B) cosines.
        margin: by how much a true pair should win.
        max_violation: only the hardest negative of each row and of each column counts.
    """
    diagonal = scores.diagonal()
    true_pairs = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    cost_rows = (margin + scores - diagonal[:, None]).relu().masked_fill(true_pairs, 0)
    cost_columns = (margin + scores - diagonal[None, :]).relu().masked_fill(true_pairs, 0)
    if max_violation:
        cost_rows, cost_columns = cost_rows.amax(dim=1), cost_columns.amax(dim=0)
    return (cost_rows.sum() + cost_columns.sum()) / len(scores) ** 2


def infonce_and_gradient(scores: Tensor) -> tuple[Tensor, Tensor]:
    """`infonce` without autograd: the scalar loss, and (B, B) its gradient by the scores.

    Both directions share one softmax each, for the loss and for the gradient.
    """
    size = len(scores)
    logits = scores / TEMPERATURE
    rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    loss = -(rows.diagonal().sum() + columns.diagonal().sum()) / (2 * size**3)
    gradient = rows.exp_().add_(columns.exp_())
    gradient.diagonal().sub_(2)
    return loss, gradient.mul_(1 / (2 * size**3 * TEMPERATURE))
