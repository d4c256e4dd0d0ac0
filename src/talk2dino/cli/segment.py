"""`demo.py`: segment photographs into classes named on the command line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, FAILED, Command, run_command, typed_command
from talk2dino.cli.method_flags import add_method_flags
from talk2dino.cli.segment_files import plan_tasks
from talk2dino.cli.segment_flags import add_arguments
from talk2dino.cli.segment_model import (
    background_of,
    method_of,
    read_published_flags,
    vocabulary_of,
)
from talk2dino.cli.segment_modes import load_job, plan_modes, wants_modes
from talk2dino.config import split_names
from talk2dino.pictures.drawing import class_colours
from talk2dino.pictures.vocabularies import BACKGROUND, Vocabulary, named_classes

if TYPE_CHECKING:
    from talk2dino.cli.segment_job import JobOptions
    from talk2dino.methods.base import Method


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments and unreadable pictures, before any model is loaded."""
    args.chosen = method, vocabulary = read_model(args)
    _check_numbers(args)
    if wants_modes(args):
        args.plan = plan_modes(args, method, vocabulary, background_of(args, method))
        return
    for flag in ("input", "output"):
        if getattr(args, flag) is None:
            raise ValueError(
                f"--{flag} is missing; --image_folder and --output_folder take its place."
            )
    args.plan = tasks = plan_tasks(args)

    from talk2dino.cli.segment_job import check_count, check_pictures
    from talk2dino.devices import resolve_device
    from talk2dino.pictures.images import read_rgb

    options = job_options(args, method, vocabulary)
    check_count(len(options.names), args.save_mask is not None)
    device = resolve_device(args.device)
    method.check()
    check_pictures([task.source for task in tasks], options, device)
    if len(tasks) == 1:
        read_rgb(tasks[0].source)  # a single picture is decoded at once; of many, only the headers


def run(args: argparse.Namespace) -> int:
    """Segment every picture; one that fails is named and does not stop the others."""
    from talk2dino.devices import resolve_device

    method, vocabulary = args.chosen  # found once: a model may have come from the Hub
    device = resolve_device(args.device)
    if args.cfg is not None:
        print("note: --cfg is not read: the weights say what they are")
    _announce(method, device)
    if wants_modes(args):
        plan = args.plan
        command = typed_command(COMMAND, "demo.py", args, but=("overwrite",))
        modes = load_job(plan, command)
        return _run_all({s: partial(modes.segment, s, files) for s, files in plan.outputs.items()})

    from talk2dino.cli.segment_job import SegmentJob

    segmenter = method.load(device)
    options = job_options(args, method, vocabulary)
    query = method.query(segmenter, options.names, options.background)
    job = SegmentJob(segmenter, query, method.demo.protocol, options)
    return _run_all({task.source: partial(job.segment, task) for task in args.plan})


def _run_all(jobs: Mapping[Path, Callable[[], str]]) -> int:
    failures = []
    for number, (source, segment) in enumerate(jobs.items(), start=1):
        try:
            outcome = segment()
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if len(jobs) == 1:
                raise
            failures.append(str(error) or type(error).__name__)
            outcome = f"{source}: failed"
        print(f"[{number}/{len(jobs)}] {outcome}", flush=True)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"error: {len(failures)} of {len(jobs)} pictures failed", file=sys.stderr)
    return FAILED if failures else DONE


def _announce(method: Method, device: object) -> None:
    """Say what is about to be loaded, and what is odd about it."""
    models, notes = method.describe()
    print(f"loading {models}, on {device}")
    for note in notes:
        print(f"note: {note}")


def read_model(args: argparse.Namespace) -> tuple[Method, Vocabulary]:
    """The model and the classes of the flags; nothing is loaded.

    Raises:
        ValueError, FileNotFoundError: flags that make no sense.
    """
    read_published_flags(args)
    if (args.vocab is None) == (args.textual_categories is None):
        raise ValueError("name the classes with --textual_categories or with --vocab, one of them.")
    names = []
    if args.vocab is None:  # first: it needs no file
        names = parse_categories(args.textual_categories, args.with_background)
    method = method_of(args)
    if args.vocab is not None:
        return method, vocabulary_of(args, method)
    if background_of(args, method) is None:  # then "background" is a class like any other
        return method, Vocabulary(tuple(names), class_colours(len(names)))
    return method, named_classes(names)


def parse_categories(text: str, with_background: bool = False) -> list[str]:
    """Class names from `a,b_c`: commas separate, underscores mean spaces.

    Raises:
        ValueError: none at all, an empty or a repeated one, or one called like the background.
    """
    names = [" ".join(part.replace("_", " ").split()) for part in split_names(text)]
    if not any(names):
        raise ValueError(
            f"--textual_categories {text!r} names no class. Give at least one, as in cat,polar_bear"
        )
    if "" in names:
        raise ValueError(
            f"--textual_categories {text!r}: number {names.index('') + 1} is empty. "
            "Remove the comma too many."
        )
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:  # CLIP reads lower case only
            raise ValueError(
                f"--textual_categories names {name!r} twice. Every class may appear once."
            )
        seen[name.lower()] = name
    if with_background and BACKGROUND in seen:
        raise ValueError(
            "--textual_categories: 'background' is added by --with_background. "
            "Leave one of them out."
        )
    return names


def job_options(args: argparse.Namespace, method: Method, vocabulary: Vocabulary) -> JobOptions:
    """The flags that concern single pictures."""
    from talk2dino.cli.segment_job import JobOptions, refines

    background = background_of(args, method)
    return JobOptions(
        names=[*([] if background is None else [BACKGROUND]), *vocabulary.names],
        background=background,
        opacity=args.opacity,
        max_side=args.max_side,
        pamr=refines(method),
        settings={
            "command": typed_command(COMMAND, "demo.py", args, but=("overwrite",)),
            "segmenter": method.settings(),
        },
    )


def _check_numbers(args: argparse.Namespace) -> None:
    for flag, value in (("--bg_thresh", args.bg_thresh), ("--opacity", args.opacity)):
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"{flag} must lie between 0 and 1, got {value}.")
    if args.max_side is not None and args.max_side < 1:
        raise ValueError(f"--max_side must be at least 1 pixel, got {args.max_side}.")


COMMAND = Command(
    name="segment",
    summary="Segment pictures into classes that you name.",
    example="python demo.py --input assets/coffee.png --output coffee_seg.png --with_background "
    "--textual_categories cup,table,spoon",
    add_arguments=add_arguments,
    add_more=add_method_flags,
    check=check,
    run=run,
    after_interrupt="finished pictures are kept; --overwrite makes them again",
)
