"""Flags that come from the fields of a settings class: type, default and help.

The class is read from its source and not imported, so that --help needs no PyTorch.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import talk2dino
from talk2dino.config import documented_fields

T = TypeVar("T")
_KINDS = {"int": int, "float": float, "Path": Path, "str": str}
_REQUIRED = object()


def add_flags(parser: argparse._ActionsContainer, place: str, *names: str, **defaults: Any) -> None:
    """Declare a flag for fields of a dataclass, called like them, with the strings under them.

    Args:
        parser: or a group of it.
        place: module below talk2dino and class, as in `features.extract:ImageSettings`.
        names: its fields; none for all. `field=flag` for another spelling of the flag, or for
            several: `field=flag|alias`.
        defaults: field -> the command's own default, where the class has another or computes it.
    """
    known = _fields(place)
    for name in names or known:
        name, _, spelt = name.partition("=")
        kinds, default, text = known[name]
        flags = [f"--{flag}" for flag in (spelt or name).split("|")]
        if "bool" in kinds:
            parser.add_argument(*flags, dest=name, action="store_true", help=text)
            continue
        default = defaults.get(name, default)
        parser.add_argument(
            *flags,
            dest=name,
            metavar=flags[0].lstrip("-").upper(),
            type=next(_KINDS[kind] for kind in kinds if kind in _KINDS),
            default=None if default is _REQUIRED else default,
            required=default is _REQUIRED,
            help=text,
        )


def from_flags(kind: type[T], args: argparse.Namespace, **values: Any) -> T:
    """A dataclass from the flags of its fields.

    Args:
        kind: the dataclass.
        args: the parsed flags.
        values: fields that are no flags, or that are other than the flags say.
    """
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return kind(**{**given, **values})


def _fields(place: str) -> dict[str, tuple[list[str], Any, str]]:
    """Name of a field -> its types, its default, and the string under it as a help text."""
    module, _, name = place.partition(":")
    source = Path(talk2dino.__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found: dict[str, tuple[list[str], Any, str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or node.name != name:
            continue
        for base in node.bases:  # of the same file
            found |= _fields(f"{module}:{ast.unparse(base)}")
        for entry, words in documented_fields(node):
            kinds = [kind.strip() for kind in ast.unparse(entry.annotation).split("|")]
            first = words.partition(" ")[0]
            if first[1:].islower():
                words = first.lower() + words[len(first) :]
            help_text = words.rstrip(".").replace("%", "%%").replace("`", "")
            found[ast.unparse(entry.target)] = (kinds, _default(entry.value), help_text)
    return found


def _default(value: ast.expr | None) -> Any:
    if value is None:
        return _REQUIRED
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None  # computed; the command has its own
