"""Background cleaning: class scores are raised where the backbone's attention heads agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clean_background(
    masks: Tensor,
    patches: Tensor,
    attention_logits: Tensor,
    classes: Tensor,
    weight: float = 0.2,
) -> Tensor:
    """Mix into every class map the attention of the heads that resemble the class.

    A foreground class gains inside objects, which the CLS token attends to, and so rises above a
    fixed background threshold there. Windows do not influence each other.

    Args:
        masks: (B, C, P) sigmoid of the cosine between patches and classes.
        patches: (B, P, D) patch embeddings, not normalised.
        attention_logits: (B, H, P) CLS towards every patch, before softmax.
        classes: (C, D) unit-length class embeddings.
        weight: the paper's lambda, the share of the attention map.

    Returns:
        (B, C, P).
    """
    if masks.shape[1] == 0:
        return masks.clone()
    # As published, heads are pooled with the logits themselves, not with their softmax.
    heads = torch.einsum("bhp,bpd->bhd", attention_logits, patches) / patches.shape[1]
    heads = F.normalize(heads, dim=-1)
    head_weights = torch.einsum("cd,bhd->bch", classes, heads).softmax(dim=-1)
    attention = torch.einsum("bch,bhp->bcp", head_weights, attention_logits).softmax(dim=-1)
    lowest, highest = attention.amin(dim=(1, 2)), attention.amax(dim=(1, 2))
    # As published, divided by the maximum and not by the range.
    attention = (attention - lowest[:, None, None]) / highest[:, None, None]
    floor, ceiling = masks.amin(dim=(1, 2))[:, None, None], masks.amax(dim=(1, 2))[:, None, None]
    attention = attention * (ceiling - floor) + floor
    return (masks + weight * attention) / (1 + weight)
