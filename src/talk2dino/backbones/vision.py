"""Vision backbones: images in; CLS, patches and the CLS token's attention to the patches out."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from huggingface_hub.constants import ENDPOINT
from PIL import Image
from timm.models import eva, get_pretrained_cfg, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from talk2dino.backbones.checkpoints import (
    FrozenModel,
    WithoutInitialisation,
    check_fit,
    check_layout,
    load_strict,
    state_of,
    state_shapes,
)
from talk2dino.backbones.seeded import (
    PRETRAINED,
    check_weights,
    default_weights,
)
from talk2dino.config import check_name, reason
from talk2dino.devices import float32_by_default

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TOY = "toy"
DINO_TOY = "dino_toy"
PLAIN_TOY = "toy_without_registers"
TOYS = (TOY, DINO_TOY, PLAIN_TOY)
EXACT, FAST = RESIZES = ("exact", "fast")
"""How pictures are resized: by PIL, or by PyTorch, from a JPEG at a part of its size."""
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
# The names users type, and the timm models behind them.
SHORT_NAMES = {
    **{f"dinov2_vit{s}14": f"vit_{n}_patch14_dinov2.lvd142m" for s, n in _SIZES.items()},
    **{f"dinov2_vit{s}14_reg": f"vit_{n}_patch14_reg4_dinov2.lvd142m" for s, n in _SIZES.items()},
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    **{f"dinov3_vit{s}16": f"vit_{_SIZES[s]}_patch16_dinov3.lvd1689m" for s in "sbl"},
}
"""Official hub name -> timm name with its weights tag."""
TIMM_MODULES = ("vision_transformer", "eva", "deit")
"""Parts of timm whose models are plain ViTs."""


class PatchFeatures(NamedTuple):
    """What a backbone says of a batch of images."""

    cls: Tensor
    """(B, D) CLS token after the final LayerNorm."""
    patches: Tensor
    """(B, P, D) patch embeddings after the final LayerNorm; rows of the image come first."""
    attention_logits: Tensor
    """(B, H, P) last block, CLS towards every patch, before softmax, scaled by 1/sqrt(64)."""
    penultimate_cls: Tensor
    """(B, D) CLS token after the second-to-last block, before the final norm."""


@dataclass(frozen=True)
class ImageTransform:
    """PIL image to the pixels a backbone sees; can be sent to worker processes."""

    resize_dim: int
    """Short side after resizing (bicubic, antialiased), in pixels."""
    crop_dim: int
    """Side of the central crop, in pixels."""
    resize: str = EXACT
    """One of RESIZES."""

    @property
    def least(self) -> int:
        """Short side that a JPEG may be decoded at, in pixels; 0 for its own."""
        return 2 * self.resize_dim if self.resize == FAST else 0

    def __call__(self, image_rgb: Image.Image) -> Tensor:
        """An RGB image of any size to (3, crop_dim, crop_dim) uint8."""
        if self.resize == FAST:
            pixels = TF.pil_to_tensor(image_rgb).unsqueeze(0)
            size = [self.resize_dim * side // min(image_rgb.size) for side in pixels.shape[2:]]
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)[0]
            return TF.center_crop(pixels, [self.crop_dim, self.crop_dim]).contiguous()
        resized = TF.resize(image_rgb, [self.resize_dim], InterpolationMode.BICUBIC)
        return TF.pil_to_tensor(TF.center_crop(resized, [self.crop_dim, self.crop_dim]))


class VisionBackbone(FrozenModel):
    """A vision transformer of timm's, a `VisionTransformer` or `Eva` (DINOv3), with a CLS token.

    It comes with its preprocessing.
    """

    def __init__(self, model: VisionTransformer | Eva, name: str, weights: str) -> None:
        super().__init__(model, name, weights)
        # Timm's name of a DINO keeps timm's interpolation, the official name has the official one.
        without_registers = _is_dinov2(model) and model.num_prefix_tokens == 1
        self.offset_positions = name.startswith("dino_") or without_registers
        self.embed_dim: int = model.embed_dim
        self.num_heads: int = self.model.blocks[-1].attn.num_heads
        self.patch_size: int = self.model.patch_embed.patch_size[0]
        self.mean: Tensor
        self.std: Tensor
        mean, std = normalisation(name)
        for key, values in (("mean", mean), ("std", std)):
            constant = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(key, constant, persistent=False)

    def image_transform(
        self, resize_dim: int, crop_dim: int, resize: str = EXACT
    ) -> ImageTransform:
        """The transform from PIL images for this backbone; `resize` is one of RESIZES.

        Raises:
            ValueError: `crop_dim` does not divide into whole patches.
        """
        check_sides(self.name, self.patch_size, crop_dim)
        return ImageTransform(resize_dim, crop_dim, resize)

    def normalise(self, images_rgb: Tensor) -> Tensor:
        """(B, 3, h, w) RGB in [0, 255], uint8 or float, to zero mean and unit std."""
        return (images_rgb.to(self.mean.dtype) / 255 - self.mean) / self.std

    def forward(self, images: Tensor) -> PatchFeatures:
        """Run the backbone.

        Args:
            images: (B, 3, h, w), normalised; h and w multiples of the patch size.
        """
        check_sides(self.name, self.patch_size, *images.shape[-2:])
        tokens, rope = self._embed(images)
        *blocks, last = self.model.blocks
        for block in blocks:
            tokens = block(tokens, **rope)
        penultimate_cls = tokens[:, 0]
        prefix = self.model.num_prefix_tokens
        logits = cls_attention_logits(last.attn, last.norm1(tokens), prefix)
        tokens = self.model.norm(last(tokens, **rope))
        return PatchFeatures(tokens[:, 0], tokens[:, prefix:], logits, penultimate_cls)

    def _embed(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens with positions (B, prefix + P, D), and the rotary embedding for the blocks."""
        grid = self.model.patch_embed(images)  # (B, gh, gw, D)
        rope = {}
        if self.offset_positions:
            tokens = self._add_offset_positions(grid)
        elif isinstance(self.model, Eva):
            tokens, rotary = self.model._pos_embed(grid)
            rope = {} if rotary is None else {"rope": rotary}
        else:
            tokens = self.model._pos_embed(grid)
        return self.model.norm_pre(tokens), rope

    def _add_offset_positions(self, grid: Tensor) -> Tensor:
        """Positions of DINO and DINOv2 without registers: no antialias, and 0.1 added to the grid.

        The official code added 0.1 against rounding errors; published weights and numbers keep it.
        """
        size_hw = (grid.shape[1], grid.shape[2])
        positions = self.model.pos_embed[0]
        table = resized_table(
            positions[1:], self.model.patch_embed.grid_size, size_hw, offset_positions
        )
        cls = (self.model.cls_token + positions[:1]).expand(len(grid), -1, -1)
        return torch.cat([cls, grid.flatten(1, 2) + table], dim=1)


Positions = Callable[[Tensor, tuple[int, int]], Tensor]
"""A rule: position table (1, D, h, w) of one grid, and another grid, to positions of that."""


def resized_table(
    table: Tensor, own: tuple[int, int], grid: tuple[int, int], rule: Positions
) -> Tensor:
    """Positions (P, D) of a grid's patches, row by row, for another grid."""
    if grid == own:  # and not the number of patches: 7 x 28 is not 14 x 14
        return table
    return rule(table.T.unflatten(1, own)[None], grid)[0].flatten(1).T


def exact_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic without antialias, to the exact grid."""
    return F.interpolate(table, size=grid, mode="bicubic")


def offset_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic without antialias, with 0.1 added to the grid, as the official DINO code does."""
    side = table.shape[-1]
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    return F.interpolate(table, scale_factor=scale, mode="bicubic")


def cls_attention_logits(attention: nn.Module, tokens: Tensor, num_prefix: int) -> Tensor:
    """The CLS row of an attention, without forming the P x P matrix.

    For DINOv3 queries and keys are taken before the rotary embedding, as in the published
    projections' training.

    Args:
        attention: timm's `Attention` or `EvaAttention`.
        tokens: (B, N, D) its input: CLS, registers, then the patches.
        num_prefix: tokens before the first patch.

    Returns:
        (B, H, P) logits q_cls . k_patch / sqrt(head width).
    """
    attn: Any = attention
    if attn.qkv is None:
        weights, biases = (
            (attn.q_proj.weight, attn.k_proj.weight),
            (attn.q_proj.bias, attn.k_proj.bias),
        )
    else:
        own = (getattr(attn, "q_bias", None), getattr(attn, "k_bias", None))
        weights = attn.qkv.weight.chunk(3)
        biases = own if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
    heads = attn.num_heads
    queries, keys = (
        F.linear(part, weights[place], biases[place]).unflatten(-1, (heads, -1))
        for place, part in enumerate((tokens[:, 0], tokens[:, num_prefix:]))
    )
    queries, keys = attn.q_norm(queries), attn.k_norm(keys)  # (B, H, d), (B, P, H, d)
    return torch.einsum("bhd,bphd->bhp", queries, keys) * attn.scale


def average_attention(attention_logits: Tensor, patches: Tensor) -> Tensor:
    """Pool the patches with the softmax of the mean of the heads' logits.

    Args:
        attention_logits: (B, H, P), CLS towards every patch, before softmax.
        patches: (B, P, D) patch embeddings.

    Returns:
        (B, D). As published, the *mean* of the weighted patches: a factor 1/P below their
        weighted sum, which the cosine cancels.
    """
    return head_embeddings(attention_logits.mean(dim=1, keepdim=True), patches)[:, 0]


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


def check_sides(name: str, size: int, *sides: int) -> None:
    """Raise ValueError unless sides in pixels divide into whole patches of `size` pixels."""
    for side in sides:
        if side < size or side % size:
            fitting = max(round(side / size), 1) * size
            raise ValueError(
                f"an image side of {side} px does not divide into the {size}-pixel patches "
                f"of {name}. Use {fitting} (for example --resize_dim and --crop_dim)."
            )


def check_vision(name: str, weights: str | None = None) -> None:
    """Raise ValueError or FileNotFoundError for a backbone that cannot be loaded; loads nothing."""
    if name not in (*TOYS, *SHORT_NAMES):
        architecture = name.partition(".")[0]
        timm_names = [m for module in TIMM_MODULES for m in timm.list_models(module=module)]
        if architecture not in timm_names:
            known = [TOY, *SHORT_NAMES, "or any timm ViT name"]
            check_name("vision model", name, known, similar=[*known, *timm_names])
    check_weights("vision", name, weights)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of RGB in [0, 1] that a backbone was trained with, from timm's configuration."""
    found = None if name == TOY else get_pretrained_cfg(SHORT_NAMES.get(name, name))
    return (IMAGENET_MEAN, IMAGENET_STD) if found is None else (found.mean, found.std)


def recorded_normalisation(name: str) -> dict[str, list[float]]:
    """`mean` and `std` for settings that are stored; nothing stands for ImageNet's.

    Until backbones had their own, everything was made with ImageNet's, and settings had neither.
    """
    mean, std = normalisation(name)
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return {}
    return {"mean": list(mean), "std": list(std)}


def patch_size(name: str) -> int:
    """Side of a backbone's patches in pixels; builds it without memory and loads nothing."""
    with torch.device("meta"):
        return _create(name, pretrained=False).patch_embed.patch_size[0]


def load_vision(
    name: str, weights: str | None = None, device: str | torch.device = "cpu"
) -> VisionBackbone:
    """Load a frozen backbone.

    Args:
        name: `toy`, a name of `SHORT_NAMES`, or any timm ViT (`vit_base_patch16_dinov3.lvd1689m`).
        weights: `pretrained` (timm's download), a file (official DINOv2/DINOv3 `.pth`, timm state
            dict, safetensors) or `seeded:<n>`. Default: pretrained, for toy seeded:0.
        device: where to put it.

    Raises:
        ValueError: unknown name, no CLS token, weights that do not fit.
        FileNotFoundError: no such weights file.
        RuntimeError: the weights could not be downloaded.
    """
    check_vision(name, weights)
    weights = weights or default_weights(name)
    if weights == PRETRAINED:
        return VisionBackbone(_create(name, pretrained=True), name, weights).to(device)
    state = state_of(weights, lambda: official_shapes(_create(name, pretrained=False)))
    return vision_from_state(name, state, weights).to(device)


def vision_from_state(name: str, state: dict[str, Tensor], weights: str) -> VisionBackbone:
    """A frozen backbone from a state dict, official or timm's.

    Args:
        name: as in `load_vision`.
        state: name -> tensor.
        weights: where the state dict came from.

    Raises:
        ValueError: unknown name, or weights that do not fit.
    """
    model = _create(name, pretrained=False)
    check_layout(state, weights, _addresses(SHORT_NAMES.get(name, name)))
    if "mask_token" in state and _is_dinov2(model):
        complaint = f"{weights} is not the official checkpoint of {name}"
        check_fit(state, official_shapes(model), complaint)
    load_strict(model, to_timm(state, model, weights), weights)
    return VisionBackbone(model, name, weights)


def create_toy(num_registers: int = 4) -> VisionTransformer:
    """The toy architecture: DINOv2's, 4 blocks of width 192 with 3 heads."""
    registers = {"reg_tokens": num_registers, "no_embed_class": num_registers > 0}
    return _small(img_size=518, patch_size=14, depth=4, init_values=1e-5, **registers)


def _small(**shape: Any) -> VisionTransformer:
    shape |= {"embed_dim": 192, "num_heads": 3, "num_classes": 0, "global_pool": "token"}
    return VisionTransformer(dynamic_img_size=True, **shape)


def official_shapes(model: VisionTransformer | Eva) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's official checkpoint.

    DINOv2 (a 37 x 37 position grid and LayerScale) is named as in `dinov2_*_pretrain.pth`,
    where the CLS token has a position of its own; every other model as in timm.
    """
    shapes = state_shapes(model)
    if not _is_dinov2(model):
        return shapes
    dim = model.embed_dim
    mlp: Any = model.blocks[0].mlp
    swiglu = mlp.fc1.out_features != mlp.fc2.in_features  # the giant model's feed-forward
    official: dict[str, tuple[int, ...]] = {"mask_token": (1, dim)}
    for name, shape in shapes.items():
        if name == "pos_embed":
            shape = (1, model.patch_embed.num_patches + 1, dim)
        name = name.replace("reg_token", "register_tokens")
        if swiglu:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        official[name] = shape
    return official


def _addresses(timm_name: str) -> str:
    """Where a browser finds a backbone's weights."""
    entry = get_pretrained_cfg(timm_name)
    if entry is None:
        return "the official .pth or timm's safetensors"
    places = [f"{ENDPOINT}/{entry.hf_hub_id}"] if entry.hf_hub_id else []
    places += [str(entry.url)] if entry.url else []
    return f"the official .pth or timm's model.safetensors ({' or '.join(places)})"


@float32_by_default()
def _create(name: str, pretrained: bool) -> VisionTransformer | Eva:
    if name in TOYS:
        with WithoutInitialisation():
            if name == DINO_TOY:  # DINO's architecture
                return _small(img_size=224, patch_size=8, depth=3)
            return create_toy(4 if name == TOY else 0)
    timm_name = SHORT_NAMES.get(name, name)
    settings: dict[str, Any] = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True}
    if "patch14_dinov2" in timm_name or "patch14_reg4_dinov2" in timm_name:
        settings["img_size"] = 518
    published = get_pretrained_cfg(timm_name)
    # With a head that we have no use for, timm does not insist on all other weights.
    whole = not pretrained or (published is not None and published.num_classes == 0)
    try:
        with WithoutInitialisation() if whole else contextlib.nullcontext():
            model = timm.create_model(timm_name, pretrained=pretrained, **settings)
    except Exception as error:  # timm and the hub raise what their network libraries raise
        if not pretrained:
            raise ValueError(f"timm cannot build {timm_name!r} as a plain ViT: {error}") from error
        raise RuntimeError(
            f"could not download the weights of {timm_name} ({reason(error)}). Give a local "
            f"file instead (--vision_weights FILE): {_addresses(timm_name)}. Or seeded:0 for a "
            "trial run without weights."
        ) from error
    if not isinstance(model, VisionTransformer | Eva) or model.cls_token is None:
        raise ValueError(f"{name} is not a ViT with a CLS token, whose attention is needed")
    if getattr(model, "rope_mixed", False):
        raise ValueError(f"{name} uses mixed rotary embeddings, which are not supported")
    return model


def _is_dinov2(model: VisionTransformer | Eva) -> bool:
    if isinstance(model, Eva) or model.pos_embed is None or model.patch_embed.patch_size[0] != 14:
        return False
    return model.patch_embed.grid_size == (37, 37) and hasattr(model.blocks[0].ls1, "gamma")


def to_timm(
    state: dict[str, Tensor], model: VisionTransformer | Eva, source: str = "state dict"
) -> dict[str, Tensor]:
    """An official or timm state dict under timm's names; a classifier head is dropped.

    Raises:
        ValueError: it belongs to another architecture.
    """
    convert = eva if isinstance(model, Eva) else vision_transformer
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints while it probes for biases
            converted = convert.checkpoint_filter_fn(dict(state), model)
    except (RuntimeError, LookupError, AttributeError) as error:
        raise ValueError(f"{source}: the weights are of another architecture ({error})") from error
    return {name: value for name, value in converted.items() if not name.startswith("head.")}
