"""OVSegmentor's weights: published files, our own folders, and what each stage starts from.

Published files are pickles of everything a training had: the tensors, the optimiser, and an
OmegaConf configuration object. Only the tensors are read; the rest becomes empty stand-ins, and
nothing that a file holds is run.

A folder, which `convert_checkpoint` and a pretraining write, holds `model.safetensors` (all tensors
under their published names), `config.json` (the architecture) and, where the tokeniser is not a
published one, `tokenizer/`.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import check_fit, load_strict, read_state_dict, state_shapes
from talk2dino.backbones.seeded import parse_seeded, seeded_state
from talk2dino.config import build
from talk2dino.files import atomic_files, check_finished, save_safetensors
from talk2dino.methods.ovsegmentor.config import PRESETS, OVSegmentorConfig, get_preset
from talk2dino.methods.ovsegmentor.model import TEACHER, OVSegmentor
from talk2dino.textfiles import read_json

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
UNFINISHED_FILE = "unfinished.pth"
"""Instead of the weights, while a pretraining is not complete."""
TOKENIZER_FOLDER = "tokenizer"
MODEL_FILES = (TOKENIZER_FOLDER, WEIGHTS_FILE, CONFIG_FILE)
"""Of a model; the last one makes the others valid."""
TRAINING_ONLY = (
    "multimodal_groupingblock.",
    "bridge_projector.",
    "align_proj_",
    f"{TEACHER}.",
    "logit_scale_mask",
)
"""How the names begin that evaluation does not need."""
# transformers stored this buffer up to version 4.30; it counts from 0 and is not read.
_EXTRA_BUFFER = "embeddings.position_ids"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights with their architecture."""

    config: OVSegmentorConfig
    """The architecture."""
    state: dict[str, Tensor]
    """Tensors under their present names; the position embedding is (P, C)."""
    source: str
    """Where they came from."""
    tokenizer: Path | None = None
    """Folder of the tokeniser, if it came along."""


def read_checkpoint(source: str | Path, name: str | None = None) -> Checkpoint:
    """Read weights of any kind.

    Args:
        source: a folder that `convert_checkpoint` or a pretraining made, a file in the published
            layout, or `seeded:<n>`.
        name: the architecture they have to be of; with `seeded:<n>` it has to be given.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: damaged, refused, of another size than `name`, or no OVSegmentor.
    """
    expected = None if name is None else get_preset(name)
    seed = parse_seeded(str(source))
    path, tokenizer = Path(source), Path(source) / TOKENIZER_FOLDER
    if seed is not None:
        if expected is None:
            raise ValueError(f"{source} needs the name of an architecture: {', '.join(PRESETS)}")
        return Checkpoint(expected, seeded_weights(expected, seed), str(source))
    check_source(path)
    if path.is_dir():
        values = read_json(path / CONFIG_FILE)
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise ValueError(f"{path / CONFIG_FILE} has no section 'model' with the architecture")
        config = build(OVSegmentorConfig, values["model"], str(path / CONFIG_FILE))
        state = read_state_dict(path / WEIGHTS_FILE)
    else:
        state = read_state_dict(path)
        config = identify(state, path)
    if expected is not None and config.name != expected.name:
        raise ValueError(
            f"{path} holds {config.name}, but {expected.name} was asked for. Choose the model that "
            "the file is of, or the file of that model."
        )
    present = {  # the position embedding may be (1, P, C) or, in models from DINO, (P, C)
        name: value[0] if name.endswith("pos_embed") and value.ndim == 3 else value
        for name, value in state.items()
        if not name.endswith(_EXTRA_BUFFER)
    }
    return Checkpoint(config, present, str(path), tokenizer if tokenizer.is_dir() else None)


def check_source(source: str | Path) -> None:
    """Raise FileNotFoundError unless weights can be there; reads nothing.

    A full checkpoint is all that is needed: never DINO's weights.
    """
    path = Path(source)
    if parse_seeded(str(source)) is not None or path.is_file():
        return
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no OVSegmentor weights there. Give a folder made by `python -m talk2dino "
            "convert ovsegmentor <published.pth> <folder>` or by `pretrain`, the published .pth "
            "(weights/README.md says where it is), or seeded:<n>."
        )
    check_finished(path / CONFIG_FILE)
    lacking = [file for file in (WEIGHTS_FILE, CONFIG_FILE) if not (path / file).is_file()]
    if lacking and (path / UNFINISHED_FILE).is_file():
        raise FileNotFoundError(
            f"the pretraining in {path} is not finished. Go on with `pretrain ... --resume`."
        )
    if lacking:
        raise FileNotFoundError(f"{path} is no converted OVSegmentor: it lacks {lacking[0]}")


def is_converted(folder: str | Path) -> bool:
    """Whether a folder says of itself that it holds an OVSegmentor."""
    with suppress(OSError, ValueError):
        values = read_json(Path(folder) / CONFIG_FILE)
        return isinstance(values, dict) and values.get("method") == "ovsegmentor"
    return False


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what the model needs of a state dict; names that no OVSegmentor has are said.

    Raises:
        ValueError: something is missing or has another shape.
    """
    names = model.state_dict()
    load_strict(model, {name: value for name, value in state.items() if name in names}, source)
    rest = [name for name in state if name not in names]
    if unexpected := [name for name in rest if not name.startswith(TRAINING_ONLY)]:
        logger.warning("%s: unexpected keys: %s", source, ", ".join(unexpected[:8]))


def load_stage1(model: OVSegmentor, state: Mapping[str, Tensor], source: str) -> None:
    """Start stage 2 from the weights of stage 1 or 2; a teacher that is not there is the student.

    Raises:
        ValueError: something is missing or has another shape.
    """
    students = {
        name.replace("img_encoder", TEACHER, 1): value
        for name, value in state.items()
        if name.startswith("img_encoder.")
    }
    unread = {"logit_scale_mask": model.logit_scale_mask.detach()}
    load_state(model, unread | students | dict(state), source)


def convert_checkpoint(source: str | Path, folder: str | Path) -> tuple[Checkpoint, list[str]]:
    """Turn a published file into a folder of safetensors and configuration.

    Everything the model has in its stage is kept, so that training can go on from it. The number
    of attention heads, which no file says, is that of the known architecture; the folder's
    configuration may be edited.

    Args:
        source: the file.
        folder: is made if need be; what is there is replaced.

    Returns:
        The checkpoint, and the names of tensors that were left out.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint`; also tensors that are missing.
    """
    checkpoint = read_checkpoint(source)
    with torch.device("meta"):
        model = OVSegmentor(checkpoint.config, stage_of(checkpoint.state))
    shapes = state_shapes(model)
    kept = {name: value for name, value in checkpoint.state.items() if name in shapes}
    check_fit(kept, shapes, f"{source} is no complete {checkpoint.config.name}")
    rest = [name for name in checkpoint.state if name not in shapes]
    with atomic_files(folder, *MODEL_FILES) as written:
        write_model(checkpoint.config, kept, written, str(Path(source).name))
    return dataclasses.replace(checkpoint, state=kept), rest


def write_model(
    config: OVSegmentorConfig,
    state: Mapping[str, Tensor],
    folder: Path,
    source: str,
    tokenizer: Any = None,
) -> None:
    """Write MODEL_FILES, which `read_checkpoint` reads.

    Args:
        config: of the model.
        state: its tensors.
        folder: that of `atomic_files`.
        source: what made it, kept in its configuration.
        tokenizer: of the transformers library, if it is not the one `config.text.name` says.
    """
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    save_safetensors(state, folder / WEIGHTS_FILE)
    content = {"method": "ovsegmentor", "source": source, "model": dataclasses.asdict(config)}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def identify(state: Mapping[str, Tensor], source: str | Path) -> OVSegmentorConfig:
    """The architecture of a state dict in published names, by the shapes of three tensors.

    Raises:
        ValueError: it has none of the known sizes, or is no OVSegmentor.
    """
    names = {
        "width": "img_encoder.patch_embed.proj.weight",
        "vocabulary": "text_encoder.transformer.embeddings.word_embeddings.weight",
        "groups": "img_encoder.layers.0.downsample.mlp_inter.fc2.weight",
    }
    if absent := [name for name in names.values() if name not in state]:
        raise ValueError(f"{source} is no OVSegmentor checkpoint: it lacks {', '.join(absent)}")
    width, vocabulary, groups = (len(state[name]) for name in names.values())
    for preset in PRESETS.values():
        if (preset.vision.width, preset.text.vocabulary) == (width, vocabulary):
            vision = dataclasses.replace(preset.vision, num_groups=groups)
            return dataclasses.replace(preset, vision=vision)
    known = "; ".join(
        f"{p.name} (width {p.vision.width}, {p.text.vocabulary} tokens)" for p in PRESETS.values()
    )
    raise ValueError(
        f"{source} holds an image encoder of width {width} and a vocabulary of {vocabulary}, "
        f"which no known OVSegmentor has. Known: {known}."
    )


def stage_of(state: Mapping[str, Tensor]) -> str:
    """The stage whose parts a state dict holds."""
    if any(name.startswith(f"{TEACHER}.") for name in state):
        return "stage2"
    decoder = any(name.startswith("multimodal_groupingblock.") for name in state)
    return "stage1" if decoder else "evaluation"


def seeded_weights(
    config: OVSegmentorConfig, seed: int, stage: str = "evaluation"
) -> dict[str, Tensor]:
    """Deterministic weights by name (backbones.seeded); the running statistics are 0 and 1.

    Norms whose names do not say so (BERT's `LayerNorm`, batch norms) are centred at one too.
    """
    with torch.device("meta"):
        model = OVSegmentor(config, stage)
    state = seeded_state(seed, {name: tuple(p.shape) for name, p in model.named_parameters()})
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            weight = state[f"{name}.weight"]
            weight += 1 - weight.mean().round()
        if isinstance(module, nn.BatchNorm1d):
            state[f"{name}.running_mean"] = torch.zeros(module.num_features)
            state[f"{name}.running_var"] = torch.ones(module.num_features)
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state
