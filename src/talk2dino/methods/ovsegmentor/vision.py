"""The image encoder: half a ViT over patches and tokens, the grouping, half a ViT over groups."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import check_fit, state_shapes
from talk2dino.methods.ovsegmentor.blocks import Assignment, GroupingBlock, attention_block
from talk2dino.methods.ovsegmentor.config import VisionConfig

POSITIONS = "pos_embed"


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
        num_patches = patches.shape[1]
        tokens = self.group_token.expand(len(patches), -1, -1)
        x = torch.cat([patches, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
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
        blocks = nn.Sequential(*_blocks(config, rates[config.depth_patches :]))
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

        Raises:
            ValueError: another shape or size.
        """
        self._check_size(images)
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
        if grid_hw == (side, side):
            return self.pos_embed
        square = self.pos_embed.T.unflatten(1, (side, side))[None]  # (1, C, side, side)
        resized = F.interpolate(square, size=grid_hw, mode="bicubic", align_corners=False)
        return resized[0].flatten(1).T

    def _check_size(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, h, w), found {tuple(images.shape)}.")
        height, width = images.shape[-2:]
        side = self.config.image_size
        if self.training and (height, width) != (side, side):
            raise ValueError(
                f"training images must be {side} x {side} pixels, found {height} x {width}"
            )
        if min(height, width) < self.config.patch_size:
            raise ValueError(
                f"an image of {height} x {width} pixels is smaller than one patch "
                f"({self.config.patch_size} pixels)"
            )


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
        if name == POSITIONS:
            value = value.reshape(-1, value.shape[-1])[1:]
        elif name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            block = int(index)
            stage, block = (0, block) if block < depth else (1, block - depth)
            name = f"layers.{stage}.blocks.{block}.{rest}"
        renamed[name] = value
    shapes = state_shapes(encoder)
    own = [
        name
        for name in shapes
        if name == "layers.0.group_token" or name.startswith("layers.0.downsample.")
    ]
    wanted = {name: shape for name, shape in shapes.items() if name not in own}
    check_fit(renamed, wanted, "these DINO weights do not fit the image encoder")
    encoder.load_state_dict(renamed, strict=False)
    logging.getLogger(__name__).info("%d tensors start without DINO weights", len(own))
    return own


def _blocks(config: VisionConfig, rates: list[float]) -> nn.ModuleList:
    return nn.ModuleList(attention_block(config.width, config.num_heads, rate) for rate in rates)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
