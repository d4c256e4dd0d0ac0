"""Pooling patches with the CLS token's attention: one image embedding, or one per head."""

from __future__ import annotations

import torch
from torch import Tensor


def average_attention(attention_logits: Tensor, patches: Tensor) -> Tensor:
    """Pool the patches with the softmax of the mean of the heads' logits.

    Args:
        attention_logits: (B, H, P), CLS towards every patch, before softmax.
        patches: (B, P, D) patch embeddings.

    Returns:
        (B, D). As published, the *mean* of the weighted patches: a factor 1/P below their
        weighted sum, which the cosine cancels.
    """
    weights = attention_logits.mean(dim=1).softmax(dim=-1)  # (B, P)
    return torch.einsum("bp,bpd->bd", weights, patches) / patches.shape[1]


def head_embeddings(attention_logits: Tensor, patches: Tensor) -> Tensor:
    """Pool the patches once per attention head.

    Args:
        attention_logits: (B, H, P), CLS towards every patch, before softmax.
        patches: (B, P, D) patch embeddings.

    Returns:
        (B, H, D): per head the mean of the weighted patches, with the same factor 1/P as
        `average_attention`.
    """
    weights = attention_logits.softmax(dim=-1)  # (B, H, P)
    return torch.einsum("bhp,bpd->bhd", weights, patches) / patches.shape[1]
