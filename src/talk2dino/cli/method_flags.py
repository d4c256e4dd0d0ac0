"""The flags of methods: they come from the options class of every method that is named."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from talk2dino.cli.flags import add_flags, from_flags
from talk2dino.config import check_name, field_docs
from talk2dino.sizes import Sizes

if TYPE_CHECKING:
    from talk2dino.methods.base import Method

_SWITCH = {"on": True, "off": False}


def add_method_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """Declare the options of the methods that a command line names.

    Args:
        parser: with the command's own flags.
        argv: the command line; None for the flags of the default model.
    """
    from talk2dino.methods.registry import MODEL_NAMES, method_classes

    group = parser.add_argument_group(
        "method", "options of the named models' methods; --model <name> --help lists another's"
    )
    taken = {action.dest for action in parser._actions}
    named = method_classes(_named_models(argv or []))
    words = {word.partition("=")[0] for word in argv or [] if word.startswith("--")}
    others: list[type[Method]] = []
    for kind in itertools.chain(named, others):
        docs = field_docs(kind.Options)
        for entry in dataclasses.fields(kind.Options):
            if entry.name not in taken:
                taken.add(entry.name)
                text = docs.get(entry.name, "") if kind in named else argparse.SUPPRESS
                _add_flag(group, entry, text)
        if kind is named[-1] and not others and words - set(parser._option_string_actions):
            others += method_classes(MODEL_NAMES)  # to say whose option it is


def add_option_flags(parser: argparse._ActionsContainer) -> None:
    """Declare what is beyond the publications, and off unless it is asked for."""
    group = parser.add_argument_group("options beyond the publications (docs/options.md)")
    group.add_argument(
        "--protocol",
        default="native",
        metavar="P",
        help="native: as each method was published; unified: sizes and words that all share, and "
        "no background",
    )
    group.add_argument(
        "--refine", metavar="NAMES", help="with commas: smoothing, propagation, pamr"
    )
    group.add_argument(
        "--pooling",
        metavar="P",
        help="how a vocabulary's words of a class are put together: max, the best one (default), "
        "or lse, a soft maximum",
    )
    add_flags(group, "sizes:Sizes")


def given_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """The sizes that were typed, for `find_method`."""
    return from_flags(Sizes, args).given()


def pooling_of(args: argparse.Namespace, flag: str, vocabulary: object) -> str:
    """How the words of a vocabulary, given with a flag, are pooled.

    Raises:
        ValueError: there is none, or the name is unknown.
    """
    from talk2dino.segmenter import POOLINGS

    if args.pooling is None:
        return "max"
    if vocabulary is None:
        raise ValueError(f"--pooling is for the words of {flag} FILE.txt.")
    check_name("--pooling", args.pooling, POOLINGS)
    return str(args.pooling)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of methods that were typed, by their names; `--refine pamr` is `--pamr`.

    Raises:
        ValueError: an unknown refinement, or one that another flag switches off.
    """
    from talk2dino.refine.refinement import chosen_refinements

    refined = chosen_refinements(getattr(args, "refine", None))
    chosen = dict(getattr(args, "method_options", None) or {})
    if off := [word for word in refined if chosen.get(word) is False]:
        raise ValueError(f"--refine {off[0]} contradicts --no_{off[0]}: pass one of them.")
    return refined | chosen


def options_of(
    args: argparse.Namespace, names: Sequence[str], more: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Per model, the options of its method that were typed.

    An option that only some of the models have is mentioned on stderr.

    Args:
        args: the parsed flags.
        names: of the models.
        more: options that other flags stand for.

    Raises:
        ValueError: an unknown model, or an option that none of the models has.
    """
    from talk2dino.methods.registry import method_class, option_names, owners_of

    given = given_options(args) | dict(more or {})
    known = {name: option_names(method_class(name)) for name in names}
    for option in given:
        without = [name for name in names if option not in known[name]]
        if len(without) == len(names):
            raise ValueError(
                f"--{option} means nothing for {', '.join(without)}. Leave it out. "
                f"{owners_of(option)}"
            )
        if without:
            text = f"--{option} means nothing for {', '.join(without)}"
            print(f"warning: {text}", file=sys.stderr)
    return {name: {o: v for o, v in given.items() if o in known[name]} for name in names}


def _named_models(argv: Sequence[str]) -> list[str]:
    """The models of a command line, unchecked: a wrong name is said when everything is parsed."""
    from talk2dino.methods.registry import DEFAULT_MODEL, MODEL_NAMES, method_class

    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--model", nargs="*", default=[])
    scan.add_argument("--resume", nargs="*")
    try:
        found, _ = scan.parse_known_args(list(argv))
    except argparse.ArgumentError:
        return [DEFAULT_MODEL]
    words = [word.strip() for text in found.model for word in text.split(",")]
    names = [word.partition("=")[0] for word in words]
    known = [name for name in names if name in MODEL_NAMES]
    for place in (name for name in names if name and name not in MODEL_NAMES):
        try:
            method_class(place)
            known.append(place)
        except ValueError:
            continue
    return known or [DEFAULT_MODEL]


class _Given(argparse.Action):
    """Keeps an option where only those that were typed are."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        value = self.const if values in (None, []) else values
        if option_string is not None and option_string.startswith("--no_"):
            value = not value
        chosen = dict(getattr(namespace, "method_options", None) or {})
        if isinstance(value, bool) and chosen.get(self.dest, value) != value:
            parser.error(f"{option_string}: not allowed with argument --{self.dest}'s other value")
        chosen[self.dest] = value
        namespace.method_options = chosen
        setattr(namespace, self.dest, value)


def _add_flag(group: argparse._ArgumentGroup, entry: dataclasses.Field[Any], text: str) -> None:
    flag = f"--{entry.name}"
    kinds = [kind.strip() for kind in str(entry.type).split("|")]
    shared: dict[str, Any] = {"action": _Given, "dest": entry.name, "default": entry.default}
    if "bool" in kinds:
        group.add_argument(
            *(flag, f"--no_{entry.name}"),
            **shared,
            nargs="?",
            const=True,
            type=_switch,
            metavar="on|off",
            help=text,
        )
        return
    number = {"int": int, "float": float}
    kind = next((number[name] for name in kinds if name in number), str)
    group.add_argument(flag, **shared, type=kind, metavar=entry.name.upper()[:1], help=text)


def _switch(word: str) -> bool:
    if word not in _SWITCH:
        raise argparse.ArgumentTypeError(f"{word!r} is neither on nor off")
    return _SWITCH[word]
