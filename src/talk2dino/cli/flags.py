"""Flags that come from the fields of a class: type, default and help.

A class that is not imported yet is read from its source, so that --help needs no PyTorch.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import talk2dino

T = TypeVar("T")
_KINDS = {"bool": bool, "int": int, "float": float, "Path": Path, "str": str}
_KIND = re.compile(r"(list\[)?\b(bool|int|float|Path|str)\b")
_REQUIRED = object()


def add_flags(
    parser: argparse._ActionsContainer, place: str | type, *names: str, **changes: Any
) -> None:
    """Declare a flag for fields of a class, called like them, with the strings under them.

    Args:
        parser: or a group of it.
        place: module below talk2dino and class, as in `features.extract:ImageSettings`; or the
            class itself, with the fields of its bases.
        names: its fields; none for all. `field=flag` for another spelling of the flag, or for
            several: `field=flag|alias`.
        changes: field -> the command's own default, where the class has another or computes it, or
            a dictionary: other settings of `add_argument`, and `flags` in its own spelling, none
            for an argument without a flag.
    """
    if isinstance(place, str):
        module, _, kind = place.partition(":")
        known = _fields(f"talk2dino.{module}", kind)
    else:
        known = {}
        for base in place.__mro__[-2::-1]:  # all but object
            if base.__module__ != "talk2dino.cli.entry":  # what every command has
                known |= _fields(base.__module__, base.__name__)
    for name in names or known:
        name, _, spelt = name.partition("=")
        annotation, default, text = known[name]
        change = changes.get(name, {})
        change = dict(change) if isinstance(change, Mapping) else {"default": change}
        flags = change.pop("flags", [f"--{flag}" for flag in (spelt or name).split("|")])
        settings: dict[str, Any] = {"help": text}
        if annotation == "bool" and "type" not in change:
            settings["action"] = "store_true"
        else:
            kinds = _KIND.search(annotation)
            assert kinds is not None, f"no flag can hold {place} {name}: {annotation}"
            several, kind = kinds.groups()
            settings |= {"type": _KINDS[kind], "nargs": "+" if several else None}
            settings |= {} if default is _REQUIRED else {"default": default}
            settings["metavar"] = flags[0].lstrip("-").upper() if flags else name.upper()
        settings |= change
        if "choices" in change:
            del settings["metavar"]
        if settings.get("default") is argparse.SUPPRESS and isinstance(default, str | int):
            settings["help"] += "" if isinstance(default, bool) else f" (default: {default})"
        if flags:
            required = "action" not in settings and "default" not in settings
            settings = {"dest": name, "required": required, **settings}
        parser.add_argument(*(flags or [name]), **settings)


def from_flags(kind: type[T], args: object, **values: Any) -> T:
    """A dataclass from the flags of its fields.

    Args:
        kind: the dataclass.
        args: what holds the parsed flags.
        values: fields that are no flags, or that are other than the flags say.
    """
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return kind(**{**given, **values})


def _fields(module: str, name: str) -> dict[str, tuple[str, Any, str]]:
    """Name of a field -> its type, its default, and the string under it as a help text."""
    values = vars(sys.modules.get(module, argparse.Namespace()))
    below = Path(talk2dino.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    node = _classes(Path(values.get("__file__", below))).get(name)
    found: dict[str, tuple[str, Any, str]] = {}
    for base in [] if node is None else node.bases:  # of the same file
        found |= _fields(module, ast.unparse(base))
    for entry, words in () if node is None else _documented_fields(node):
        field, default = ast.unparse(entry.target), _REQUIRED
        if entry.value is not None:
            default = _default(entry.value, getattr(values.get(name), field, None))
        first = words.partition(" ")[0]
        if first[1:].islower():
            words = first.lower() + words[len(first) :]
        help_text = words.rstrip(".").replace("%", "%%").replace("`", "")
        help_text = re.sub(r"\{(\w+)\}", lambda m: _listed(values[m[1]]), help_text)
        found[field] = (ast.unparse(entry.annotation), default, help_text)
    return found


@cache
def _classes(source: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _documented_fields(body: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    """The fields in the source of a class, each with the string under it."""
    for entry, text in itertools.pairwise(body.body):
        value = text.value if isinstance(text, ast.Expr) else None
        if isinstance(entry, ast.AnnAssign) and isinstance(value, ast.Constant):
            yield entry, " ".join(str(value.value).split())


def _default(value: ast.expr, computed: Any) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return computed


def _listed(value: Any) -> str:
    """How a help text shows a value of its module that stands in it in braces."""
    return str(value) if isinstance(value, str | int) else ", ".join(value)
