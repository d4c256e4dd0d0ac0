"""The models that the page offers: loaded when first used, and used by one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino.config import check_name
from talk2dino.methods.base import Method, PictureRules
from talk2dino.methods.registry import MODEL_NAMES, find_method, method_class
from talk2dino.segmenter import Segmenter
from talk2dino.toy.scene import CLASS_NAMES

UNTRAINED = (
    "“{}” has random, untrained weights: everything works as with a real model, but the colours "
    "mean nothing."
)
DRAWN_WORLD = "“{}” has seen nothing but drawn pictures of {}."


@dataclass(eq=False)
class Entry:
    """A model that can be chosen."""

    name: str
    """As shown to visitors."""
    find: Callable[[], Method]
    """What it is, with its options; a published model is downloaded for that."""
    rules: PictureRules
    """What the page offers with it."""
    notice: str = ""
    """What a visitor must know to read the result."""
    method: Method | None = None
    """What `find` has found."""
    segmenter: Segmenter | None = None
    """Its weights, once they are loaded."""

    def variant(
        self, refine: Collection[str] | None, background: bool, device: torch.device
    ) -> tuple[Method, Segmenter]:
        """The loaded weights with refinements (None: the method's own), and for a background."""
        assert self.method is not None
        method = self.method.for_pictures(background)
        method = method if refine is None else method.refined(refine)
        return method, method.load(device, self.segmenter)


def find_entry(name: str, label: str | None = None, **settings: Any) -> Entry:
    """A model of any method; a published one is not downloaded yet.

    Args:
        name: what `registry.find_method` takes, or `<name or recipe>=<folder, file or seeded:<n>>`.
        label: what it is called on the page.
        settings: options of its method.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: there is no such model, or its weights are
            missing or damaged.
    """
    model, equals, weights = name.partition("=")
    if equals and not Path(name).exists():
        if not Path(model).is_file():  # a recipe
            check_name("model with weights (<name>=<weights>)", model, MODEL_NAMES)
        settings["weights"] = weights
    else:
        model = name
    label = label or name

    def find() -> Method:
        method = find_method(model, settings).for_pictures(False)
        method.check()
        return method

    rules = None if settings else method_class(model).remote(model)
    if rules is not None:
        return Entry(label, find, rules)
    method = find()
    notice = UNTRAINED.format(label) if method.untrained else ""
    if method.toy and not notice:
        notice = DRAWN_WORLD.format(label, ", ".join(CLASS_NAMES))
    return Entry(label, find, method.demo, notice, method)


class Models:
    """The entries by name, and the device on which they run.

    Args:
        entries: the first one is chosen when the page opens.
        device: of all.
    """

    def __init__(self, entries: Sequence[Entry], device: torch.device) -> None:
        self.entries = {entry.name: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise ValueError(f"a model is offered twice: {', '.join(e.name for e in entries)}.")
        self.device = device
        self._lock = threading.Lock()

    def entry(self, name: str) -> Entry:
        """The entry of that name; ValueError if it is not offered."""
        if name not in self.entries:
            raise ValueError(f"There is no model “{name}” here, only {', '.join(self.entries)}.")
        return self.entries[name]

    @contextmanager
    def use(self, name: str) -> Iterator[Entry]:
        """A loaded model for one request alone: reading attention hooks into it.

        The queue gives one turn at a time, but a step that was stopped goes on to its end while
        the next request has its turn already.

        Raises:
            ValueError, OSError, RuntimeError: it is not offered, or cannot be loaded.
        """
        entry = self.entry(name)
        with self._lock:
            if entry.segmenter is None:
                entry.method = entry.method or entry.find()
                entry.segmenter = entry.method.load(self.device)
            yield entry
