"""The sections of a recipe, a file of `configs/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talk2dino.config import check_at_least, check_name
from talk2dino.textfiles import read_yaml


@dataclass(frozen=True)
class FeatureConfig:
    """The `features:` section: the two frozen models a projection is trained between."""

    vision_model: str = "dinov2_vitb14_reg"
    """Vision backbone; see talk2dino.backbones.vision."""
    vision_weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; null means the model's default."""
    text_model: str = "ViT-B/16"
    """Text encoder; see talk2dino.backbones.text."""
    text_weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; null means the model's default."""
    resize_dim: int = 448
    """Short side of a training image, in pixels."""
    crop_dim: int = 448
    """Side of the central square that is kept, in pixels."""

    def __post_init__(self) -> None:
        check_at_least(1, resize_dim=self.resize_dim, crop_dim=self.crop_dim)


def read_sections(path: str | Path) -> dict[str, Any]:
    """The sections of a file of `configs/`: `model` (required), `train` and `features`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or a section is unknown or missing.
    """
    path = Path(path)
    sections = read_yaml(path)
    for name in sections:
        try:
            check_name("section", str(name), ("model", "train", "features"))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
    if "model" not in sections:
        raise ValueError(f"{path.name}: the section 'model:' is missing")
    return sections
