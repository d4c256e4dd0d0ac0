"""The tensors of a whole model in one file: which part each belongs to, and what they are.

The layout is the published one: `model.*` the vision backbone, `clip_model.*` CLIP, `proj.*` the
projection. Architectures are read from the shapes, so they need no configuration file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from talk2dino.backbones.checkpoints import looks_like, read_state_dict
from talk2dino.methods.talk2dino.projection import ProjectionConfig

VISION, TEXT, PROJECTION = "model.", "clip_model.", "proj."
UNUSED = ("pamr.", "logit_scale", "clip_model.logit_scale")
"""Published files also hold these; refinement has no weights, the temperature is constant."""

_SIZES = {384: ("s", "small"), 768: ("b", "base"), 1024: ("l", "large"), 1536: ("g", "giant")}
_OLD_SCALES = (
    (re.compile(r"\.weight_([12])$"), r".gamma_\1"),
    (re.compile(r"\.(ls[12])\.weight$"), r".\1.gamma"),
)


@dataclass(frozen=True, eq=False)
class ModelParts:
    """The three state dicts of a model, under their own names."""

    vision: dict[str, Tensor]
    """The backbone, in DINOv2's or timm's naming; empty if the file holds the projection only."""
    text: dict[str, Tensor]
    """CLIP or its text tower, in OpenAI's naming; empty likewise."""
    projection: dict[str, Tensor]
    """The projection."""


def read_model(path: str | Path) -> dict[str, Tensor]:
    """`read_state_dict`; a `state_dict()` of `AutoModel`'s or a segmenter gets the file's names."""
    state = read_state_dict(path)
    if not any(name.startswith("projection.") for name in state):
        return state
    own = {"vision.model.": VISION, "text.model.": TEXT, "projection.": PROJECTION}
    renamed = {}
    for name, value in state.items():
        old = next((prefix for prefix in own if name.startswith(prefix)), "")
        renamed[own.get(old, "") + name[len(old) :]] = value
    return renamed


def split_parts(state: Mapping[str, Tensor], source: str) -> ModelParts:
    """Take a file's tensors apart.

    Args:
        state: name -> tensor of a whole model, or of the projection alone (`proj.*`).
        source: the file, for messages.

    Raises:
        ValueError: it is another model; the message says which it looks like.
    """
    parts: dict[str, dict[str, Tensor]] = {VISION: {}, TEXT: {}, PROJECTION: {}}
    others = []
    for name, value in state.items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if name.startswith(UNUSED):
            continue
        if prefix is None:
            others.append(name)
        else:
            parts[prefix][name[len(prefix) :]] = (
                value.float() if value.is_floating_point() else value
            )
    vision, text, projection = parts[VISION], parts[TEXT], parts[PROJECTION]
    missing = [
        f"{prefix}*"
        for prefix, name in ((VISION, "patch_embed.proj.weight"), (TEXT, "token_embedding.weight"))
        if (vision or text) and name not in parts[prefix]
    ]
    if others or missing or not projection:
        raise ValueError(_complaint(state, source, others, missing, bool(projection)))
    return ModelParts(_renamed_scales(vision), text, projection)


def identify_vision(state: Mapping[str, Tensor], source: str) -> str:
    """The backbone's name, read from its tensors.

    Raises:
        ValueError: none of the published backbones has these shapes.
    """
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, source)
    registers = "register_tokens" in state or "reg_token" in state
    letter, size = _SIZES.get(width, (None, None))
    if patch == 14 and width == 192 and registers:
        return "toy"
    if patch == 14 and letter and "pos_embed" in state:
        return f"dinov2_vit{letter}14" + ("_reg" if registers else "")
    if patch == 16 and letter in ("s", "b", "l") and "pos_embed" not in state:
        with_bias = "blocks.0.attn.qkv.bias" in state
        return f"vit_{size}_patch16_dinov3{'_qkvb' if with_bias else ''}.lvd1689m"
    raise ValueError(
        f"{source}: no known backbone has patches of {patch} pixels and width {width}. A folder "
        "made by save_pretrained says in its config.json which one it is."
    )


def identify_text(state: Mapping[str, Tensor], source: str) -> str:
    """The text encoder's name, read from its tensors.

    Raises:
        ValueError: none of the known ones has these shapes.
    """
    width = _shape(state, "token_embedding.weight", 2, source)[1]
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    known = {(512, 3): "toy", (512, 12): "ViT-B/16", (768, 12): "ViT-L/14"}
    if (width, len(blocks)) not in known:
        raise ValueError(
            f"{source}: no known CLIP text encoder has {len(blocks)} blocks of width {width}."
        )
    return known[width, len(blocks)]


def identify_projection(state: Mapping[str, Tensor], source: str) -> ProjectionConfig:
    """The architecture of a ProjectionLayer, read from its tensors.

    Raises:
        ValueError: the state dict of another class, or of another model.
    """
    first = state.get("linear_layer.weight")
    if first is None and (kind := looks_like(state)):
        raise ValueError(f"{source} is no Talk2DINO model or projection: it looks like {kind}.")
    if first is None or first.ndim != 2 or any("visual" in name for name in state):
        names = sorted(state)
        found = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise ValueError(
            f"{source} holds another projection than ProjectionLayer ({found}). "
            "Say which with config=, a recipe of configs/."
        )
    layers = {name.split(".")[1] for name in state if name.startswith("hidden_layers.")}
    hidden = len(layers) or int("linear_layer2.weight" in state)
    return ProjectionConfig(
        hidden_layer=hidden,
        dino_embed_dim=first.shape[0],
        clip_embed_dim=first.shape[1],
        num_attn_head=max(first.shape[0] // 64, 1),
    )


def _shape(state: Mapping[str, Tensor], name: str, ndim: int, source: str) -> tuple[int, ...]:
    shape = tuple(state[name].shape)
    if len(shape) != ndim:
        raise ValueError(f"{source}: {name} must have {ndim} dimensions, found {shape}.")
    return shape


def _renamed_scales(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LayerScale's `gamma`, which older versions of transformers saved as `weight`."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _OLD_SCALES:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def _complaint(
    state: Mapping[str, Tensor], source: str, others: list[str], missing: list[str], has_proj: bool
) -> str:
    names = list(state)
    if not has_proj and (kind := looks_like(names)):
        found = f"it looks like {kind}"
    elif not has_proj:
        found = f"it begins with {', '.join(names[:4]) or 'nothing'}"
    else:
        problems = [f"no {name}" for name in missing]
        problems += [f"unexpected {name}" for name in others[:4]]
        found = "it has " + ", ".join(problems)
    return (
        f"{source} is no Talk2DINO model, whose tensors are named model.*, clip_model.* and "
        f"proj.*: {found}."
    )
