"""The folder of one model, and the tensors in its file: which part each belongs to, what they are.

The folder holds `model.safetensors`, `config.json`, and a model card.

The layout is the published one: `model.*` the vision backbone, `clip_model.*` CLIP, `proj.*` the
projection. Architectures are read from the shapes, so they need no configuration file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from talk2dino.backbones.checkpoints import looks_like, read_state_dict
from talk2dino.config import build
from talk2dino.files import check_finished, listed
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.hub.published import HUB_FILES
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.textfiles import read_json

WEIGHTS, CONFIG = HUB_FILES
MODEL_TYPE = "talk2dino"
INCLUDED = "included"
"""In place of the name of weights: they are in the folder."""

FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
"""Of files with weights."""

_OLD_WEIGHTS = "pytorch_model.bin"
WEIGHT_FIELDS = ("projection_weights", "vision_weights", "text_weights")
"""Of a `SegmenterConfig`."""


@dataclass(frozen=True)
class FoundModel:
    """A model before it is loaded; of a saved one, what its `config.json` says."""

    config: SegmenterConfig
    """The models and the options of inference."""
    background_threshold: float
    """Threshold that `background=True` stands for."""
    origin: str
    """The name, path or repository it was found by."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of its training, as `train.py` writes it; empty if there is none."""
    whole: Path | None = None
    """The file with the weights of its models; None where `config` names them."""

    def as_json(self) -> dict[str, Any]:
        """The content of `config.json`, which transformers reads too."""
        return {
            "architectures": ["Talk2DinoModel"],
            "model_type": MODEL_TYPE,
            "background_threshold": self.background_threshold,
            "segmenter": dataclasses.asdict(self.config),
            "training": dict(self.training),
        }


def find_weights(folder: Path) -> Path:
    """The file with a folder's weights.

    Raises:
        FileNotFoundError: there is none; says what is there instead.
    """
    for name in (WEIGHTS, _OLD_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    if listed(folder, "*.index.json"):
        raise FileNotFoundError(
            f"{folder} holds weights in several files, which are not read. Save them as one "
            f"{WEIGHTS}."
        )
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    # Beside the file, or where the Hub's client keeps it; below lie folders of other things.
    unfinished = (folder, folder / ".cache" / "huggingface" / "download")
    partial = [path.name for place in unfinished for path in place.glob("*.incomplete")]
    if partial:
        raise FileNotFoundError(
            f"{folder} holds no {WEIGHTS}, but an unfinished download ({partial[0]}). "
            "Download it again."
        )
    found = ", ".join(there[:6]) or "nothing"
    raise FileNotFoundError(f"{folder} holds no {WEIGHTS}, but {found}.")


def read_folder_config(folder: Path) -> FoundModel | None:
    """What `save_pretrained` wrote; None without a `config.json`, or with the published one.

    Of the authors' configuration nothing is needed: their weights tell the architecture.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / CONFIG
    check_finished(path)
    if not path.is_file():
        return None
    content = read_json(path, "Get it again.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no configuration, but a {type(content).__name__}.")
    if "segmenter" not in content:
        return None
    return parse_folder_config(content, str(path), str(folder))


def parse_folder_config(content: Mapping[str, Any], source: str, folder: str) -> FoundModel:
    """The content of a `config.json` of ours; weights that are included are `folder`'s.

    Raises:
        ValueError: names what is missing, unknown or of another type.
    """
    values, training = content["segmenter"], content.get("training") or {}
    threshold = content.get("background_threshold")
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(
            f"{source}: background_threshold must be a number from 0 to 1, found {threshold!r}. "
            "Save the model again."
        )
    for name, section in (("segmenter", values), ("training", training)):
        if not isinstance(section, Mapping):
            raise ValueError(
                f"{source}: {name} must hold names and values, found {section!r}. Save the model "
                "again."
            )
    included = {name: folder for name in WEIGHT_FIELDS if values.get(name) == INCLUDED}
    segmenter = build(SegmenterConfig, {"projection": {}, **values, **included}, source)
    return FoundModel(segmenter, float(threshold), folder, dict(training))


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
