"""The tensors in a model's file: which part each belongs to, and which architectures they are.

A whole model has the published layout: `model.*` the vision backbone, `clip_model.*` CLIP, `proj.*`
the projection. Architectures are read from the shapes, so they need no configuration file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from talk2dino.backbones.checkpoints import read_state_dict

VISION, TEXT, PROJECTION = "model.", "clip_model.", "proj."
_PREFIXES = {
    **{"vision.model.": VISION, "text.model.": TEXT, "projection.": PROJECTION},
    **{VISION: VISION, TEXT: TEXT, PROJECTION: PROJECTION},
}
"""Beginning of a name -> its part; the first three are those of a `state_dict()` of ours."""
_UNUSED = ("pamr.", "logit_scale", "clip_model.logit_scale")
"""Published files also hold these; refinement has no weights, the temperature is constant."""
_SIZES = {384: ("s", "small"), 768: ("b", "base"), 1024: ("l", "large"), 1536: ("g", "giant")}
_OLD_SCALES = (
    (re.compile(r"\.weight_([12])$"), r".gamma_\1"),
    (re.compile(r"\.(ls[12])\.weight$"), r".\1.gamma"),
)
"""LayerScale's `gamma`, which older versions of transformers saved as `weight`."""


@dataclass(frozen=True, eq=False)
class ModelParts:
    """The three state dicts of a model, under their own names."""

    vision: dict[str, Tensor]
    """The backbone, in DINOv2's or timm's naming; empty if the file holds the projection only."""
    text: dict[str, Tensor]
    """CLIP or its text tower, in OpenAI's naming; empty likewise."""
    projection: dict[str, Tensor]
    """The projection."""


def read_parts(path: str | Path) -> ModelParts:
    """The parts of a whole model, or a projection alone (with `proj.` before its names, or not).

    Raises:
        FileNotFoundError, ValueError: see `read_state_dict`; or a whole model lacks a tensor, or
            has some that belong to no part.
    """
    state = read_state_dict(path)
    if not any(name.startswith((PROJECTION, "projection.")) for name in state):
        return ModelParts({}, {}, state)
    parts: dict[str, dict[str, Tensor]] = {VISION: {}, TEXT: {}, PROJECTION: {}}
    problems = []
    for name, value in state.items():
        prefix = next((start for start in _PREFIXES if name.startswith(start)), None)
        if prefix is None and not name.startswith(_UNUSED):
            problems.append(f"unexpected {name}")
        elif prefix is not None and not name.startswith(_UNUSED):
            number = value.float() if value.is_floating_point() else value
            parts[_PREFIXES[prefix]][name.removeprefix(prefix)] = number
    vision, text, projection = parts.values()
    for prefix, name in ((VISION, "patch_embed.proj.weight"), (TEXT, "token_embedding.weight")):
        if (vision or text) and name not in parts[prefix]:
            problems.append(f"no {prefix}{name}")
    if problems:
        raise ValueError(
            f"{path} is no Talk2DINO model, whose tensors are named model.*, clip_model.* and "
            f"proj.*: it has {', '.join(problems[:4])}."
        )
    for pattern, replacement in _OLD_SCALES:
        vision = {pattern.sub(replacement, name): value for name, value in vision.items()}
    return ModelParts(vision, text, projection)


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


def _shape(state: Mapping[str, Tensor], name: str, ndim: int, source: str) -> tuple[int, ...]:
    shape = tuple(state[name].shape)
    if len(shape) != ndim:
        raise ValueError(f"{source}: {name} must have {ndim} dimensions, found {shape}.")
    return shape
