"""The tensors in a model's file: which part each belongs to, and which architectures they are.

A whole model has the published layout: `model.*` the vision backbone, `clip_model.*` CLIP, `proj.*`
the projection. Architectures are read from the shapes, so they need no configuration file.
"""

import re
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
_VISION = {
    (192, 14): "toy",
    (768, 14): "dinov2_vitb14_reg",
    (1024, 14): "dinov2_vitl14_reg",
    (384, 16): "vit_small_patch16_dinov3.lvd1689m",
    (768, 16): "vit_base_patch16_dinov3.lvd1689m",
    (1024, 16): "vit_large_patch16_dinov3.lvd1689m",
}
"""Width and side of a patch -> vision backbone."""
_TEXT = {(512, 3): "toy", (512, 12): "ViT-B/16", (768, 12): "ViT-L/14"}
"""Width and number of blocks -> text encoder."""
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


def identify(parts: ModelParts, source: str) -> tuple[str, str]:
    """The names of the vision backbone and of the text encoder, read from their tensors.

    Raises:
        ValueError: they are none of the published ones.
    """
    patches = tuple(parts.vision["patch_embed.proj.weight"].shape)
    words = tuple(parts.text["token_embedding.weight"].shape)
    blocks = {n.split(".")[2] for n in parts.text if n.startswith("transformer.resblocks.")}
    vision, text = _VISION.get((patches[0], patches[-1])), _TEXT.get((words[-1], len(blocks)))
    if vision is None or text is None:
        raise ValueError(
            f"{source}: no published backbone has patches {patches}, or no text encoder "
            f"{len(blocks)} blocks and words {words}. A folder made by save_pretrained says in "
            "its config.json which ones they are."
        )
    return vision, text
