"""Reading the published checkpoint files without running anything that they hold.

They are pickles of everything a training had: the tensors, the optimiser, and an OmegaConf
configuration object. Only the tensors are read; the rest becomes empty stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from talk2dino.backbones.checkpoints import unwrapped
from talk2dino.backbones.stand_ins import CONFIGURATION, NUMBERS, stand_ins
from talk2dino.files import load_torch

MODEL_KEY = "model"


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `model` entry, by name.

    Args:
        path: a file in the published layout: a dict with `model`, and whatever a training saves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or damaged, holds code that no such checkpoint has (nothing of it
            is run), or has no `model` entry of tensors.
    """
    path = Path(path)
    with stand_ins((*CONFIGURATION, *NUMBERS)):
        try:
            content = load_torch(path, mmap=True)
        except ValueError as error:
            found = re.search(r"GLOBAL (\S+)", str(error.__cause__))
            if found is None:
                raise
            raise ValueError(
                f"{path} refers to {found[1]}, which an OVSegmentor checkpoint does not. It was "
                "changed, or is something else; it is not loaded, and nothing of it was run."
            ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get(MODEL_KEY), Mapping):
        found_type = ", ".join(map(str, content)) if isinstance(content, Mapping) else content
        raise ValueError(
            f"{path} has no entry {MODEL_KEY!r} with the weights, as OVSegmentor's checkpoints "
            f"have. Found: {str(found_type)[:200] or 'nothing'}."
        )
    state = {str(name): value for name, value in content[MODEL_KEY].items()}
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        what = f"{strange[0]!r} is no tensor" if strange else "it is empty"
        raise ValueError(f"{path}: the entry {MODEL_KEY!r} holds no state dict: {what}")
    return unwrapped(state, path)
