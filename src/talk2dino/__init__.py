"""Talk2DINO: open-vocabulary segmentation by mapping CLIP text into DINO's patch space.

Public names are loaded when they are first used, so importing the package costs nothing.
transformers, if it is or comes to be imported, then knows our models; see
talk2dino.methods.talk2dino.autoload.
"""

from importlib import import_module
from typing import Any

from talk2dino.methods.talk2dino.autoload import register_with_transformers

__version__ = "0.1.0"

_PUBLIC = {
    "ClassQuery": "talk2dino.segmenter",
    "ProjectionLayer": "talk2dino.methods.talk2dino.projection",
    "Segmentation": "talk2dino.pictures.segmentation",
    "Segmenter": "talk2dino.segmenter",
    "Talk2DINO": "talk2dino.methods.talk2dino.api",
    "Talk2DinoSegmenter": "talk2dino.methods.talk2dino.segmenter",
    "build_segmenter": "talk2dino.methods.talk2dino.segmenter",
    "label_map": "talk2dino.predict",
    "load_model": "talk2dino.methods.registry",
    "load_projection": "talk2dino.methods.talk2dino.projection",
    "load_segmenter": "talk2dino.methods.registry",
    "load_text": "talk2dino.backbones.text",
    "load_vision": "talk2dino.backbones.vision",
    "read_features": "talk2dino.features.store",
    "read_rgb": "talk2dino.pictures.images",
    "read_segmenter_config": "talk2dino.methods.talk2dino.config",
}

__all__ = ["__version__", *_PUBLIC]

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'talk2dino' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
