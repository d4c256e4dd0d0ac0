"""The two training losses, on a (B, B) score matrix whose diagonal holds the true pairs."""

from __future__ import annotations

from typing import Any

import torch
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
    loss: Tensor = _InfoNCE.apply(scores)  # type: ignore[no-untyped-call]
    return loss


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


class _InfoNCE(torch.autograd.Function):
    """The mean of both cross entropies over B**2, with its gradient known in closed form.

    The same as (cross_entropy(logits) + cross_entropy(logits.T)) / 2 / B**2 in a third of the
    time: the two softmaxes are computed once for both directions.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        """(B, B) to a scalar."""
        size = len(scores)
        logits = scores / TEMPERATURE
        rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
        loss = -(rows.diagonal().sum() + columns.diagonal().sum()) / (2 * size**3)
        if ctx.needs_input_grad[0]:
            gradient = rows.exp_().add_(columns.exp_())
            gradient.diagonal().sub_(2)
            ctx.save_for_backward(gradient.mul_(1 / (2 * size**3 * TEMPERATURE)))
        return loss

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Tensor:  # type: ignore[override]
        """A scalar to (B, B)."""
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient
