"""The commands, one module each; only programs import this folder.

Two things must be said before other packages are loaded, hence here.

Idle OpenMP threads spin for some microseconds and then sleep. Two threads on two cores, an epoch of
small matrix products: threads that sleep at once take 1.3 s and threads that spin this long 0.8 s,
as with the system's setting, which takes 4.5 s instead of 1.8 s when another program keeps one of
the cores busy.

open_clip, timm and torchvision load transformers and PyTorch's compiler for parts of theirs that no
command uses: 2.7 s of processor time. Here they do without; who needs the two loads them later.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

if sys.argv[:1] == ["-m"]:  # `python -m talk2dino.cli.train` would end without a word
    sys.exit("error: commands are run as `python -m talk2dino <command>`")

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

LEAN = ("open_clip", "timm", "torchvision")
"""Packages that are imported with the stand-ins."""


class _Compiler(ModuleType):
    """`torch._dynamo` as far as `LEAN` use it; the real one as soon as anything else is asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    @staticmethod
    def disable(function: Any, *args: Any, **settings: Any) -> Any:
        """Nothing is compiled in these packages' functions."""
        return function

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """Asked when an operator runs, not at its import."""
        return bool(import_module("torch._dynamo.utils").is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _leave(_STAND_INS)
        return getattr(import_module(self.__name__), name)


_STAND_INS: dict[str, ModuleType | None] = {
    "transformers": None,  # as if it were not installed
    **{name: _Compiler(name) for name in ("torch._dynamo", "torch._dynamo.utils")},
}


def _leave(stand_ins: dict[str, ModuleType | None]) -> None:
    for name, stand_in in stand_ins.items():
        if sys.modules.get(name, name) is stand_in:
            del sys.modules[name]


def without_needless(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Execute a module while the stand-ins are there for what has not been imported before."""
    used = {name: found for name, found in _STAND_INS.items() if name not in sys.modules}
    sys.modules.update(used)  # type: ignore[arg-type]
    try:
        execute(module)
    finally:
        _leave(used)


class LeanImports:
    """A finder that changes how `LEAN` are executed, and finds nothing of its own."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual specification, or None where nothing is to be changed."""
        if name.startswith("torch._dynamo.") and not path:  # a part of the stand-in
            _leave(_STAND_INS)
            return PathFinder.find_spec(name, import_module("torch._dynamo").__path__, target)
        spec = PathFinder.find_spec(name, path, target) if name in LEAN else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            execute_lean = partial(without_needless, execute)
            spec.loader.exec_module = execute_lean  # type: ignore[method-assign]
        return spec


if LeanImports not in sys.meta_path:
    sys.meta_path.insert(0, LeanImports)
