"""How the per-head embeddings of images meet the embeddings of texts: one score per pair.

A strategy is one function and its place in `PER_HEAD` or `PAIRWISE`, at the end of this file.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.config import check_name
from talk2dino.processes import gather_rows


def align(
    visual: Tensor,
    text: Tensor,
    strategy: str = "max_score",
    alpha: float = 0.6,
    token_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float = 0.1,
    total: int | None = None,
) -> Tensor:
    """Scores of all pairs of a batch of all processes; the diagonal holds the true pairs.

    Args:
        visual: (B, D) one embedding per image, or (B, H, D) one per attention head.
        text: (B, D) one embedding per caption, or (B, T, D) one per token.
        strategy: a name of `PER_HEAD` or `PAIRWISE`; not used when both sides have one embedding
            each.
        alpha: for strategies that take it; see `takes`.
        token_mask: (B, T) bool, False for tokens that must not count.
        generator: randomness, for strategies that take it.
        temperature: for strategies that take it.
        total: pairs of all processes, if there are several; see `gather_rows`.

    Returns:
        (B, B): rows are texts and columns images, except for the pairwise strategies, where rows
        are images and columns texts.

    Raises:
        ValueError: unknown strategy, or one that cannot use token-level text.
    """
    check_name("alignment_strategy", strategy, strategies())
    given = {"alpha": alpha, "generator": generator, "temperature": temperature}
    options: dict[str, Any] = {n: value for n, value in given.items() if takes(strategy, n)}
    if strategy in PER_HEAD and text.ndim == 3:
        raise ValueError(
            f"alignment_strategy {strategy!r} needs one vector per caption, got token-level text. "
            f"Use one of: {', '.join(PAIRWISE)}."
        )
    per_head, draws = visual.ndim == 3 and strategy in PER_HEAD, "generator" in options
    if per_head and not draws:  # an image and its own caption: H times less to send
        visual = PER_HEAD[strategy](visual, text, **options)
    visual, text = gather_rows(visual, total), gather_rows(text, total)
    if per_head and draws:  # for the whole batch, alike in every process
        visual = PER_HEAD[strategy](visual, text, **options)
    if visual.ndim == 2 and text.ndim == 2:
        return text @ visual.T
    heads, tokens = (side if side.ndim == 3 else side.unsqueeze(1) for side in (visual, text))
    products = torch.einsum("ihd,jtd->ijht", heads, tokens)
    if token_mask is not None:
        products = products * gather_rows(token_mask.to(torch.uint8), total)[None, :, None, :]
    return PAIRWISE[strategy](products, **options)


def strategies() -> list[str]:
    return [*PER_HEAD, *PAIRWISE]


def takes(strategy: str, option: str) -> bool:
    """Whether a strategy uses `alpha`, `generator` or `temperature`: a parameter of that name."""
    return option in inspect.signature({**PER_HEAD, **PAIRWISE}[strategy]).parameters


def closest_head(visual: Tensor, text: Tensor) -> Tensor:
    """The head with the largest product with its own caption (paper section 3.3)."""
    return _take_head(visual, selected_heads(visual, text))


def drawn_head(visual: Tensor, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A head drawn from the softmax of the products with its own caption."""
    weights = own_products(visual, text).softmax(dim=-1)  # (B, H)
    drawn = torch.multinomial(weights.detach(), 1, generator=generator).squeeze(1)
    return _take_head(visual, drawn)


def weighted_heads(visual: Tensor, text: Tensor) -> Tensor:
    """As published, the *mean* over heads of softmax weight times embedding."""
    weights = own_products(visual, text).softmax(dim=-1)  # (B, H)
    return (weights.unsqueeze(-1) * visual).mean(dim=1)


def routed_heads(visual: Tensor, text: Tensor, temperature: float = 0.1) -> Tensor:
    """The sum of the heads, weighted by the softmax of the products with the own caption, as a unit
    vector; captions and heads have length 1."""
    weights = (own_products(visual, text) / temperature).softmax(dim=-1)  # (B, H)
    return F.normalize((weights.unsqueeze(-1) * visual).sum(dim=1), dim=-1)


def selected_heads(visual: Tensor, text: Tensor) -> Tensor:
    """(B, H, D) heads and (B, D) captions to (B,): the head most similar to its own caption."""
    return own_products(visual, text).argmax(dim=-1)


def own_products(visual: Tensor, text: Tensor) -> Tensor:
    """(B, H, D) heads and (B, D) captions to (B, H): products of each image with its caption."""
    # Ten times as fast on a CPU as the same einsum or as bmm(visual, text).
    return torch.bmm(text.unsqueeze(1), visual.transpose(1, 2)).squeeze(1)


def _take_head(visual: Tensor, heads: Tensor) -> Tensor:
    return visual[torch.arange(len(visual), device=visual.device), heads]


def nucleus_sum(products: Tensor, alpha: float = 0.6) -> Tensor:
    """The sum of the best head's largest products, which hold a share `alpha` of the mass."""
    ordered = products.amax(dim=2).sort(dim=-1, descending=True).values
    shifted = ordered - ordered[..., -1:]
    mass = shifted / shifted.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    before = mass.cumsum(dim=-1) - mass  # mass of the larger values
    return (ordered * (before <= alpha)).sum(dim=-1)


PER_HEAD: dict[str, Callable[..., Tensor]] = {
    "max_score": closest_head,
    "sampled_attn_map": drawn_head,
    "weighted_avg": weighted_heads,
    "soft_routing": routed_heads,
}
"""Strategy -> (B, H, D) heads and (B, D) captions to (B, D): image i with the help of text i."""
PAIRWISE: dict[str, Callable[..., Tensor]] = {
    "sum": lambda products: products.sum(dim=(2, 3)),
    "mean": lambda products: products.mean(dim=(2, 3)),
    "max-row_sum": lambda products: products.amax(dim=2).sum(dim=-1),
    "nucleus-sampling": nucleus_sum,
}
"""Strategy -> (B, B, H, T) products of heads of image i with tokens of text j to (B, B)."""
