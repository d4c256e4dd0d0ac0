"""Which model and which classes the flags of the segment command mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from talk2dino.pictures.vocabularies import Vocabulary, find_vocabulary

if TYPE_CHECKING:
    from talk2dino.benchmarks.method import Method

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
        args.weights = args.resume
        if args.model is None:
            args.model = PUBLISHED_MODEL
    for option in args.opts or []:
        key, equals, value = option.partition("=")
        if not equals or key not in _OPTIONS:
            raise ValueError(f"--opts {option}: unknown. Known: {', '.join(_OPTIONS)}.")
        try:
            setattr(args, _OPTIONS[key], float(value) if key.endswith("thresh") else value)
        except ValueError as error:
            raise ValueError(f"--opts {option}: {value!r} is no number.") from error


def method_of(args: argparse.Namespace) -> Method:
    """The model of the flags, with the options of Talk2DINO's published demo.

    Raises:
        ValueError: an unknown model, or a flag that means nothing for it.
        FileNotFoundError: a recipe that is not there.
    """
    from talk2dino.methods.options import ModelOptions
    from talk2dino.methods.registry import find_method, unused_options
    from talk2dino.methods.talk2dino.method import Talk2DinoMethod

    if args.config is not None and args.model is not None:
        raise ValueError("--config and --model both choose a model. Give one of them.")
    name = args.config or args.model or DEFAULT_MODEL
    options = ModelOptions(
        weights=args.weights,
        vision_weights=args.vision_weights,
        text_weights=args.text_weights,
        template=args.template,
        clean_background=args.clean_background or None,
    )
    method = find_method(name, options)
    if unused := unused_options(name, options):
        raise ValueError(f"--{unused[0]} means nothing for {name}. Leave it out.")
    if not isinstance(method, Talk2DinoMethod):
        return method
    clean = args.with_background if args.clean_background is None else args.clean_background
    config = replace(
        method.config,
        pamr=not args.no_pamr,
        clean_background=clean,
        template=args.template or method.config.template,
    )
    return replace(method, config=config)


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
    names = method.class_names(BENCHMARKS[found.benchmark], found.names)
    return replace(found, names=tuple(names))
