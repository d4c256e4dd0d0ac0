"""Writing OVSegmentor's weights as a folder: published files converted, own models saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.checkpoints import check_fit, state_shapes
from talk2dino.files import (
    atomic_files,
    check_file,
    check_not_inputs,
    check_replaceable,
    save_safetensors,
)
from talk2dino.methods.ovsegmentor.checkpoints import (
    CONFIG_FILE,
    MODEL_FILES,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    Checkpoint,
    LoadReport,
    read_checkpoint,
    stage_of,
)
from talk2dino.methods.ovsegmentor.config import OVSegmentorConfig, config_to_dict
from talk2dino.methods.ovsegmentor.model import OVSegmentor


def convert_checkpoint(
    source: str | Path, folder: str | Path, overwrite: bool = False, num_heads: int | None = None
) -> tuple[Checkpoint, LoadReport]:
    """Turn a published file into a folder of safetensors and configuration.

    Everything the model has in its stage is kept, so that training can go on from it.

    Args:
        source: the file.
        folder: is made if need be.
        overwrite: replace what is there.
        num_heads: attention heads of the image encoder, see `read_checkpoint`.

    Raises:
        FileExistsError: the folder holds weights already.
        FileNotFoundError, ValueError: see `read_checkpoint`; also tensors that are missing.
    """
    folder = Path(folder)
    check_folder(folder, overwrite, source)
    check_file(source, "checkpoint file")
    checkpoint = read_checkpoint(source, num_heads=num_heads)
    with torch.device("meta"):
        model = OVSegmentor(checkpoint.config, stage_of(checkpoint.state))
    shapes = state_shapes(model)
    kept = {name: value for name, value in checkpoint.state.items() if name in shapes}
    check_fit(kept, shapes, f"{source} is no complete {checkpoint.config.name}")
    rest = tuple(name for name in checkpoint.state if name not in shapes)
    with atomic_files(folder, *MODEL_FILES) as written:
        write_model(checkpoint.config, kept, written, str(Path(source).name))
    return dataclasses.replace(checkpoint, state=kept), LoadReport((), rest)


def save_model(model: OVSegmentor, folder: str | Path, source: str, tokenizer: Any = None) -> None:
    """Write a model of any stage as a folder; what is there is replaced. See `write_model`."""
    with atomic_files(folder, *MODEL_FILES) as written:
        write_model(model.config, model.state_dict(), written, source, tokenizer)


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
    content = {"method": "ovsegmentor", "source": source, "model": config_to_dict(config)}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_folder(
    folder: str | Path, overwrite: bool = False, source: str | Path | None = None
) -> None:
    """Raise unless weights can be written into a folder, which need not exist yet."""
    check_not_inputs((Path(folder) / name for name in MODEL_FILES), [source])
    check_replaceable(folder, (WEIGHTS_FILE, CONFIG_FILE), overwrite)
