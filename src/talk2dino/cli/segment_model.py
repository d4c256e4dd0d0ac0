"""Which model and which classes the flags of the segment command mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from talk2dino.cli.method_flags import options_of
from talk2dino.pictures.vocabularies import Vocabulary, find_vocabulary

if TYPE_CHECKING:
    from talk2dino.methods.base import Method

DEFAULT_MODEL = "vitb"
PUBLISHED_MODEL = "ovsegmentor_vitb"
"""What a `--resume` without `--model` is of: the published demo has no other."""
_OPTIONS = {"evaluate.seg.template": "template", "test_cfg.bg_thresh": "bg_thresh"}


def add_published_flags(group: argparse._ArgumentGroup) -> None:
    """Declare the flags of OVSegmentor's published demo."""
    group.add_argument(
        "--resume", metavar="W", help="the same as --weights; alone, of " + PUBLISHED_MODEL
    )
    group.add_argument("--cfg", metavar="YAML", help="not read: the weights say what they are")
    group.add_argument(
        "--opts",
        nargs="*",
        metavar="KEY=VALUE",
        help=f"{' or '.join(f'{key}=...' for key in _OPTIONS)}",
    )
    group.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def read_published_flags(args: argparse.Namespace) -> None:
    """Put what the published flags say into the project's own; once or more often.

    Raises:
        ValueError: flags that contradict each other, or unknown options.
    """
    if args.resume is not None:
        if args.weights not in (None, args.resume):
            raise ValueError("--resume and --weights are the same. Give one of them.")
        _choose(args, "weights", args.resume)
        if args.model is None:
            args.model = PUBLISHED_MODEL
    for option in args.opts or []:
        key, equals, value = option.partition("=")
        if not equals or key not in _OPTIONS:
            raise ValueError(f"--opts {option}: unknown. Known: {', '.join(_OPTIONS)}.")
        try:
            if key.endswith("thresh"):
                args.bg_thresh = float(value)
            else:
                _choose(args, _OPTIONS[key], value)
        except ValueError as error:
            raise ValueError(f"--opts {option}: {value!r} is no number.") from error


def _choose(args: argparse.Namespace, option: str, value: str) -> None:
    """As if the option of a method had been typed."""
    setattr(args, option, value)
    args.method_options = {**(getattr(args, "method_options", None) or {}), option: value}


def method_of(args: argparse.Namespace) -> Method:
    """The model of the flags, with the options of its published demo.

    Raises:
        ValueError: an unknown model, or a flag that means nothing for it.
        FileNotFoundError: a recipe that is not there.
    """
    from talk2dino.methods.registry import find_method

    if args.config is not None and args.model is not None:
        raise ValueError("--config and --model both choose a model. Give one of them.")
    name = args.config or args.model or DEFAULT_MODEL
    return find_method(name, options_of(args, [name])[name]).for_pictures(args.with_background)


def background_of(args: argparse.Namespace, method: Method) -> float | None:
    """The background's threshold, or None for no background.

    Raises:
        ValueError: a threshold without a background.
    """
    wanted = args.with_background or method.demo.always_background
    if args.no_background and args.with_background:
        raise ValueError("--with_background and --no_background contradict each other.")
    if args.no_background or not wanted:
        if args.bg_thresh is not None:
            if args.no_background:
                raise ValueError("--bg_thresh has no effect with --no_background. Choose one.")
            raise ValueError("--bg_thresh has no effect without --with_background. Add it.")
        return None
    return method.demo.threshold if args.bg_thresh is None else float(args.bg_thresh)


def vocabulary_of(args: argparse.Namespace, method: Method) -> Vocabulary:
    """The classes of --vocab, by the names that the method has for them."""
    from talk2dino.benchmarks.table import BENCHMARKS

    found = find_vocabulary(args.vocab)
    if found.benchmark is None:
        return found
    words = method.words(BENCHMARKS[found.benchmark])
    return replace(found, names=tuple(words.of(name)[0] for name in found.names))
