"""From the start of a process to both backbones with their weights from files, ready to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from speed.case import LITERAL, SHIPPED, Case, Step

VISION, TEXT = "dinov2_vitb14_reg", "ViT-B/16"
_OURS = f"""
import talk2dino.cli
from talk2dino.backbones.text import load_text
from talk2dino.backbones.vision import load_vision
load_vision({VISION!r}, "vision.pt")
load_text({TEXT!r}, "text.pt")
"""
_LIBRARIES = """
import open_clip, timm, torch
size = {"num_classes": 0, "img_size": 518, "dynamic_img_size": True}
vision = timm.create_model("vit_base_patch14_reg4_dinov2", **size)
vision.load_state_dict(torch.load("vision.pt"))
clip = open_clip.create_model("ViT-B-16-quickgelu")
clip.load_state_dict(torch.load("text.pt"), strict=False)
"""


def _inputs(folder: Path) -> None:
    from talk2dino.backbones.text import load_text
    from talk2dino.backbones.vision import load_vision

    torch.save(load_vision(VISION, "seeded:0").model.state_dict(), folder / "vision.pt")
    torch.save(load_text(TEXT, "seeded:0").model.state_dict(), folder / "text.pt")


def _started(code: str, folder: Path) -> Step:
    def step() -> None:
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)

    return step


CASES = {
    "start": Case(
        f"start-up: {VISION} and {TEXT} from files, against timm and open_clip alone",
        {
            SHIPPED: lambda device, folder: _started(_OURS, folder),
            LITERAL: lambda device, folder: _started(_LIBRARIES, folder),
        },
        inputs=_inputs,
        targets={LITERAL: 1.5},
    )
}
