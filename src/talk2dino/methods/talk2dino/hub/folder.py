"""The folder of one model: `model.safetensors`, `config.json`, and a model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
class FolderConfig:
    """What `config.json` says."""

    segmenter: SegmenterConfig
    """The models and the options of inference."""
    background_threshold: float
    """Threshold that `background=True` stands for."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of the training, if it is known."""

    def as_json(self) -> dict[str, Any]:
        """The content of `config.json`, which transformers reads too."""
        return {
            "architectures": ["Talk2DinoModel"],
            "model_type": MODEL_TYPE,
            "background_threshold": self.background_threshold,
            "segmenter": dataclasses.asdict(self.segmenter),
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


def read_folder_config(folder: Path) -> FolderConfig | None:
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


def parse_folder_config(content: Mapping[str, Any], source: str, folder: str) -> FolderConfig:
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
    projection = build(ProjectionConfig, values.get("projection", {}), source)
    try:
        segmenter = build(SegmenterConfig, {**values, **included, "projection": projection}, source)
    except TypeError as error:  # a value without a default is not there
        raise ValueError(f"{source} is not as save_pretrained writes it: {error}.") from error
    return FolderConfig(segmenter, float(threshold), dict(training))
