"""`app.py`: segment pictures in the browser."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command, run_command

if TYPE_CHECKING:
    import torch

    from talk2dino.app.models import ModelEntry
    from talk2dino.app.page import Opening

DEFAULT_MODEL = "vitb"
EXAMPLES = {
    "assets/coffee.png": "cup, spoon, wooden table",
    "assets/chelsea.png": "cat, nose, blanket",
    "assets/astronaut.png": "astronaut, flag, space shuttle",
}
"""Pictures of the checkout -> categories that go with them."""
MAX_EXAMPLES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--model",
        nargs="+",
        metavar="NAME",
        help="models to choose from, the first at once: toy, vitb, vitl, dinov3_vitb, dinov3_vitl, "
        "a folder or a repository; ovsegmentor_vitb, or ovsegmentor_vitb=<folder, .pth or "
        f"seeded:<n>> (default: {DEFAULT_MODEL}, or the one of --config)",
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
    _add_page_flags(parser.add_argument_group("page"))
    _add_server_flags(parser.add_argument_group("server"))


def _add_page_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--categories", default="", metavar="A,B", help="what the field starts with")
    group.add_argument(
        "--examples",
        metavar="FOLDER",
        help=f"folder whose first {MAX_EXAMPLES} pictures are examples (default: those of assets/)",
    )
    group.add_argument("--max_pixels", type=int, default=50_000_000, help="of a picture")
    group.add_argument(
        "--max_side", type=int, default=1024, metavar="PX", help="pictures are segmented at"
    )
    group.add_argument("--max_categories", type=int, default=64, help="in one request")
    group.add_argument("--max_upload_mb", type=int, default=50, help="of one file")
    group.add_argument(
        "--max_uploads_mb", type=int, default=1000, help="of all uploads; the oldest make room"
    )


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--server_name", default="127.0.0.1", help="address; 0.0.0.0 for the whole network"
    )
    group.add_argument(
        "--server_port", type=int, metavar="PORT", help="(default: the first free from 7860)"
    )
    group.add_argument("--share", action="store_true", help="public link through Gradio's servers")
    group.add_argument("--max_queue", type=int, default=32, help="requests that may wait")


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments and missing files, before any model is loaded."""
    if find_spec("gradio") is None:
        raise ImportError("the app needs Gradio: pip install -r requirements-app.txt")
    for flag in ("weights", "vision_weights", "text_weights"):
        if getattr(args, flag) is not None and args.config is None:
            raise ValueError(f"--{flag} belongs to --config. Add that, or leave it out.")
    for flag in ("max_queue", "max_upload_mb"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(args, flag)}.")
    if args.max_uploads_mb <= args.max_upload_mb:
        raise ValueError(
            f"--max_uploads_mb must be more than --max_upload_mb ({args.max_upload_mb}), got "
            f"{args.max_uploads_mb}."
        )
    if args.server_port is not None and not 1 <= args.server_port <= 65535:
        raise ValueError(f"--server_port must lie between 1 and 65535, got {args.server_port}.")

    from talk2dino.app.inputs import Limits
    from talk2dino.devices import resolve_device

    Limits(args.max_pixels, args.max_side, args.max_categories)
    _opening(args)
    _entries(args, resolve_device(args.device))


def run(args: argparse.Namespace, found: None = None) -> int:
    """Load the first model, then serve until interrupted."""
    from talk2dino.app.inputs import Limits
    from talk2dino.app.models import Models
    from talk2dino.app.server import ServerConfig, serve
    from talk2dino.devices import resolve_device

    device = resolve_device(args.device)
    models = Models(_entries(args, device), device)
    first = next(iter(models.entries))
    print(f"loading {first} on {device}")
    try:
        with models.use(first):
            pass  # what is wrong with it is said here, not to the first visitor
    except (OSError, RuntimeError):
        print("note: --model toy shows the page without any weights")
        raise
    notice = models.notice(first)
    if notice is not None:
        print(f"note: {notice}")
    limits = Limits(args.max_pixels, args.max_side, args.max_categories)
    config = ServerConfig(
        name=args.server_name,
        port=args.server_port,
        share=args.share,
        max_queue=args.max_queue,
        max_upload_mb=args.max_upload_mb,
        max_uploads_mb=args.max_uploads_mb,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that files are removed then, too
    try:
        with serve(models, limits, _opening(args), config) as page:
            print(f"open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")
    return DONE


def _entries(args: argparse.Namespace, device: torch.device) -> list[ModelEntry]:
    """The models of the flags, the first one first."""
    from talk2dino.app.entries import config_entry, find_entry
    from talk2dino.methods.talk2dino.config import read_segmenter_config

    entries = []
    if args.config is not None:
        given = {
            "projection_weights": args.weights,
            "vision_weights": args.vision_weights,
            "text_weights": args.text_weights,
        }
        changes = {key: value for key, value in given.items() if value is not None}
        config = read_segmenter_config(args.config, **changes)
        config.check()
        trained = args.weights is not None and not args.weights.startswith("seeded:")
        name = Path(args.weights if trained else args.config).stem
        entries.append(config_entry(name, config, device))
    names = args.model or ([] if entries else [DEFAULT_MODEL])
    return [*entries, *(find_entry(name, device) for name in names)]


def _opening(args: argparse.Namespace) -> Opening:
    """Examples and words that the page starts with."""
    from talk2dino.app.page import Opening
    from talk2dino.files import find_in_checkout
    from talk2dino.pictures.images import list_images

    if args.examples is None:
        found = [(find_in_checkout(path), words) for path, words in EXAMPLES.items()]
        return Opening([pair for pair in found if pair[0].is_file()], args.categories)
    folder = Path(args.examples)
    if not folder.is_dir():
        raise FileNotFoundError(f"--examples: there is no folder {folder}.")
    pictures = list_images(folder)[:MAX_EXAMPLES]
    if not pictures:
        raise FileNotFoundError(f"--examples: {folder} holds no pictures.")
    return Opening([(picture, args.categories) for picture in pictures], args.categories)


COMMAND = Command(
    name="app",
    summary="Segment pictures in the browser.",
    example="python app.py --model toy",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

if __name__ == "__main__":
    sys.exit(main())
