"""What transformers' auto classes are given: light, because it is made while they are imported."""

from __future__ import annotations

from typing import Any, NoReturn

from transformers.configuration_utils import PretrainedConfig

_MODEL_TYPE = "talk2dino"


class Talk2DinoConfig(PretrainedConfig):
    """Holds the keys of `config.json`: `segmenter`, `background_threshold`, `training`."""

    model_type = _MODEL_TYPE


class AutoTalk2Dino:
    """Stands for `Talk2DinoModel`, which is imported when the first one is loaded.

    Defining that class takes the whole of this package and of transformers' models, and this may
    run in the middle of their import: open_clip, which we need, imports `AutoModel`.
    """

    config_class = Talk2DinoConfig

    @classmethod
    def from_pretrained(cls, name_or_path: str, *args: Any, **settings: Any) -> Any:
        """See `Talk2DinoModel.from_pretrained`."""
        from talk2dino.methods.talk2dino.huggingface import Talk2DinoModel

        return Talk2DinoModel.from_pretrained(name_or_path, *args, **settings)

    @classmethod
    def _from_config(cls, config: Talk2DinoConfig, **settings: Any) -> NoReturn:
        raise ValueError("a Talk2DINO model comes with its weights: use from_pretrained.")


def register_config() -> None:
    """Let `AutoConfig` read our configuration."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(_MODEL_TYPE, Talk2DinoConfig, exist_ok=True)


def register_model() -> None:
    """Let `AutoModel` load our model."""
    from transformers.models.auto.modeling_auto import AutoModel

    AutoModel.register(Talk2DinoConfig, AutoTalk2Dino, exist_ok=True)
