"""`demo.py`: segment photographs into classes named on the command line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from talk2dino.cli.entry import DONE, FAILED, Command, typed_command
from talk2dino.cli.method_flags import (
    add_method_flags,
    add_option_flags,
    given_sizes,
    options_of,
    pooling_of,
)
from talk2dino.cli.segment_files import BESIDE_OVERLAY, MODES, Task, plan_export, plan_tasks
from talk2dino.config import check_name, split_names
from talk2dino.methods.registry import DEFAULT_MODEL, MODEL_NAMES, RESUMED_MODEL
from talk2dino.pictures.drawing import BACKGROUND_COLOUR, MAX_INDEXED
from talk2dino.pictures.export import KINDS as EXPORTS
from talk2dino.pictures.vocabularies import (
    BACKGROUND,
    VOCABULARIES,
    Vocabulary,
    class_names,
    find_vocabulary,
    named_classes,
)

if TYPE_CHECKING:
    from talk2dino.cli.segment_job import Load
    from talk2dino.methods.base import Method
    from talk2dino.pictures.export import Export
    from talk2dino.segmenter import ClassWords

DEFAULT_MODES = ("input_pred_label",)
_PUBLISHED = {"evaluate.seg.template": "template", "test_cfg.bg_thresh": "bg_thresh"}
"""Key of --opts -> the project's own flag."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is read, what is written, and with what."""

    method: Method
    """Model and options."""
    names: list[str]
    """Of the labels."""
    colours: np.ndarray
    """(C, 3) uint8 RGB of the labels in the pictures of --vis."""
    palette: np.ndarray | None
    """Those of overlays and masks if the classes are a data set's; None for generated ones."""
    background: float | None
    """Threshold of the background, or None for none."""
    words: ClassWords
    """By which the classes are looked for."""
    tasks: list[Task]
    """The pictures and the files of each."""
    load: Load
    """Where the model runs, and how large pictures may be."""
    export: Export | None
    """Collects the segmentations for another tool."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags but those of the model's method."""
    parser.add_argument("--input", nargs="+", metavar="PATH", help="pictures, or folders of them")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="overlay with legend (.png, .jpg, .webp; .png if left out); a folder for several",
    )
    parser.add_argument(
        "--textual_categories",
        metavar="A,B_C",
        help="class names between commas; underscores mean spaces (for commas in names: --vocab)",
    )
    parser.add_argument(
        "--vocab",
        nargs="+",
        metavar="NAME",
        help=f"in their place {', '.join(VOCABULARIES)}, a .txt file with `name; alias; alias` on "
        "each line, or class names as they are, in quotes where they hold spaces",
    )
    _add_scoring_flags(parser)
    _add_output_flags(parser)
    group = parser.add_argument_group("flags of the published demo with --vis")
    group.add_argument(
        "--resume", metavar="W", help=f"the same as --weights; alone, of {RESUMED_MODEL}"
    )
    group.add_argument("--cfg", metavar="YAML", help="not read: the weights say what they are")
    group.add_argument(
        "--opts",
        nargs="*",
        metavar="KEY=VALUE",
        help=f"{' or '.join(f'{key}=...' for key in _PUBLISHED)}",
    )
    group.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    add_option_flags(parser)


def _add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """What is asked of any model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME", help=f"{', '.join(MODEL_NAMES)} (default: {DEFAULT_MODEL})"
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help="in its place a recipe of configs/, or the model YAML of an evaluation",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")
    group = parser.add_argument_group("segmentation")
    group.add_argument(
        "--with_background",
        action="store_true",
        help="pixels where no class exceeds the threshold become background",
    )
    group.add_argument(
        "--no_background", action="store_true", help="for models that always have one: without it"
    )
    group.add_argument(
        "--bg_thresh",
        type=float,
        metavar="X",
        help="threshold of the background, 0 to 1; lower finds more (default: the model's own)",
    )
    group.add_argument(
        "--max_side",
        type=int,
        metavar="PX",
        help="score larger pictures at this long side, to save time and memory (default: 4096 "
        "beyond 16 megapixels if refined, else never)",
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    """What is written."""
    group = parser.add_argument_group("output")
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
    group.add_argument(
        "--export",
        choices=EXPORTS,
        help="also write the classes of all pictures for annotation tools, beside --output",
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing output files")
    group = parser.add_argument_group("several pictures of each image")
    group.add_argument("--image_folder", metavar="DIR", help="as --input, of one folder")
    group.add_argument("--output_folder", metavar="DIR", help="gets a folder per mode of --vis")
    group.add_argument(
        "--vis",
        nargs="+",
        metavar="MODE",
        help=f"{', '.join(MODES)} (default: {' '.join(DEFAULT_MODES)})",
    )


def check(args: argparse.Namespace) -> Plan:
    """Raise for wrong arguments and unreadable pictures, before any model is loaded."""
    from talk2dino.cli.segment_job import Load
    from talk2dino.devices import resolve_device
    from talk2dino.pictures.images import read_rgb

    method, vocabulary, background = read_model(args)
    if not (math.isfinite(args.opacity) and 0 <= args.opacity <= 1):
        raise ValueError(f"--opacity must lie between 0 and 1, got {args.opacity}.")
    if args.max_side is not None and args.max_side < 1:
        raise ValueError(f"--max_side must be at least 1 pixel, got {args.max_side}.")
    modes = []
    if args.vis is not None or args.output_folder is not None:
        modes = _modes_of(args.vis or DEFAULT_MODES, method)
    tasks = plan_tasks(args, modes)
    export = plan_export(args, tasks)
    pooling = pooling_of(args, "--vocab", vocabulary.words)
    words = vocabulary.class_words(method.words(), pooling)
    names = [*([] if background is None else [BACKGROUND]), *vocabulary.names]
    _check_count(len(names), tasks[0])
    device = resolve_device(args.device)
    method.check()
    load = Load(len(names), device, args.max_side, "pamr" in (method.demo.refines or ()))
    load.check_any([task.source for task in tasks])
    if len(tasks) == 1:
        read_rgb(tasks[0].source)  # a single picture is decoded at once; of many, only the headers
    colours = vocabulary.colours
    if background is not None:
        colours = np.concatenate([np.array([BACKGROUND_COLOUR], np.uint8), colours])
    palette = None if vocabulary.benchmark is None else colours
    return Plan(method, names, colours, palette, background, words, tasks, load, export)


def run(args: argparse.Namespace, plan: Plan) -> int:
    """Segment every picture; one that fails is named and does not stop the others."""
    from talk2dino.cli.segment_job import SegmentJob

    if args.cfg is not None:
        print("note: --cfg is not read: the weights say what they are")
    models, notes = plan.method.describe()
    print(f"loading {models}, on {plan.load.device}")
    for note in notes:
        print(f"note: {note}")
    segmenter = plan.method.load(plan.load.device)
    settings = {
        "command": typed_command(COMMAND, "demo.py", args, but=("overwrite",)),
        "segmenter": plan.method.settings(),
    }
    query = plan.method.query(segmenter, plan.names, plan.background, words=plan.words)
    protocol = plan.method.demo.protocol
    job = SegmentJob(
        segmenter,
        query,
        plan.load,
        protocol,
        plan.colours,
        plan.palette,
        args.opacity,
        settings,
        plan.export,
    )
    failures = []
    for number, task in enumerate(plan.tasks, start=1):
        try:
            outcome = job.segment(task)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if len(plan.tasks) == 1:
                raise
            failures.append(str(error) or type(error).__name__)
            outcome = f"{task.source}: failed"
        print(f"[{number}/{len(plan.tasks)}] {outcome}", flush=True)
    if plan.export is not None:
        print(f"exported: {plan.export.write()}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"error: {len(failures)} of {len(plan.tasks)} pictures failed", file=sys.stderr)
    return FAILED if failures else DONE


def read_model(args: argparse.Namespace) -> tuple[Method, Vocabulary, float | None]:
    """The model, the classes and the background's threshold of the flags; nothing is loaded.

    Raises:
        ValueError, FileNotFoundError: flags that make no sense.
    """
    from talk2dino.benchmarks.table import find_benchmark
    from talk2dino.methods.base import UNIFIED, refuse_threshold
    from talk2dino.methods.registry import find_method

    if (args.vocab is None) == (args.textual_categories is None):
        raise ValueError("name the classes with --textual_categories or with --vocab, one of them.")
    words = args.vocab or parse_categories(args.textual_categories)
    if args.vocab is None:  # first: it needs no file
        class_names(words, args.with_background)
    if args.config is not None and args.model is not None:
        raise ValueError("--config and --model both choose a model. Give one of them.")
    published = published_options(args)
    threshold = published.pop("bg_thresh", args.bg_thresh)
    default = DEFAULT_MODEL if args.resume is None else RESUMED_MODEL
    name = args.config or args.model or default
    options = options_of(args, [name], published)[name]
    settings = {**options, **given_sizes(args), "protocol": args.protocol}
    method = find_method(name, settings).for_pictures(args.with_background)
    background = background_of(args, method, threshold)
    if args.protocol == UNIFIED:
        refuse_threshold(background)
    if args.vocab is not None:
        found = find_vocabulary(words)
        if found.benchmark is not None:  # by the names that the method has for them
            of = method.words(find_benchmark(found.benchmark)).of
            found = replace(found, names=tuple(of(name)[0] for name in found.names))
        return method, found, background
    if background is None:  # then "background" is a class like any other
        return method, Vocabulary(tuple(words)), None
    return method, named_classes(words), background


def published_options(args: argparse.Namespace) -> dict[str, Any]:
    """What --resume and --opts stand for, by the names of the project's own flags.

    Raises:
        ValueError: flags that contradict each other, or unknown options.
    """
    found: dict[str, Any] = {}
    if args.resume is not None:
        if getattr(args, "weights", None) not in (None, args.resume):
            raise ValueError("--resume and --weights are the same. Give one of them.")
        found["weights"] = args.resume
    for option in args.opts or []:
        key, equals, value = option.partition("=")
        if not equals or key not in _PUBLISHED:
            raise ValueError(f"--opts {option}: unknown. Known: {', '.join(_PUBLISHED)}.")
        try:
            found[_PUBLISHED[key]] = float(value) if key.endswith("thresh") else value
        except ValueError as error:
            raise ValueError(f"--opts {option}: {value!r} is no number.") from error
    return found


def background_of(
    args: argparse.Namespace, method: Method, threshold: float | None
) -> float | None:
    """The background's threshold, or None for no background.

    Raises:
        ValueError: a threshold without a background, or outside 0 to 1.
    """
    if args.no_background and args.with_background:
        raise ValueError("--with_background and --no_background contradict each other.")
    if threshold is not None and not (math.isfinite(threshold) and 0 <= threshold <= 1):
        raise ValueError(f"--bg_thresh must lie between 0 and 1, got {threshold}.")
    wanted = args.with_background or method.demo.always_background
    if args.no_background or not wanted:
        if threshold is not None and args.no_background:
            raise ValueError("--bg_thresh has no effect with --no_background. Choose one.")
        if threshold is not None:
            raise ValueError("--bg_thresh has no effect without --with_background. Add it.")
        return None
    return method.demo.threshold if threshold is None else threshold


def parse_categories(text: str) -> list[str]:
    """Class names from `a,b_c`: commas separate, underscores mean spaces."""
    return [" ".join(part.replace("_", " ").split()) for part in split_names(text)]


def _modes_of(words: Sequence[str], method: Method) -> list[str]:
    """The modes of --vis, each once.

    Raises:
        ValueError: an unknown one, or group maps of a method that has none.
    """
    modes = [check_name("vis mode", word, MODES) for word in dict.fromkeys(words)]
    if not method.demo.groups and (without := [mode for mode in modes if "group" in mode]):
        others = ", ".join(mode for mode in MODES if "group" not in mode)
        raise ValueError(
            f"--vis {without[0]}: {method.model} has no groups, so there are no group maps of it. "
            f"They exist for methods with group tokens. Here: {others}."
        )
    return modes


def _check_count(count: int, task: Task) -> None:
    """Raise ValueError for more labels than a mask can hold."""
    masks = [kind for kind in task.outputs if kind in ("save_mask", "mask", "pred")]
    if masks and count > MAX_INDEXED:
        flag = "--save_mask" if masks[0] == "save_mask" else f"--vis {masks[0]}"
        raise ValueError(
            f"{flag}: an indexed PNG holds at most {MAX_INDEXED} classes, there are {count}. "
            "Use fewer classes, or --save_scores with --output."
        )


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

main = COMMAND.main
