"""Our configuration in transformers: light, because it is made while that is imported."""

from __future__ import annotations

from transformers.configuration_utils import PretrainedConfig


class Talk2DinoConfig(PretrainedConfig):
    """Holds the keys of `config.json`: `segmenter`, `background_threshold`, `training`."""

    model_type = "talk2dino"
