"""Label propagation: patches that resemble each other share their scores.

A random walk with restart on the graph of nearest patches. Every step follows a similarity or, with
probability 1 - alpha, ends; a patch takes the mean of the scores where its walks end.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_BYTES = 1 << 28
"""Memory for similarities and systems of equations, unless one says otherwise: 256 MiB."""
_SERIES_ERROR = 1e-4
"""Of the sum of a series, as a share of the range of the scores."""


def propagate(
    features: Tensor,
    scores: Tensor,
    neighbours: int = 12,
    alpha: float = 0.98,
    most_bytes: int = MOST_BYTES,
) -> Tensor:
    """Spread scores along the similarities of patches.

    S' = (1 - alpha) (I - alpha A)^-1 S, where A_ij = max(cosine_ij, 0)^3 for the nearest j of
    every i, in rows that sum to one. New scores are convex combinations of the old ones, so
    thresholds keep their meaning.

    Args:
        features: (B, P, D), of any length.
        scores: (B, P, C); classes do not interact.
        neighbours: patches that each one is connected with, at most P - 1.
        alpha: in [0, 1), how far scores spread; 0 changes nothing.
        most_bytes: a graph that needs more to be solved at once is solved step by step.

    Returns:
        (B, P, C), of the type of `scores`.

    Raises:
        ValueError: shapes that do not fit, or numbers outside their range.
    """
    if features.ndim != 3 or scores.ndim != 3 or features.shape[:2] != scores.shape[:2]:
        raise ValueError(
            "features (B, P, D) and scores (B, P, C) are of the same patches, found "
            f"{tuple(features.shape)} and {tuple(scores.shape)}."
        )
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}.")
    patches = features.shape[1]
    if not 1 <= neighbours < patches:
        raise ValueError(
            f"each of {patches} patches has {patches - 1} others, so neighbours must be from 1 to "
            f"{patches - 1}, got {neighbours}."
        )
    unit = F.normalize(features.float(), dim=-1)
    graphs = [_nearest(of_window, neighbours, most_bytes) for of_window in unit]
    index, weights = (torch.stack(parts) for parts in zip(*graphs, strict=True))
    at_once = most_bytes // (8 * patches**2)  # the matrices and their factors
    parts = (whole.split(max(at_once, 1)) for whole in (scores.float(), index, weights))
    solve = _solved if at_once else _summed
    found = [solve(s, i, w, alpha) for s, i, w in zip(*parts, strict=True)]
    return torch.cat(found).to(scores.dtype)


def _nearest(unit: Tensor, neighbours: int, most_bytes: int) -> tuple[Tensor, Tensor]:
    """Columns and values (P, k) of the rows of A, from unit vectors (P, D) of one graph."""
    found = []
    everyone = torch.arange(len(unit), device=unit.device)
    for rows in everyone.split(max(most_bytes // (4 * len(unit)), 1)):
        similarity = unit[rows] @ unit.T
        similarity[rows - rows[0], rows] = -torch.inf
        found.append(similarity.topk(neighbours, dim=1))
    values, index = (torch.cat(part) for part in zip(*found, strict=True))
    weights = values.clamp(min=0) ** 3
    alone = ~(weights > 0).any(dim=1)
    index[alone, 0], weights[alone, 0] = everyone[alone], 1.0  # a patch like no other stays put
    return index, weights / weights.sum(dim=1, keepdim=True)


def _solved(scores: Tensor, index: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """S' of scores (B, P, C) by one system of equations per graph."""
    batch, patches, _ = scores.shape
    system = scores.new_zeros(batch, patches, patches).scatter_(2, index, -alpha * weights)
    system.diagonal(dim1=1, dim2=2).add_(1)
    before = torch.get_num_threads()
    # LAPACK on one core: on several, MKL 2024.2 is slower, and hangs with a batch of matrices.
    torch.set_num_threads(1)
    try:
        return torch.linalg.solve(system, (1 - alpha) * scores)
    finally:
        torch.set_num_threads(before)


def _summed(scores: Tensor, index: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """S' of scores (B, P, C) by walking until only `_SERIES_ERROR` is still on its way."""
    steps = math.ceil(math.log(_SERIES_ERROR) / math.log(alpha)) if alpha else 0
    summed = []
    for start, columns, values in zip(scores, index, weights, strict=True):
        total = start
        for _ in range(steps):
            mean = F.embedding_bag(columns, total, mode="sum", per_sample_weights=values)
            total = torch.lerp(start, mean, alpha)
        summed.append(total)
    return torch.stack(summed)
