"""How a model is loaded, saved and shared: the part of the Python API that concerns files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import HfApi

from talk2dino.devices import resolve_device
from talk2dino.methods.talk2dino.hub.fetch import FetchOptions
from talk2dino.methods.talk2dino.hub.load import LoadedModel, load_model
from talk2dino.methods.talk2dino.hub.save import SaveOptions, push_model, save_model

T = TypeVar("T", bound="HubMethods")


class HubMethods:
    """Mixed into `Talk2DINO`, which is made from a `LoadedModel` alone."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    @classmethod
    def from_pretrained(
        cls: type[T],
        name_or_path: str | Path,
        device: str | torch.device = "auto",
        *,
        config: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> T:
        """Load a model, in evaluation mode. Code that comes with a repository never runs.

        Args:
            name_or_path: `toy` (no download; untrained), a published model (`vitb`, `vitl`,
                `dinov3_vitb`, `dinov3_vitl`: from weights/ or else the Hub), a folder that
                `save_pretrained` wrote, a file (the projection that `train.py` wrote, a
                published one, or a whole model), or a repository on the Hub (`owner/name`).
            device: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:<index>` or `mps`.
            config: recipe of a projection's file that does not tell its backbones.
            revision: branch, tag or commit of a repository.
            token: for private repositories.
            cache_dir: where downloads are kept; default: the Hugging Face cache.
            local_files_only: use the cache and nothing else.
            force_download: download again what is in the cache.

        Raises:
            ValueError: an unknown name or device; damaged files; the files of another model,
                with a guess of which; no such repository.
            FileNotFoundError: files that are not there; says where to get them.
            RuntimeError: a download that failed; says what to download and where to put it.
        """
        fetch = FetchOptions(revision, token, cache_dir, local_files_only, force_download)
        target = resolve_device(str(device))
        return cls(load_model(str(name_or_path), target, config, fetch))

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        projection_only: bool = False,
        results: str | Path | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write `model.safetensors`, `config.json` and a model card; returns the folder.

        The card says what the model is made of, how it was trained (if it was loaded from what
        `train.py` wrote) and its benchmark results.

        Args:
            folder: made if it is not there.
            projection_only: leave out the frozen models (4 MB instead of a gigabyte); they are
                downloaded when the folder is loaded.
            results: folder of `evaluate --output`, for the table in the card.
            overwrite: replace the files of an earlier save.

        Raises:
            FileExistsError: the folder holds such files and `overwrite` is false.
            ValueError: a part that cannot be saved, or results that cannot be read.
        """
        return save_model(self.loaded, folder, SaveOptions(projection_only, results, overwrite))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a Talk2DINO model",
        projection_only: bool = False,
        results: str | Path | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to `owner/name`; returns the address.

        The repository is made if it is not there; other files in it stay. Arguments as in
        `save_pretrained`; `token` is the Hub's, by default the one of `hf auth login`.

        Raises:
            ValueError: no name of a repository; otherwise as `save_pretrained`.
            RuntimeError: the Hub was not reached, or refused.
        """
        options = SaveOptions(projection_only, results)
        api = HfApi(token=token)
        return push_model(self.loaded, repo_id, options, commit_message, private, api)
