"""OVSegmentor's weights: published files, our own folders, and what each stage starts from.

Published files are pickles of everything a training had: the tensors, the optimiser, and an
OmegaConf configuration object. Only the tensors are read; the rest becomes empty stand-ins, and
nothing that a file holds is run.

A folder, which `methods.ovsegmentor.convert` writes, holds `model.safetensors` (all tensors
under their published names), `config.json` (the architecture) and, where the tokeniser is not a
published one, `tokenizer/`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import (
    check_fit,
    check_not_quantised,
    read_state_dict,
    state_shapes,
    unwrapped,
)
from talk2dino.backbones.seeded import parse_seeded, seeded_state
from talk2dino.backbones.stand_ins import CONFIGURATION, NUMBERS, stand_ins
from talk2dino.devices import float32_by_default
from talk2dino.files import check_finished, load_torch
from talk2dino.methods.ovsegmentor.config import (
    PRESETS,
    OVSegmentorConfig,
    config_from_dict,
    get_preset,
)
from talk2dino.methods.ovsegmentor.model import TEACHER, OVSegmentor
from talk2dino.textfiles import read_json

MODEL_KEY = "model"


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `model` entry, by name.

    Args:
        path: a file in the published layout: a dict with `model`, and whatever a training saves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or damaged, holds code that no such checkpoint has (nothing of it
            is run), or has no `model` entry of tensors.
    """
    path = Path(path)
    with stand_ins((*CONFIGURATION, *NUMBERS)):
        try:
            content = load_torch(path, mmap=True)
        except ValueError as error:
            found = re.search(r"GLOBAL (\S+)", str(error.__cause__))
            if found is None:
                raise
            raise ValueError(
                f"{path} refers to {found[1]}, which an OVSegmentor checkpoint does not. It was "
                "changed, or is something else; it is not loaded, and nothing of it was run."
            ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get(MODEL_KEY), Mapping):
        found_type = ", ".join(map(str, content)) if isinstance(content, Mapping) else content
        raise ValueError(
            f"{path} has no entry {MODEL_KEY!r} with the weights, as OVSegmentor's checkpoints "
            f"have. Found: {str(found_type)[:200] or 'nothing'}."
        )
    state = {str(name): value for name, value in content[MODEL_KEY].items()}
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        what = f"{strange[0]!r} is no tensor" if strange else "it is empty"
        raise ValueError(f"{path}: the entry {MODEL_KEY!r} holds no state dict: {what}")
    return unwrapped(state, path)


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


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint held beyond what was asked for; nothing that was needed is missing."""

    training_only: tuple[str, ...]
    """Names of the entity decoder, its projectors and the teacher."""
    unexpected: tuple[str, ...]
    """Names that no OVSegmentor has."""


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


def read_checkpoint(
    source: str | Path, name: str | None = None, num_heads: int | None = None
) -> Checkpoint:
    """Read weights of any kind.

    Args:
        source: a folder that `convert_checkpoint` or `save_model` made, a file in the published
            layout, or `seeded:<n>`.
        name: the architecture they have to be of; with `seeded:<n>` it has to be given.
        num_heads: attention heads of the image encoder where they are not the preset's; no
            published file says them.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: damaged, refused, of another size than `name`, or no OVSegmentor.
    """
    expected = None if name is None else get_preset(name)
    seed = parse_seeded(str(source))
    path = Path(source)
    tokenizer = None
    if seed is not None:
        if expected is None:
            raise ValueError(f"{source} needs the name of an architecture: {', '.join(PRESETS)}")
        return Checkpoint(expected, seeded_weights(expected, seed), str(source))
    check_source(path)
    if path.is_dir():
        config, state = _read_folder(path)
        if (path / TOKENIZER_FOLDER).is_dir():
            tokenizer = path / TOKENIZER_FOLDER
    else:
        state = read_published(path)
        config = identify(state, path)
    if num_heads is not None:
        vision = dataclasses.replace(config.vision, num_heads=num_heads)
        config = dataclasses.replace(config, vision=vision)
    if expected is not None:
        _check_size(config, expected, path)
    return Checkpoint(config, present_names(state), str(path), tokenizer)


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
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        if (path / file).is_file():
            continue
        if (path / UNFINISHED_FILE).is_file():
            raise FileNotFoundError(
                f"the pretraining in {path} is not finished. Go on with `pretrain ... --resume`."
            )
        raise FileNotFoundError(f"{path} is no converted OVSegmentor: it lacks {file}")


def is_converted(folder: str | Path) -> bool:
    """Whether a folder says of itself that it holds an OVSegmentor."""
    try:
        values = read_json(Path(folder) / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("method") == "ovsegmentor"


@float32_by_default()
def load_model(
    checkpoint: Checkpoint, stage: str = "evaluation", **options: Any
) -> tuple[OVSegmentor, LoadReport]:
    """Build the model of a checkpoint on the CPU and load it.

    Args:
        checkpoint: weights with their architecture.
        stage: what the model holds; see OVSegmentor, also for the options.

    Raises:
        ValueError: tensors are missing or have wrong shapes; all are named.
    """
    model = OVSegmentor(checkpoint.config, stage, **options)
    return model, load_state(model, checkpoint.state, checkpoint.source)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load what the model needs of a state dict and report the rest.

    Raises:
        ValueError: something is missing or has another shape.
    """
    state = present_names(state)
    shapes = state_shapes(model)
    needed = {name: state[name] for name in state if name in shapes}
    check_fit(needed, shapes, f"{source} does not fit this {type(model).__name__}")
    check_not_quantised(needed, model, source)
    model.load_state_dict(needed)
    rest = [name for name in state if name not in shapes]
    report = LoadReport(
        tuple(name for name in rest if name.startswith(TRAINING_ONLY)),
        tuple(name for name in rest if not name.startswith(TRAINING_ONLY)),
    )
    logger = logging.getLogger(__name__)
    if report.training_only:
        logger.info("%s: %d tensors of training left out", source, len(report.training_only))
    if report.unexpected:
        logger.warning("%s: unexpected keys: %s", source, ", ".join(report.unexpected[:8]))
    return report


def load_stage1(model: OVSegmentor, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Start stage 2 from the weights of stage 1; the teacher starts as the image encoder.

    Args:
        model: built for stage 2.
        state: of stage 1 or 2.
        source: where it came from, for messages.

    Raises:
        ValueError: something is missing or has another shape.
    """
    completed = present_names(state)
    for name, value in model.state_dict().items():
        if name == "logit_scale_mask":
            completed.setdefault(name, value)
        elif name.startswith(f"{TEACHER}."):
            student = name.replace(TEACHER, "img_encoder", 1)
            if name not in completed and student in completed:
                completed[name] = completed[student]
    return load_state(model, completed, source)


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
    known = "; ".join(_size(preset) for preset in PRESETS.values())
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


def present_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as today's model has it.

    The position embedding may be (1, P, C) or, in models that started from DINO, (P, C). An
    older transformers stored a buffer of position numbers, which is left out.
    """
    present = {}
    for name, value in state.items():
        if name.endswith(_EXTRA_BUFFER):
            continue
        if name.endswith("pos_embed") and value.ndim == 3:
            value = value[0]
        present[name] = value
    return present


def seeded_weights(
    config: OVSegmentorConfig, seed: int, stage: str = "evaluation"
) -> dict[str, Tensor]:
    """Deterministic weights by name (backbones.seeded); the running statistics are 0 and 1.

    Norms whose names do not say so (BERT's `LayerNorm`, batch norms) are centred at one too.
    """
    with torch.device("meta"):
        model = OVSegmentor(config, stage)
    buffers = {name for name, _ in model.named_buffers()}
    shapes = {name: shape for name, shape in state_shapes(model).items() if name not in buffers}
    state = seeded_state(seed, shapes)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            weight = state[f"{name}.weight"]
            weight += 1 - weight.mean().round()
        if isinstance(module, nn.BatchNorm1d):
            state[f"{name}.running_mean"] = torch.zeros(module.num_features)
            state[f"{name}.running_var"] = torch.ones(module.num_features)
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


def _read_folder(folder: Path) -> tuple[OVSegmentorConfig, dict[str, Tensor]]:
    path = folder / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError(f"{path} has no section 'model' with the architecture")
    config = config_from_dict(values["model"], str(path))
    return config, read_state_dict(folder / WEIGHTS_FILE)


def _check_size(config: OVSegmentorConfig, expected: OVSegmentorConfig, path: Path) -> None:
    """Raise unless weights are of the size that was asked for, other numbers of groups aside."""
    widths = [(c.vision.width, c.text.kind, c.text.width) for c in (config, expected)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{path} holds {_size(config)}, but {_size(expected)} was asked for. "
            "Choose the model that the file is of, or the file of that model."
        )


def _size(config: OVSegmentorConfig) -> str:
    kind = {"bert": "BERT", "roberta": "RoBERTa"}[config.text.kind]
    return (
        f"{config.name} (image width {config.vision.width}, {kind} with "
        f"{config.text.vocabulary} tokens)"
    )
