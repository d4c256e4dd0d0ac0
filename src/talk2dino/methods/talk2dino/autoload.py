"""Make `AutoModel.from_pretrained` know our models, without importing transformers for it.

transformers has no registry that a package could add to from outside. So `import talk2dino` leaves
a note for Python's import system: when transformers' auto classes are imported, later or already,
our configuration and model are registered with them. Nothing happens in a program without them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

logger = logging.getLogger(__name__)


class AutoTalk2Dino:
    """Stands for `Talk2DinoModel`, which is imported when the first one is loaded.

    Defining that class takes the whole of this package and of transformers' models, and this may
    run in the middle of their import: open_clip, which we need, imports `AutoModel`.
    """

    config_class: Any = None
    """Set when it is registered."""

    @classmethod
    def from_pretrained(cls, name_or_path: str, *args: Any, **settings: Any) -> Any:
        """See `Talk2DinoModel.from_pretrained`."""
        from talk2dino.methods.talk2dino.huggingface import Talk2DinoModel

        return Talk2DinoModel.from_pretrained(name_or_path, *args, **settings)

    @classmethod
    def _from_config(cls, config: Any, **settings: Any) -> NoReturn:
        raise ValueError("a Talk2DINO model comes with its weights: use from_pretrained.")


def register_config() -> None:
    """Let `AutoConfig` read our configuration."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from talk2dino.methods.talk2dino.auto import Talk2DinoConfig

    AutoConfig.register(Talk2DinoConfig.model_type, Talk2DinoConfig, exist_ok=True)


def register_model() -> None:
    """Let `AutoModel` load our model."""
    from transformers.models.auto.modeling_auto import AutoModel

    from talk2dino.methods.talk2dino.auto import Talk2DinoConfig

    AutoTalk2Dino.config_class = Talk2DinoConfig
    AutoModel.register(Talk2DinoConfig, AutoTalk2Dino, exist_ok=True)


REGISTRARS = {
    "transformers.models.auto.configuration_auto": register_config,
    "transformers.models.auto.modeling_auto": register_model,
}
"""Module of transformers -> what to call once it is imported."""


class RegisterAfterImport:
    """A finder that finds nothing itself, but adds a step to the import of `REGISTRARS`' keys."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification that the other finders give, with our step after its execution."""
        if name not in REGISTRARS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(name)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register now what can be, and the rest when transformers is imported. Cheap; repeatable."""
    for name in REGISTRARS:
        if name in sys.modules:
            _register(name)
    if not any(type(finder).__name__ == RegisterAfterImport.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, RegisterAfterImport())  # type: ignore[arg-type]


def _register(name: str) -> None:
    """Call our part for one module; a transformers that does not suit us must still import."""
    try:
        REGISTRARS[name]()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logger.warning("AutoModel will not know Talk2DINO models: %s", error)
