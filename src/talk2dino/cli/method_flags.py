"""What commands share that take a model of any method: its options, sizes and refinements."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from talk2dino.cli.command import Command, add_flags, from_flags
from talk2dino.config import check_name
from talk2dino.sizes import Sizes

if TYPE_CHECKING:
    from talk2dino.methods.base import Method

_SWITCH = {"on": True, "off": False}
_OPTION = "option_"
"""What the attributes of methods' options begin with; there are only those that were typed."""


class MethodCommand(Command):
    """A command that takes models of any method, with the options of that method."""

    protocol: str = "native"
    """native: as each method was published; unified: sizes and words that all share, and no
    background."""
    refine: str | None = None
    """With commas: smoothing, propagation, pamr."""
    pooling: str | None = None
    """How a vocabulary's words of a class are put together: max, the best one (default), or lse, a
    soft maximum."""

    @classmethod
    def option_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Declare what is beyond the publications, and off unless it is asked for."""
        group = parser.add_argument_group("options beyond the publications (docs/options.md)")
        cls.own_flags(group, "protocol", "refine", "pooling")
        add_flags(group, "sizes:Sizes")

    @classmethod
    def add_more(cls, parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
        """Declare the options of the methods that a command line names."""
        from talk2dino.methods.registry import MODEL_NAMES, method_classes

        group = parser.add_argument_group(
            "method", "options of the named models' methods; --model <name> --help lists another's"
        )
        for kind in method_classes(_named_models(argv)):
            _add_options(group, kind)
        words = {word.partition("=")[0] for word in argv if word.startswith("--")}
        if words - set(parser._option_string_actions):  # to say whose option it is
            for kind in method_classes(MODEL_NAMES):
                _add_options(group, kind, help=argparse.SUPPRESS)

    def settings_of(self, names: Sequence[str], **more: Any) -> dict[str, dict[str, Any]]:
        """Per model, what was typed of its method's options, of sizes and of the protocol.

        An option that only some of the models have is mentioned on stderr.

        Args:
            names: of the models.
            more: options that other flags stand for.

        Raises:
            ValueError: an unknown model or refinement, an option that none of the models has, or a
                refinement that another flag switches off.
        """
        from talk2dino.methods.registry import method_class, option_names, owners_of
        from talk2dino.refine.refinement import chosen_refinements

        given = {n.removeprefix(_OPTION): v for n, v in vars(self).items() if n.startswith(_OPTION)}
        for name, value in given.items():
            if isinstance(value, list):  # a switch, however often it was typed
                given[name], *others = set(value)
                if others:
                    raise ValueError(f"--{name} and --no_{name} contradict each other.")
        refined = chosen_refinements(self.refine)
        if off := [word for word in refined if given.get(word) is False]:
            raise ValueError(f"--refine {off[0]} contradicts --no_{off[0]}: pass one of them.")
        given |= refined | more
        known = {name: option_names(method_class(name)) for name in names}
        for option in given:
            without = ", ".join(name for name in names if option not in known[name])
            text = f"--{option} means nothing for {without}"
            if not any(option in options for options in known.values()):
                raise ValueError(f"{text}. Leave it out. {owners_of(option)}")
            if without:
                print(f"warning: {text}", file=sys.stderr)
        shared = {**from_flags(Sizes, self).given(), "protocol": self.protocol}
        return {
            name: {**{o: v for o, v in given.items() if o in options}, **shared}
            for name, options in known.items()
        }

    def pooled(self, flag: str, vocabulary: object) -> str:
        """How the words of a vocabulary, given with a flag, are pooled.

        Raises:
            ValueError: there is none, or the name is unknown.
        """
        from talk2dino.segmenter import POOLINGS

        if self.pooling is None:
            return "max"
        if vocabulary is None:
            raise ValueError(f"--pooling is for the words of {flag} FILE.txt.")
        return check_name("--pooling", self.pooling, POOLINGS)


def _named_models(argv: Sequence[str]) -> list[str]:
    """The models of a command line; a wrong name is said when everything is parsed."""
    from talk2dino.methods.registry import DEFAULT_MODEL, method_class

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--model", "--config", nargs="*", default=[])
    found = []
    for name in ",".join(scan.parse_known_args(list(argv))[0].model).split(","):
        with suppress(ValueError):
            method_class(name.strip())
            found.append(name.strip())
    return found or [DEFAULT_MODEL]


def _add_options(group: argparse._ArgumentGroup, kind: type[Method], **more: Any) -> None:
    """Declare the options of a method that are no flags yet."""
    for entry in dataclasses.fields(kind.Options):
        name: str = entry.name
        shared: dict[str, Any] = {"dest": _OPTION + name, "default": argparse.SUPPRESS}
        if f"--{name}" in group._option_string_actions:
            continue
        if "bool" not in str(entry.type):
            add_flags(group, kind.Options, name, **{name: {**shared, **more}})
            continue
        switch = {"nargs": "?", "const": True, "type": _switch, "metavar": "on|off"}
        switch |= {"action": "append"}
        add_flags(group, kind.Options, name, **{name: {**shared, **switch, **more}})
        off = {"help": f"the same as --{name} off", **shared, **more}
        group.add_argument(f"--no_{name}", action="append_const", const=False, **off)


def _switch(word: str) -> bool:
    if word not in _SWITCH:
        raise argparse.ArgumentTypeError(f"{word!r} is neither on nor off")
    return _SWITCH[word]
