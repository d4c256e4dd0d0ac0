"""The training losses, on a (B, B) score matrix whose diagonal holds the true pairs.

A loss is one function and its place in `LOSSES`. Its parameters after the scores are its own keys
of a recipe's `train:` section, with their types and defaults; it refuses values that cannot work.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(scores: Tensor, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE (paper section 3.3), divided by B**2.

    The division is part of the published training: gradients come close to Adam's eps of 1e-8,
    so it is not neutral. For full batches it acts like no division and eps = 1e-8 * B**2.

    Args:
        scores: (B, B) cosines.
        temperature: what they are divided by; constant, not trained.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    logits = scores / temperature
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
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and not negative, got {margin}")
    diagonal = scores.diagonal()
    true_pairs = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    cost_rows = (margin + scores - diagonal[:, None]).relu().masked_fill(true_pairs, 0)
    cost_columns = (margin + scores - diagonal[None, :]).relu().masked_fill(true_pairs, 0)
    if max_violation:
        cost_rows, cost_columns = cost_rows.amax(dim=1), cost_columns.amax(dim=0)
    return (cost_rows.sum() + cost_columns.sum()) / len(scores) ** 2


LOSSES: dict[str, Callable[..., Tensor]] = {"infonce": infonce, "triplet": triplet}
"""`ltype` of a recipe -> the loss; a further one is added here and nowhere else."""
