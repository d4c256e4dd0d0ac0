"""The published import: `from src.model import ProjectionLayer`, from a checkout."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # an installed talk2dino comes first

from talk2dino.methods.talk2dino.projection import (
    CLIPLastLayer,
    DoubleMLP,
    ProjectionLayer,
    VisualProjectionLayer,
)

__all__ = ["CLIPLastLayer", "DoubleMLP", "ProjectionLayer", "VisualProjectionLayer"]
