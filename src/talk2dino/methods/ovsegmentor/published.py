"""Reading the published checkpoint files without running anything that they hold.

They are pickles of everything a training had: the tensors, the optimiser, and an OmegaConf
configuration object. Only the tensors are read; the rest becomes empty stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.files import load_torch

MODEL_KEY = "model"

_CONFIGURATION = (
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "SCMode")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
    *("omegaconf.nodes.InterpolationResultNode", "omegaconf.nodes.UnionNode"),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
)
# Metrics may be numpy numbers.
_NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
_EMPTY_DICTS = ("collections.defaultdict",)


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
    with _stand_ins():
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
    return state


class _Ignored:
    """Takes the place of an object that is not needed; it keeps nothing and does nothing."""

    def __new__(cls, *args: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let torch's restricted reader meet the listed names; none of them is imported."""
    before = torch.serialization.get_safe_globals()
    stand_ins = [_class_called(name) for name in (*_CONFIGURATION, *_NUMBERS)]
    torch.serialization.add_safe_globals([*stand_ins, *map(_function_called, _EMPTY_DICTS)])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _class_called(full_name: str) -> type[_Ignored]:
    module, _, name = full_name.rpartition(".")
    return type(name, (_Ignored,), {"__module__": module})


def _function_called(full_name: str) -> Callable[..., dict[Any, Any]]:
    def empty(*args: Any) -> dict[Any, Any]:
        return {}

    empty.__module__, _, empty.__qualname__ = full_name.rpartition(".")
    empty.__name__ = empty.__qualname__
    return empty
