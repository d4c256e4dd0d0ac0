"""The entity decoder, for training: a caption with masked entities reads the image's groups."""

from __future__ import annotations

from torch import Tensor, nn

from talk2dino.methods.ovsegmentor.blocks import AttentionBlock, CrossAttentionBlock
from talk2dino.methods.ovsegmentor.grouping import AssignAttention


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
        self.post_attn = AttentionBlock(width, num_heads)
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
