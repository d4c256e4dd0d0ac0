"""Make `AutoModel.from_pretrained` know our models, without importing transformers for it.

transformers has no registry that a package could add to from outside. So `import talk2dino` leaves
a note for Python's import system: when transformers' auto classes are imported, later or already,
our configuration and model are registered with them. Nothing happens in a program without them.
"""

import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

logger = logging.getLogger(__name__)
_CONFIG, _MODEL = (f"transformers.models.auto.{n}_auto" for n in ("configuration", "modeling"))
_OF_THE_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_WITHOUT_EFFECT = (
    *("adapter_kwargs", "trust_remote_code", "proxies", "resume_download", "low_cpu_mem_usage"),
)
"""What transformers passes, or users set by habit."""


class AutoTalk2Dino:
    """Stands for `Talk2DINO`, which is imported when the first model is loaded.

    This may be registered in the middle of the import of what that needs: open_clip imports
    `AutoModel`.
    """

    config_class: Any = None
    """Set when it is registered."""

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, config: Any = None, **settings: Any) -> Any:
        """As `Talk2DINO.from_pretrained`, on the CPU unless `device_map` names a device.

        Args:
            name_or_path: a folder, a repository, or a name.
            config: what `AutoConfig` read; where its options differ from the folder's, it counts.
            settings: of the download; `dtype` float32. Weights are float32.

        Raises:
            ValueError: another setting or dtype; otherwise as `Talk2DINO.from_pretrained`.
        """
        from talk2dino.devices import resolve_device
        from talk2dino.methods.talk2dino.api import Talk2DINO
        from talk2dino.methods.talk2dino.hub.find import find_model, with_options
        from talk2dino.methods.talk2dino.segmenter import build_segmenter

        download = {name: settings.pop(name) for name in _OF_THE_HUB if name in settings}
        device = settings.pop("device_map", None) or "cpu"
        known = ("None", "auto", "float32", "torch.float32")
        for name in ("dtype", "torch_dtype"):
            if str(dtype := settings.pop(name, None)) not in known:
                raise ValueError(f"{name}={dtype} is not supported: weights are float32.")
        unknown = [k for k in settings if not k.startswith("_") and k not in _WITHOUT_EFFECT]
        if unknown:
            raise ValueError(f"AutoModel of Talk2DINO does not know {', '.join(unknown)}.")
        found = find_model(str(name_or_path), **download)
        if hasattr(config, "segmenter"):
            found = with_options(found, config.to_dict())
        model = Talk2DINO(build_segmenter(found.config, resolve_device(str(device))), found)
        model.config = config
        return model

    @classmethod
    def _from_config(cls, config: Any, **settings: Any) -> NoReturn:
        raise ValueError("a Talk2DINO model comes with its weights: use from_pretrained.")


def _register(name: str) -> None:
    """Register with an auto class; a transformers that does not suit us must still import."""
    try:
        from transformers.configuration_utils import PretrainedConfig

        kind: Any = AutoTalk2Dino.config_class  # holds the keys of `config.json`
        kind = kind or type("Talk2DinoConfig", (PretrainedConfig,), {"model_type": "talk2dino"})
        AutoTalk2Dino.config_class = kind
        if name == _CONFIG:
            sys.modules[name].AutoConfig.register(kind.model_type, kind, exist_ok=True)
        else:
            sys.modules[name].AutoModel.register(kind, AutoTalk2Dino, exist_ok=True)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logger.warning("AutoModel will not know Talk2DINO models: %s", error)


def find_spec(
    name: str, path: Sequence[str] | None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """For Python's import system: a module as ever, and for two our step after its execution."""
    spec = PathFinder.find_spec(name, path) if name in (_CONFIG, _MODEL) else None
    if spec is None or spec.loader is None:
        return None
    execute = spec.loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        _register(name)

    spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
    return spec


def register_with_transformers() -> None:
    """Register now what can be, and the rest when transformers is imported. Cheap; repeatable."""
    for name in (_CONFIG, _MODEL):
        if name in sys.modules:
            _register(name)
    if (finder := sys.modules[__name__]) not in sys.meta_path:  # which asks for a find_spec
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
