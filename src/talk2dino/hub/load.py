"""From a name, a folder, a file or a repository to a model that is ready to segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from talk2dino.config import check_name
from talk2dino.hub.published import PUBLISHED, TOY, TOY_THRESHOLD, toy_config
from talk2dino.segmenter import Talk2DinoSegmenter, build_segmenter


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from."""

    segmenter: Talk2DinoSegmenter
    """The models and the options of inference."""
    background_threshold: float
    """Threshold that `background=True` stands for."""
    origin: str
    """The name, path or repository it was loaded from."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of its training, as `train.py` writes it; empty if there is none."""


def load_model(name_or_path: str, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model; see `Talk2DINO.from_pretrained`."""
    if name_or_path == TOY:
        return LoadedModel(build_segmenter(toy_config(), device), TOY_THRESHOLD, TOY)
    check_name("model", name_or_path, [TOY, *PUBLISHED])
    raise AssertionError
