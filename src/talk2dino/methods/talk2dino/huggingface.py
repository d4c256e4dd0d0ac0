"""`Talk2DINO` as a model of transformers: what `AutoModel.from_pretrained` returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from talk2dino.methods.talk2dino.api import Talk2DINO
from talk2dino.methods.talk2dino.auto import Talk2DinoConfig
from talk2dino.methods.talk2dino.hub.fetch import FetchOptions
from talk2dino.methods.talk2dino.hub.layout import WEIGHT_FIELDS, FoundModel, parse_folder_config
from talk2dino.methods.talk2dino.hub.load import LoadedModel, load_model
from talk2dino.segmenter import ClassQuery

_FETCH = ("revision", "token", "cache_dir", "local_files_only", "force_download")
# What transformers passes or users set by habit, and what is accepted of it.
_FLOAT32 = (None, "auto", "float32", torch.float32)
_WITHOUT_EFFECT = (
    *("adapter_kwargs", "trust_remote_code", "proxies"),
    *("resume_download", "low_cpu_mem_usage"),
)


class Talk2DinoModel(Talk2DINO, PreTrainedModel):  # type: ignore[misc]  # ours come first
    """All methods of `Talk2DINO`, in a `PreTrainedModel` and so an `nn.Module`.

    Args:
        config: from `config.json`.
        loaded: the models; `from_pretrained` makes it.
    """

    config_class = Talk2DinoConfig
    base_model_prefix = ""
    main_input_name = "windows"

    def __init__(self, config: Talk2DinoConfig, loaded: LoadedModel) -> None:
        PreTrainedModel.__init__(self, config)
        of, threshold = loaded.segmenter.config, loaded.background_threshold
        found = FoundModel(of, threshold, loaded.origin, loaded.training)
        for key, value in found.as_json().items():
            setattr(config, key, value)
        self._read = dict(config.segmenter)
        self.loaded = loaded

    @property
    def loaded(self) -> LoadedModel:  # type: ignore[override]
        """The models, with the threshold that `config` has now."""
        if self.config.segmenter != self._read:
            raise ValueError(
                "config.segmenter was changed, which has no effect on a model that is loaded. Give "
                "the changed configuration to from_pretrained as config=."
            )
        threshold = self.config.background_threshold
        return dataclasses.replace(self.__dict__["_loaded"], background_threshold=threshold)

    @loaded.setter
    def loaded(self, loaded: LoadedModel) -> None:
        self.__dict__["_loaded"] = loaded
        self.__dict__["_modules"] = loaded.segmenter._modules  # one place for the parts

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, *, config: Talk2DinoConfig | None = None, **settings: Any
    ) -> Talk2DinoModel:
        """Load as `Talk2DINO.from_pretrained` does, on the CPU unless `device_map` names a device.

        Args:
            name_or_path: a folder, a repository, or a name.
            config: what `AutoConfig` read; where it differs from the folder's, it counts.
            settings: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`,
                `device_map`; `dtype` float32. Weights are float32.

        Raises:
            ValueError: another setting or dtype; otherwise as `Talk2DINO.from_pretrained`.
        """
        fetch = FetchOptions(**{name: settings.pop(name) for name in _FETCH if name in settings})
        device = settings.pop("device_map", None) or "cpu"
        for name in ("dtype", "torch_dtype"):
            _check_dtype(settings.pop(name, None), name)
        if not isinstance(device, str | torch.device) or device in ("auto", "balanced"):
            raise ValueError(f"device_map={device!r} is not supported: name one device.")
        unknown = [k for k in settings if not k.startswith("_") and k not in _WITHOUT_EFFECT]
        if unknown:
            raise ValueError(f"{cls.__name__} does not know {', '.join(unknown)}.")
        loaded = load_model(str(name_or_path), device, fetch=fetch)
        if config is not None and hasattr(config, "segmenter"):
            loaded = _configured(loaded, config)
        return cls(config or Talk2DinoConfig(), loaded).eval()

    def to(  # type: ignore[override]
        self,
        device: str | torch.device | torch.dtype | Tensor | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> Talk2DinoModel:
        """Move the model; returns the model itself.

        Args:
            device: a device, a tensor that is there, or a dtype in its place.
            dtype: float32.
            non_blocking: without effect.

        Raises:
            ValueError: another dtype, or an unknown device.
        """
        if isinstance(device, Tensor):
            dtype, device = device.dtype, device.device
        elif isinstance(device, torch.dtype):
            device, dtype = None, device
        _check_dtype(dtype)
        return self if device is None else Talk2DINO.to(self, device)

    def save_pretrained(  # type: ignore[override]
        self, folder: str | Path, *, safe_serialization: bool = True, **options: Any
    ) -> Path:
        """As `Talk2DINO.save_pretrained`.

        Unlike transformers' models, an earlier save is kept unless `overwrite` is true: its model
        card may have been written by hand.

        Args:
            folder: made if it is not there.
            safe_serialization: only true is supported: weights are written as safetensors.
            options: `projection_only`, `results`, `overwrite`.

        Raises:
            ValueError: `safe_serialization` is false; otherwise as `Talk2DINO.save_pretrained`.
            FileExistsError: the folder holds such files and `overwrite` is false.
        """
        if not safe_serialization:
            raise ValueError(
                f"safe_serialization={safe_serialization} is not supported: weights are written "
                "as safetensors. Leave it out."
            )
        return Talk2DINO.save_pretrained(self, folder, **options)

    def forward(self, windows: Tensor, classes: Tensor, background: float | None = None) -> Tensor:
        """Scores of windows (B, 3, h, w), RGB in [0, 255], for rows (C, D) of `embed_classes`."""
        return self.segmenter.window_scores(windows, ClassQuery.of_rows(classes, background))


def _configured(loaded: LoadedModel, config: Talk2DinoConfig) -> LoadedModel:
    """A model with the options that a configuration says, of which it has the weights."""
    given = parse_folder_config(config.to_dict(), "config", folder="")
    options, ours = dict(vars(given.config)), loaded.segmenter.config
    for name in ("projection", "vision_model", "text_model"):
        if options.pop(name) != getattr(ours, name):
            raise ValueError(f"config.segmenter names another {name} than {loaded.origin} has.")
    for name in WEIGHT_FIELDS:
        del options[name]
    segmenter, threshold = loaded.segmenter.variant(**options), given.background_threshold
    return dataclasses.replace(loaded, segmenter=segmenter, background_threshold=threshold)


def _check_dtype(dtype: Any, name: str = "dtype") -> None:
    if dtype not in _FLOAT32:
        raise ValueError(f"{name}={dtype} is not supported: weights are float32.")
