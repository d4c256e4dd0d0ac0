"""PyTorch Hub: `torch.hub.load("<owner>/<repository>", "talk2dino", "vitb")`.

Of a clone: `torch.hub.load(".", "talk2dino", "toy", source="local")`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

dependencies = ["torch", "torchvision", "timm", "open_clip", "safetensors", "huggingface_hub"]


def talk2dino(model="vitb", **settings):
    """A model that segments pictures.

    Args:
        model: vitb, vitl, dinov3_vitb, dinov3_vitl, toy, a folder or a repository of the Hub.
        settings: as those of `Talk2DINO.from_pretrained`, such as `device`.
    """
    from talk2dino import Talk2DINO

    return Talk2DINO.from_pretrained(model, **settings)


def method(model, **settings):
    """A model of any method, such as `clearclip_vitb`: `talk2dino.load_model`."""
    from talk2dino import load_model

    return load_model(model, **settings)
