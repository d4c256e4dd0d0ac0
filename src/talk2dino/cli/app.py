"""`app.py`: segment pictures in the browser."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command
from talk2dino.cli.flags import add_flags, from_flags
from talk2dino.methods.registry import DEFAULT_MODEL, MODEL_NAMES

if TYPE_CHECKING:
    from talk2dino.app.inputs import Limits, ServerConfig
    from talk2dino.app.models import Entry, Models

EXAMPLES = {
    "assets/coffee.png": "cup, spoon, wooden table",
    "assets/chelsea.png": "cat, nose, blanket",
    "assets/astronaut.png": "astronaut, flag, space shuttle",
}
"""Pictures of the checkout -> categories that go with them."""
MAX_EXAMPLES = 8
WEIGHTS = ("weights", "vision_weights", "text_weights")
"""Flags of the model of --config."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--model",
        nargs="+",
        metavar="NAME",
        help=f"models to choose from, the first at once: {', '.join(MODEL_NAMES)}, a folder or a "
        "repository; <name>=<folder, file or seeded:<n>> for other weights "
        f"(default: {DEFAULT_MODEL}, or the one of --config)",
    )
    group.add_argument(
        "--config", metavar="YAML", help="recipe of configs/, or the model YAML of an evaluation"
    )
    group.add_argument(
        "--weights",
        metavar="W",
        help="projection of --config: a file or seeded:<n> (default: weights/<recipe>.pth)",
    )
    for side in ("vision", "text"):
        group.add_argument(
            f"--{side}_weights",
            metavar="W",
            help="of --config: pretrained, a file, or seeded:<n> (default: what the config says)",
        )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")
    group = parser.add_argument_group("page")
    group.add_argument("--categories", default="", metavar="A,B", help="what the field starts with")
    group.add_argument(
        "--vocab",
        metavar="NAME",
        help="in their place voc, coco, ade or a .txt file, as in demo.py",
    )
    group.add_argument(
        "--examples",
        metavar="FOLDER",
        help=f"folder whose first {MAX_EXAMPLES} pictures are examples (default: those of assets/)",
    )
    add_flags(group, "app.inputs:Limits")
    add_flags(parser.add_argument_group("server"), "app.inputs:ServerConfig")


@dataclass(frozen=True)
class Plan:
    """What is served, and how."""

    models: Models
    """On offer, none of them loaded."""
    limits: Limits
    """Of one request."""
    server: ServerConfig
    """Where."""
    examples: Sequence[tuple[Path, str]]
    """Pictures, each with the categories that go with it."""
    categories: str
    """That the page starts with."""


def check(args: argparse.Namespace) -> Plan:
    """Raise for wrong arguments and missing files, before any model is loaded."""
    if find_spec("gradio") is None:
        raise ImportError("the app needs Gradio: pip install -r requirements-app.txt")
    for flag in WEIGHTS:
        if getattr(args, flag) is not None and args.config is None:
            raise ValueError(f"--{flag} belongs to --config. Add that, or leave it out.")

    from talk2dino.app.inputs import Limits, ServerConfig
    from talk2dino.app.models import Models
    from talk2dino.devices import resolve_device

    server = from_flags(ServerConfig, args)
    limits = from_flags(Limits, args)
    categories = _categories(args, limits)
    examples = _examples(args, categories)
    device = resolve_device(args.device)
    return Plan(Models(_entries(args), device), limits, server, examples, categories)


def run(args: argparse.Namespace, plan: Plan) -> int:
    """Load the first model, then serve until interrupted."""
    from talk2dino.app.server import serve

    models = plan.models
    first = next(iter(models.entries.values()))
    print(f"loading {first.name} on {models.device}")
    try:
        with models.use(first.name):
            pass  # what is wrong with it is said here, not to the first visitor
    except (OSError, RuntimeError):
        print("note: --model toy shows the page without any weights")
        raise
    if first.notice:
        print(f"note: {first.notice}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that files are removed then, too
    try:
        served = serve(models, plan.limits, plan.server, plan.examples, plan.categories)
        with served as page:
            print(f"open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")
    return DONE


def _entries(args: argparse.Namespace) -> list[Entry]:
    """The models of the flags, the first one first."""
    from talk2dino.app.models import find_entry
    from talk2dino.files import find_in_checkout

    entries = []
    if args.config is not None:
        given = {flag: value for flag in WEIGHTS if (value := getattr(args, flag)) is not None}
        trained = args.weights is not None and not args.weights.startswith("seeded:")
        label = Path(args.weights if trained else args.config).stem
        entries.append(find_entry(str(find_in_checkout(args.config)), label, **given))
    names = args.model or ([] if entries else [DEFAULT_MODEL])
    return [*entries, *(find_entry(name) for name in names)]


def _categories(args: argparse.Namespace, limits: Limits) -> str:
    """What the field of categories starts with."""
    from talk2dino.app.inputs import read_names
    from talk2dino.pictures.vocabularies import find_vocabulary

    if args.vocab is None:
        return str(args.categories)
    if args.categories:
        raise ValueError("--categories and --vocab both fill the field. Give one of them.")
    lines = find_vocabulary(args.vocab).lines()
    if len(lines) > limits.max_categories:
        raise ValueError(
            f"--vocab {args.vocab} has {len(lines)} lines, more than the {limits.max_categories} "
            f"of a request. Pass --max_categories {len(lines)}, too."
        )
    if comma := next((line for line in lines if "," in line), None):
        raise ValueError(f"--vocab {args.vocab}: commas separate categories here, see {comma!r}.")
    text = ", ".join(lines)
    read_names(text, True, limits)
    return text


def _examples(args: argparse.Namespace, categories: str) -> list[tuple[Path, str]]:
    """Pictures that the page starts with, each with its categories."""
    from talk2dino.files import find_in_checkout
    from talk2dino.pictures.images import list_images

    if args.examples is None:
        found = [(find_in_checkout(path), words) for path, words in EXAMPLES.items()]
        return [pair for pair in found if pair[0].is_file()]
    folder = Path(args.examples)
    if not folder.is_dir():
        raise FileNotFoundError(f"--examples: there is no folder {folder}.")
    pictures = list_images(folder)[:MAX_EXAMPLES]
    if not pictures:
        raise FileNotFoundError(f"--examples: {folder} holds no pictures.")
    return [(picture, categories) for picture in pictures]


COMMAND = Command(
    name="app",
    summary="Segment pictures in the browser.",
    example="python app.py --model toy",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

main = COMMAND.main
