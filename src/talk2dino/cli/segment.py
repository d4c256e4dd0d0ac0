"""`demo.py`: segment photographs into classes named on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from talk2dino.cli.entry import DONE, FAILED, Command, run_command, typed_command
from talk2dino.cli.segment_files import BESIDE_OVERLAY, plan_tasks

if TYPE_CHECKING:
    from talk2dino.segmenter_config import SegmenterConfig

DEFAULT_CONFIG = "configs/vitb_mlp_infonce.yaml"
DEFAULT_THRESHOLD = 0.55
BACKGROUND = "background"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; those of the published demo keep their names."""
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="pictures, or folders of them"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="overlay with legend (.png, .jpg, .webp; .png if left out); a folder for several",
    )
    parser.add_argument(
        "--textual_categories",
        required=True,
        metavar="A,B_C",
        help="class names, separated by commas; underscores mean spaces",
    )
    _add_model_flags(parser.add_argument_group("model"))
    _add_method_flags(parser.add_argument_group("segmentation"))
    _add_output_flags(parser.add_argument_group("output"))


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--config",
        default=DEFAULT_CONFIG,
        metavar="YAML",
        help="recipe of configs/, or the model YAML of an evaluation",
    )
    group.add_argument(
        "--weights",
        metavar="W",
        help="projection: a file or seeded:<n> (default: weights/<recipe>.pth)",
    )
    for side in ("vision", "text"):
        group.add_argument(
            f"--{side}_weights",
            metavar="W",
            help="pretrained, a file, or seeded:<n> (default: what the config says)",
        )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")


def _add_method_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--with_background",
        action="store_true",
        help="pixels where no class exceeds the threshold become background",
    )
    group.add_argument(
        "--bg_thresh",
        type=float,
        metavar="X",
        help="threshold on sigmoid(cosine) of --with_background; lower finds more (default: "
        f"{DEFAULT_THRESHOLD})",
    )
    group.add_argument("--no_pamr", action="store_true", help="no refinement along image edges")
    cleaning = group.add_mutually_exclusive_group()
    cleaning.add_argument(
        "--clean_background",
        dest="clean_background",
        action="store_true",
        default=None,
        help="raise scores where attention agrees (default: with --with_background)",
    )
    cleaning.add_argument(
        "--no_clean_background",
        dest="clean_background",
        action="store_false",
        default=None,
        help="do not, even with --with_background",
    )
    group.add_argument("--template", default="subset", metavar="NAME", help="set of prompts")
    group.add_argument(
        "--max_side",
        type=int,
        metavar="PX",
        help="score larger pictures at this long side, to save time and memory (default: never)",
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--opacity", type=float, default=0.5, help="of the class colours, 0 to 1")
    group.add_argument(
        "--save_mask",
        nargs="?",
        const=BESIDE_OVERLAY,
        metavar="PATH",
        help="indexed PNG of class numbers (default name: <output>_mask.png; several: a folder)",
    )
    group.add_argument(
        "--save_scores",
        nargs="?",
        const=BESIDE_OVERLAY,
        metavar="PATH",
        help="NPZ: scores (C, H, W) float32, classes (C,) names, settings (JSON) "
        "(default name: <output>_scores.npz; several: a folder)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing output files")


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments and unreadable pictures, before any model is loaded."""
    names = parse_categories(args.textual_categories, args.with_background)
    _check_numbers(args)
    tasks = plan_tasks(args)

    from talk2dino.cli.segment_job import check_count, check_picture
    from talk2dino.devices import resolve_device
    from talk2dino.images import read_rgb

    check_count(len(names) + args.with_background, args.save_mask is not None)
    device = resolve_device(args.device)
    config = segmenter_config(args)
    config.check()
    options, problems = job_options(args, names), []
    for task in tasks:
        try:
            check_picture(task.source, options, device)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if len(tasks) == 1 and not problems:
        read_rgb(tasks[0].source)  # a single picture is decoded at once; of many, only the headers
    if len(problems) == len(tasks):
        more = f" And so for {len(problems) - 1} more." if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)


def run(args: argparse.Namespace) -> int:
    """Segment every picture; one that fails is named and does not stop the others."""
    from talk2dino.cli.segment_job import SegmentJob, differences_from_training
    from talk2dino.devices import resolve_device
    from talk2dino.segmenter import build_segmenter

    tasks = plan_tasks(args)
    config = segmenter_config(args)
    device = resolve_device(args.device)
    names = parse_categories(args.textual_categories, args.with_background)
    print(
        f"loading {config.vision_model} and {config.text_model} on {device}, "
        f"projection {config.projection_weights}"
    )
    if config.projection_weights.startswith("seeded:"):
        print("note: this projection is untrained; the colours will mean nothing")
    for difference in differences_from_training(config):
        print(f"note: {difference}")
    segmenter = build_segmenter(config, device)
    job = SegmentJob(segmenter, segmenter.embed_classes(names), job_options(args, names))
    failures = []
    for number, task in enumerate(tasks, start=1):
        try:
            outcome = job.segment(task)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if len(tasks) == 1:
                raise
            failures.append(str(error) or type(error).__name__)
            outcome = f"{task.source}: failed"
        print(f"[{number}/{len(tasks)}] {outcome}", flush=True)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"error: {len(failures)} of {len(tasks)} pictures failed", file=sys.stderr)
    return FAILED if failures else DONE


def parse_categories(text: str, with_background: bool = False) -> list[str]:
    """Class names from `a,b_c`: commas separate, underscores mean spaces.

    Raises:
        ValueError: none at all, an empty or a repeated one, or one called like the background.
    """
    names = [" ".join(part.replace("_", " ").split()) for part in text.split(",")]
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


def segmenter_config(args: argparse.Namespace) -> SegmenterConfig:
    """What the flags and the configuration file together describe."""
    from talk2dino.segmenter_config import find_in_checkout, read_segmenter_config

    changes: dict[str, Any] = {
        "pamr": not args.no_pamr,
        "clean_background": (
            args.with_background if args.clean_background is None else args.clean_background
        ),
        "template": args.template,
    }
    given = {
        "projection_weights": args.weights,
        "vision_weights": args.vision_weights,
        "text_weights": args.text_weights,
    }
    changes.update({key: value for key, value in given.items() if value is not None})
    is_default = args.config == DEFAULT_CONFIG
    path = find_in_checkout(args.config) if is_default else args.config
    return read_segmenter_config(path, **changes)


def job_options(args: argparse.Namespace, names: list[str]):  # type: ignore[no-untyped-def]
    """The flags that concern single pictures."""
    from talk2dino.cli.segment_job import JobOptions

    threshold = DEFAULT_THRESHOLD if args.bg_thresh is None else args.bg_thresh
    return JobOptions(
        names=[BACKGROUND, *names] if args.with_background else names,
        background=threshold if args.with_background else None,
        opacity=args.opacity,
        max_side=args.max_side,
        pamr=not args.no_pamr,
        settings={
            "command": typed_command(COMMAND, "demo.py", args, but=("overwrite",)),
            "segmenter": dataclasses.asdict(segmenter_config(args)),
        },
    )


def _check_numbers(args: argparse.Namespace) -> None:
    if args.bg_thresh is not None and not args.with_background:
        raise ValueError("--bg_thresh has no effect without --with_background. Add it.")
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
    check=check,
    run=run,
    after_interrupt="finished pictures are kept; --overwrite makes them again",
)
