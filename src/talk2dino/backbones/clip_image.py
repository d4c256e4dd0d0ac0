"""CLIP's image tower with its blocks exposed, for methods that change what a block does."""

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import FrozenModel, WithoutInitialisation, load_strict
from talk2dino.backbones.seeded import default_weights
from talk2dino.backbones.text import (
    GELU,
    TextEncoder,
    architecture,
    check_clip,
    clip_state,
    create_text_tower,
    text_from_state,
)
from talk2dino.backbones.vision import Positions, resized_table
from talk2dino.devices import float32_by_default

PREFIX = "visual."
"""What the names of the image tower begin with in a whole CLIP's checkpoint."""


class ClipImage(FrozenModel):
    """CLIP's image tower, open_clip's."""

    def __init__(self, model: VisionTransformer, name: str, weights: str) -> None:
        super().__init__(model, name, weights)
        self.patch_size: int = model.patch_size[0]
        self.num_heads: int = model.transformer.resblocks[0].attn.num_heads
        self.embed_dim: int = model.output_dim
        self.blocks: Any = model.transformer.resblocks

    def colour_statistics(self, digits: int = 10) -> tuple[Tensor, Tensor]:
        """CLIP's mean and deviation of RGB in [0, 255], (3, 1, 1), rounded to so many digits."""
        mean, std = (
            self.model.proj.new_tensor([round(value * 255, digits) for value in values])
            for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        return mean.view(3, 1, 1), std.view(3, 1, 1)

    def normalise(self, images_rgb: Tensor, digits: int = 10) -> Tensor:
        """(B, 3, h, w) RGB in [0, 255] to zero mean and unit deviation.

        Args:
            images_rgb: whole or fractional values.
            digits: of mean and deviation; some methods keep 3.
        """
        mean, std = self.colour_statistics(digits)
        return (images_rgb - mean) / std

    def tokens(self, images: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """What enters the first block; pixels behind the last whole patch are left out.

        Args:
            images: (B, 3, H, W), normalised.
            positions: how the position table is resized for other grids than its own.

        Returns:
            tokens (B, 1 + h*w, D), the CLS token first, rows before columns, and the grid (h, w).
        """
        if min(images.shape[-2:]) < self.patch_size:
            high, wide = images.shape[-2:]
            raise ValueError(
                f"a window of {wide} x {high} px is smaller than the {self.patch_size}-pixel "
                f"patches of CLIP {self.name}. Give a larger picture."
            )
        patches = self.model.conv1(images)  # (B, D, h, w)
        grid = (patches.shape[2], patches.shape[3])
        cls_position, table = self.model.positional_embedding.tensor_split([1])
        table = resized_table(table, self.model.grid_size, grid, positions)
        cls = (self.model.class_embedding + cls_position).expand(len(images), 1, -1)
        return self.model.ln_pre(
            torch.cat([cls, patches.flatten(2).transpose(1, 2) + table], dim=1)
        ), grid

    def project(self, tokens: Tensor) -> Tensor:
        """(..., D) after the last block to the space of the text (..., E)."""
        return self.model.ln_post(tokens) @ self.model.proj


def queries_keys_values(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a block's attention compares and mixes: three (B, N, D), heads side by side."""
    untyped: Any = block
    attention, normed = untyped.attn, untyped.ln_1(tokens)
    query, key, value = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias).chunk(
        3, dim=-1
    )
    return query, key, value


def load_clip(
    name: str = "ViT-B/16", weights: str | None = None, device: str | torch.device = "cpu"
) -> tuple[ClipImage, TextEncoder]:
    """Load both frozen towers of one CLIP.

    Args:
        name: of `CLIP_MODELS` (with `-gelu` for weights of that activation) or of `TOYS`.
        weights: `pretrained` (OpenAI's or LAION's, through open_clip), a file in OpenAI's or
            open_clip's layout with both towers, or `seeded:<n>`.
        device: where to put them.

    Raises:
        ValueError: unknown name, or weights that do not fit.
        FileNotFoundError: no such weights file.
        RuntimeError: the weights could not be downloaded.
    """
    check_clip(name, weights)
    weights = weights or default_weights(name)
    towers = {PREFIX: create_image_tower(name), "": create_text_tower(name)}
    name, state = clip_state(name, weights, towers)
    model = create_image_tower(name)
    own = {k.removeprefix(PREFIX): value for k, value in state.items() if k.startswith(PREFIX)}
    load_strict(model, own, weights)
    image = ClipImage(model, name, weights).to(device)
    return image, text_from_state(name, state, weights).to(device)


@WithoutInitialisation()
@float32_by_default()
def create_image_tower(name: str) -> VisionTransformer:
    """CLIP's image tower without weights."""
    config = architecture(name)
    return _build_vision_tower(config["embed_dim"], config["vision_cfg"], not name.endswith(GELU))


def margins(length: int, multiple: int) -> tuple[int, int]:
    """Pixels to put before and behind a side so that it becomes a multiple."""
    missing = -length % multiple
    return missing // 2, missing - missing // 2


def pad_to_multiple(images: Tensor, multiple: int, colour: Tensor | float = 0.0) -> Tensor:
    """One colour (C, 1, 1) around images (B, C, H, W) until both sides are multiples."""
    (batch, channels, *size_hw) = images.shape
    padded = [side + sum(margins(side, multiple)) for side in size_hw]
    canvas = images.new_empty(batch, channels, *padded)
    canvas[:] = colour
    crop_margins(canvas, (size_hw[0], size_hw[1]), multiple).copy_(images)
    return canvas


def crop_margins(scores: Tensor, size_hw: tuple[int, int], multiple: int) -> Tensor:
    """The inverse of `pad_to_multiple`: (..., H, W) of padded images to (..., *size_hw)."""
    (high, wide), (top, left) = size_hw, (margins(side, multiple)[0] for side in size_hw)
    return scores[..., top : top + high, left : left + wide]
