"""The blocks that the image encoder and the entity decoder are made of, and that decoder.

In the grouping block learned tokens become a few groups, and every patch joins one of them.

Names of parameters are those of the published checkpoints. LayerNorm's eps is 1e-5 everywhere,
also where DINO weights trained with 1e-6 are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def attention_block(width: int, num_heads: int, drop_path: float = 0.0) -> Block:
    """A pre-norm transformer block. It takes no padding mask, so padded positions take part: the
    published one accepts a mask and never applies it, and the weights were trained that way."""
    block = Block(width, num_heads, qkv_bias=True, norm_layer=nn.LayerNorm, drop_path=drop_path)
    # Patches choose groups by an argmax: torch's fused kernel rounds differently, and moves one of
    # the 250880 pixels of the recorded label map.
    block.attn.fused_attn = False  # type: ignore[assignment]
    return block


def affinity(queries: Tensor, keys: Tensor) -> Tensor:
    """Scaled dot products (..., G, P) of queries (..., G, C) with keys (..., P, C)."""
    return queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5


class CrossAttention(nn.Module):
    """Multi-head attention of queries (B, T, C) towards keys (B, P, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        logits = affinity(self._heads(self.q_proj(queries)), self._heads(self.k_proj(keys)))
        attended = logits.softmax(dim=-1) @ self._heads(self.v_proj(keys))
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, C / H)


class CrossAttentionBlock(nn.Module):
    """Queries read from keys; neither is normalised on the way in, the result is."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        x = queries + self.attn(queries, keys)
        return self.norm_post(x + self.mlp(self.norm2(x)))


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which patch belongs to which group."""

    hard: Tensor
    """(B, G, P) one-hot over the groups. In training its gradient is that of a noisy softmax."""
    soft: Tensor
    """(B, G, P) softmax over the groups, without noise; it sums to 1 for every patch."""
    queries: Tensor
    """(B, G, C) of the groups."""
    keys: Tensor
    """(B, P, C) of the patches."""


def choose_groups(logits: Tensor, training: bool) -> Tensor:
    """A one-hot choice of a group per patch, with the gradient of the softmax it is taken from.

    Args:
        logits: (B, G, P).
        training: add Gumbel noise first, so that the choice is a sample (temperature 1).
    """
    if training:
        # -log of an exponential variable is a Gumbel variable; clamped away from log(0).
        noise = torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny)
        logits = logits - noise.log()
    soft = logits.softmax(dim=-2)
    one_hot = torch.zeros_like(soft).scatter_(-2, soft.argmax(dim=-2, keepdim=True), 1.0)
    return straight_through(one_hot, soft) if training else one_hot


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `gradient`."""
    return value + (gradient - gradient.detach())


def average_weights(hard: Tensor) -> Tensor:
    """The weight of every patch in its group's mean: 1 / (n + 1) in a group of n patches.

    The 1 in the denominator is the published one; it shrinks small groups.
    """
    return hard / (hard.sum(dim=-1, keepdim=True) + 1)


class AssignAttention(CrossAttention):
    """Groups take the mean of the patches that choose them; one head."""

    def __init__(self, width: int) -> None:
        super().__init__(width, num_heads=1)

    def forward(  # type: ignore[override]  # also which patch chose which group
        self, groups: Tensor, patches: Tensor
    ) -> tuple[Tensor, Assignment]:
        """Groups (B, G, C) and patches (B, P, C) to the groups' means (B, G, C)."""
        queries, keys = self.q_proj(groups), self.k_proj(patches)
        logits = affinity(queries, keys)
        hard = choose_groups(logits, self.training)
        means = self.proj(average_weights(hard) @ self.v_proj(patches))
        return means, Assignment(hard, logits.softmax(dim=-2), queries, keys)


class GroupingBlock(nn.Module):
    """Tokens (B, T, C) are mixed into groups, read the patches, and gather their own patches."""

    def __init__(self, width: int, num_tokens: int, num_groups: int, num_heads: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.mlp_inter = Mlp(num_tokens, width // 2, num_groups)
        self.norm_post_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.pre_assign_attn = CrossAttentionBlock(width, num_heads)
        self.assign = AssignAttention(width)
        self.norm_new_x = nn.LayerNorm(width)
        self.mlp_channels = Mlp(width, 4 * width, width)

    def forward(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Assignment]:
        """Patches (B, P, C) and tokens (B, T, C) to groups (B, G, C)."""
        patches = self.norm_x(patches)
        mixed = self.mlp_inter(self.norm_tokens(tokens).transpose(1, 2))  # (B, C, G)
        groups = self.norm_post_tokens(mixed.transpose(1, 2))
        groups = self.pre_assign_attn(groups, patches)
        means, assignment = self.assign(groups, patches)
        groups = means + groups
        return groups + self.mlp_channels(self.norm_new_x(groups)), assignment


class EntityBlock(nn.Module):
    """Words read the groups, then each other.

    Padding takes part: the published attention ignores its mask. `assign` is never used either;
    it exists because the published checkpoints hold it, and gets no gradient.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.pre_assign_attn = CrossAttentionBlock(width, num_heads)
        self.assign = AssignAttention(width)
        self.post_attn = attention_block(width, num_heads)
        self.norm_new_x = nn.LayerNorm(width)

    def forward(self, groups: Tensor, words: Tensor) -> Tensor:
        """Groups (B, G, m) and words (B, T, m) to completed words (B, T, m)."""
        read = self.pre_assign_attn(self.norm_tokens(words), self.norm_x(groups))
        return self.norm_new_x(self.post_attn(read) + read)


class EntityDecoder(nn.Module):
    """One block; the first position of its output stands for the completed caption."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([EntityBlock(width, num_heads)])

    def forward(self, groups: Tensor, words: Tensor) -> Tensor:
        """Groups (B, G, m) and words (B, T, m) to (B, m)."""
        return self.blocks[0](groups, words)[:, 0]
