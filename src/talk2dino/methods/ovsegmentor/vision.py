"""The image encoder: half a ViT over patches and tokens, the grouping, half a ViT over groups.

Also the decoder of masked entities, which is made of the same blocks. Names of parameters are those
of the published checkpoints. LayerNorm's eps is 1e-5 everywhere, also where DINO weights trained
with 1e-6 are loaded.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import check_fit, state_shapes
from talk2dino.backbones.vision import exact_positions, resized_table
from talk2dino.methods.ovsegmentor.config import VisionConfig


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
    # Exactly the choice, with the gradient of the softmax.
    return one_hot + (soft - soft.detach()) if training else one_hot


def average_weights(hard: Tensor) -> Tensor:
    """The weight of every patch in its group's mean: 1 / (n + 1) in a group of n patches.

    The 1 in the denominator is the published one; it shrinks small groups.
    """
    return hard / (hard.sum(dim=-1, keepdim=True) + 1)


class AssignAttention(CrossAttention):
    """Groups take the mean of the patches that choose them, with one head."""

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
        self.assign = AssignAttention(width, num_heads=1)
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
        self.assign = AssignAttention(width, num_heads=1)
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


@dataclass(frozen=True, eq=False)
class GroupFeatures:
    """What the encoder says of a batch of images."""

    groups: Tensor
    """(B, G, C) after the final LayerNorm."""
    mean: Tensor
    """(B, C) mean of the groups; it stands for the image."""
    assignment: Assignment
    """Which patch belongs to which group."""
    grid_hw: tuple[int, int]
    """Rows and columns of patches."""


class PatchStage(nn.Module):
    """Blocks over patches and group tokens, then the grouping (`layers.0` of a checkpoint)."""

    def __init__(self, config: VisionConfig, rates: list[float]) -> None:
        super().__init__()
        self.group_token = nn.Parameter(torch.zeros(1, config.num_tokens, config.width))
        self.blocks = _blocks(config, rates)
        self.downsample = GroupingBlock(
            config.width, config.num_tokens, config.num_groups, config.cross_heads
        )

    def forward(self, patches: Tensor) -> tuple[Tensor, Assignment]:
        """Patches (B, P, C) to groups (B, G, C)."""
        tokens = self.group_token.expand(len(patches), -1, -1)
        x = self.blocks(torch.cat([patches, tokens], dim=1))
        num_patches = patches.shape[1]
        return self.downsample(x[:, :num_patches], x[:, num_patches:])


class ImageEncoder(nn.Module):
    """Normalised RGB images to groups.

    Its state dict has the published names, with the position embedding as (P, C).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        depth = config.depth_patches + config.depth_groups
        rates = torch.linspace(0, config.drop_path, depth, device="cpu").tolist()
        self.pos_embed = nn.Parameter(torch.zeros(config.grid**2, config.width))
        # Pixels right of and below the last whole patch are not covered.
        self.patch_embed = PatchEmbed(
            None, config.patch_size, embed_dim=config.width, flatten=False
        )
        patch_stage = PatchStage(config, rates[: config.depth_patches])
        # Blocks over the groups; both stages have the names that a checkpoint has below `layers`.
        blocks = _blocks(config, rates[config.depth_patches :])
        group_stage = nn.Sequential(OrderedDict(blocks=blocks))
        self.layers = nn.ModuleList([patch_stage, group_stage])
        self.norm = nn.LayerNorm(config.width)
        self.apply(_initialise)
        for parameter in (self.pos_embed, patch_stage.group_token):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> GroupFeatures:
        """Encode images.

        Args:
            images: (B, 3, h, w) RGB, normalised with ImageNet's mean and std; in training of the
                configured size, otherwise of any size from one patch on.
        """
        embedded = self.patch_embed(images)  # (B, C, rows, columns)
        grid = (embedded.shape[2], embedded.shape[3])
        patches = embedded.flatten(2).transpose(1, 2) + self.positions(grid)
        patch_stage, group_stage = self.layers
        groups, assignment = patch_stage(patches)
        groups = self.norm(group_stage(groups))
        return GroupFeatures(groups, groups.mean(dim=1), assignment, grid)

    def positions(self, grid_hw: tuple[int, int]) -> Tensor:
        """The position embedding (P, C) at another grid: bicubic, without antialias."""
        side = self.config.grid
        return resized_table(self.pos_embed, (side, side), grid_hw, exact_positions)


def load_dino(encoder: ImageEncoder, state: Mapping[str, Tensor]) -> list[str]:
    """Start an encoder from the weights of a DINO ViT of its width and depth.

    DINO's blocks go in order, first before the grouping, then after it. The CLS token and its
    position are dropped; the group tokens and the grouping block stay as they are.

    Args:
        encoder: is changed.
        state: `dino_vitbase16_pretrain.pth` or `dino_deitsmall16_pretrain.pth`, or timm's names.

    Returns:
        The names that DINO has nothing for (41 in the published sizes).

    Raises:
        ValueError: the weights are of another size, or not of a ViT.
    """
    depth = encoder.config.depth_patches
    renamed = {}
    for name, value in state.items():
        if name == "cls_token" or name.startswith("head."):
            continue
        if name == "pos_embed":
            value = value.reshape(-1, value.shape[-1])[1:]
        elif name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            place = f"0.blocks.{index}" if int(index) < depth else f"1.blocks.{int(index) - depth}"
            name = f"layers.{place}.{rest}"
        renamed[name] = value
    wanted = state_shapes(encoder)
    grouping = ("layers.0.group_token", "layers.0.downsample.")
    own = [name for name in wanted if name.startswith(grouping)]
    for name in own:
        del wanted[name]
    check_fit(renamed, wanted, "these DINO weights do not fit the image encoder")
    encoder.load_state_dict(renamed, strict=False)
    logging.getLogger(__name__).info("%d tensors start without DINO weights", len(own))
    return own


def _blocks(config: VisionConfig, rates: list[float]) -> nn.Sequential:
    return nn.Sequential(*(attention_block(config.width, config.num_heads, r) for r in rates))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
