"""`Talk2DINO` as a model of transformers: what `AutoModel.from_pretrained` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from talk2dino.api import Talk2DINO
from talk2dino.hub.fetch import FetchOptions
from talk2dino.hub.load import LoadedModel, load_model
from talk2dino.huggingface.auto import Talk2DinoConfig

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
        self.loaded = loaded
        self.segmenter = loaded.segmenter
        self.vision = loaded.segmenter.vision
        self.text = loaded.segmenter.text
        self.projection = loaded.segmenter.projection

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, *, config: Talk2DinoConfig | None = None, **settings: Any
    ) -> Talk2DinoModel:
        """Load as `Talk2DINO.from_pretrained` does, on the CPU unless `device_map` names a device.

        Args:
            name_or_path: a folder, a repository, or a name.
            config: what `AutoConfig` read; by default it is made from the loaded model.
            settings: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`,
                `device_map`; `dtype` float32. Weights are float32.

        Raises:
            ValueError: another setting or dtype; otherwise as `Talk2DINO.from_pretrained`.
        """
        fetch = FetchOptions(**{name: settings.pop(name) for name in _FETCH if name in settings})
        device = settings.pop("device_map", None) or "cpu"
        for name in ("dtype", "torch_dtype"):
            if (found := settings.pop(name, None)) not in _FLOAT32:
                raise ValueError(f"{name}={found} is not supported: weights are float32.")
        if not isinstance(device, str | torch.device) or device in ("auto", "balanced"):
            raise ValueError(f"device_map={device!r} is not supported: name one device.")
        unknown = [k for k in settings if not k.startswith("_") and k not in _WITHOUT_EFFECT]
        if unknown:
            raise ValueError(f"{cls.__name__} does not know {', '.join(unknown)}.")
        loaded = load_model(str(name_or_path), device, fetch=fetch)
        return cls(config or Talk2DinoConfig(), loaded).eval()

    def forward(self, windows: Tensor, classes: Tensor, background: float | None = None) -> Tensor:
        """Scores of windows (B, 3, h, w), RGB in [0, 255]; see `Segmenter.window_scores`."""
        return self.segmenter.window_scores(windows, classes, background)
