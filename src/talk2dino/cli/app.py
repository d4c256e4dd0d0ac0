"""`app.py`: segment pictures in the browser."""

from __future__ import annotations

import argparse
import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.command import Command, add_flags, from_flags
from talk2dino.methods.registry import DEFAULT_MODEL, MODEL_NAMES  # noqa: F401  for the help

if TYPE_CHECKING:
    from talk2dino.app.page import Page
    from talk2dino.app.request import Limits
    from talk2dino.app.server import ServerConfig

    Found = tuple[Page, ServerConfig]

EXAMPLES = {
    "assets/coffee.png": "cup, spoon, wooden table",
    "assets/chelsea.png": "cat, nose, blanket",
    "assets/astronaut.png": "astronaut, flag, space shuttle",
}
"""Pictures of the checkout -> categories that go with them."""
MAX_EXAMPLES = 8


class App(Command):
    """Segment pictures in the browser."""

    script = "app.py"
    example = "--model toy"
    gone = {
        **dict.fromkeys(("--config", "--weights"), "--model <recipe>=<weights>"),
        **dict.fromkeys(("--vision_weights", "--text_weights"), "--model takes a YAML with them"),
    }

    model: list[str] | None = None
    """Models to choose from, the first at once: {MODEL_NAMES}, a recipe of configs/, a folder or a
    repository; <name>=<folder, file or seeded:<n>> for other weights (default: {DEFAULT_MODEL})."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""
    categories: str = ""
    """What the field starts with."""
    vocab: str | None = None
    """In their place voc, coco, ade or a .txt file, as in demo.py."""
    examples: Path | None = None
    """Folder whose first {MAX_EXAMPLES} pictures are examples (default: those of assets/)."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        cls.own_flags(parser)
        add_flags(parser, "app.request:Limits")
        add_flags(parser.add_argument_group("server"), "app.server:ServerConfig")

    def check(self) -> Found:
        if find_spec("gradio") is None:
            raise ImportError("the app needs Gradio: pip install -r requirements-app.txt")

        from talk2dino.app.page import Page
        from talk2dino.app.request import Limits, Models, find_entry
        from talk2dino.app.server import ServerConfig
        from talk2dino.devices import resolve_device

        server, limits = from_flags(ServerConfig, self), from_flags(Limits, self)
        words, device = self.words(limits), resolve_device(self.device)
        examples = self.pictures(words)
        models = Models(list(map(find_entry, self.model or [DEFAULT_MODEL])), device)
        return Page(models, limits, examples, words), server

    def run(self, found: Found) -> None:
        """Load the first model, then serve until interrupted."""
        from talk2dino.app.server import serve

        models = found[0].models
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
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # files are removed then, too
        try:
            with serve(*found) as page:
                print(f"open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
                threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")

    def words(self, limits: Limits) -> str:
        """What the field of categories starts with."""
        from talk2dino.app.request import read_names
        from talk2dino.pictures.vocabularies import find_vocabulary

        if self.vocab is None:
            return self.categories
        if self.categories:
            raise ValueError("--categories and --vocab both fill the field. Give one of them.")
        lines = find_vocabulary(self.vocab).lines()
        if comma := next((line for line in lines if "," in line), None):
            raise ValueError(
                f"--vocab {self.vocab}: commas separate categories here, see {comma!r}."
            )
        text = ", ".join(lines)
        read_names(text, True, limits)
        return text

    def pictures(self, categories: str) -> list[tuple[Path, str]]:
        """Examples that the page starts with, each with its categories."""
        from talk2dino.files import find_in_checkout
        from talk2dino.pictures.images import list_images

        if self.examples is None:
            found = [(find_in_checkout(path), words) for path, words in EXAMPLES.items()]
            return [pair for pair in found if pair[0].is_file()]
        if not self.examples.is_dir():
            raise FileNotFoundError(f"--examples: there is no folder {self.examples}.")
        pictures = list_images(self.examples)[:MAX_EXAMPLES]
        if not pictures:
            raise FileNotFoundError(f"--examples: {self.examples} holds no pictures.")
        return [(picture, categories) for picture in pictures]
