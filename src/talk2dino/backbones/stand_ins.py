"""Inert stand-ins for the objects that checkpoints hold beside their tensors.

PyTorch's restricted reader refuses every name that it does not know. The names listed here are
objects of trainings that nobody needs for the weights: none of them is imported, none is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

NUMBERS = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *("numpy.dtype", "numpy.ndarray"),
)
"""NumPy's numbers and arrays: metrics, losses."""
CONFIGURATION = (
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
"""OmegaConf's objects."""
ARGUMENTS = (
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
)
"""What scripts keep of their arguments."""
_DICTS = (
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


class Ignored:
    """Takes the place of an object that is not needed; it keeps nothing and does nothing."""

    def __new__(cls, *args: Any) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(Ignored):
    """Takes the place of a kind of dict: its content may be looked through."""

    def __new__(cls, *args: Any) -> Any:
        return {}


@contextmanager
def stand_ins(names: Iterable[str], kind: type[Ignored] = Ignored) -> Iterator[None]:
    """Let PyTorch's restricted reader meet objects of these names; each becomes a `kind`."""
    before = torch.serialization.get_safe_globals()
    classes: list[Any] = [_class_called(name, kind) for name in names]
    classes += [_class_called(name, _Dict) for name in _DICTS]
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _class_called(full_name: str, kind: type[Ignored]) -> type[Ignored]:
    module, _, name = full_name.rpartition(".")
    return type(name, (kind,), {"__module__": module})
