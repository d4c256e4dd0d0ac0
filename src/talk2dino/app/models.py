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
from talk2dino.methods.base import Method, PictureRules, with_sizes
from talk2dino.methods.registry import MODEL_NAMES, find_method, method_class
from talk2dino.segmenter import Segmenter
from talk2dino.sizes import Sizes
from talk2dino.toy.scene import CLASS_NAMES

GUESSED_THRESHOLD = 0.55
"""Where the slider stands while a model's own threshold is not known: most published models'."""
UNKNOWN = (
    "What “{}” was trained on, and its background threshold, can be said once it is loaded. The "
    "first request loads it."
)


UNTRAINED = (
    "“{}” has random, untrained weights: everything works as with a real model, but the colours "
    "mean nothing."
)
DRAWN_WORLD = "“{}” has seen nothing but drawn pictures of {}."


@dataclass(frozen=True)
class Facts:
    """What the page says about a model, and where its slider starts."""

    threshold: float
    """The model's own background threshold."""
    notice: str | None = None
    """What a visitor must know to read the result."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to use."""

    method: Method
    """What it is, with its options."""
    segmenter: Segmenter
    """Its weights, with any options."""
    facts: Facts
    """As its weights and their configuration tell."""

    def variant(
        self, refine: Collection[str] | None, background: bool, sizes: Sizes, device: torch.device
    ) -> tuple[Method, Segmenter]:
        """The same weights with refinements (None: the method's own), background and sizes."""
        method = self.method.for_pictures(background)
        method = with_sizes(method if refine is None else method.refined(refine), sizes)
        return method, method.load(device, self.segmenter)


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be chosen."""

    name: str
    """As shown to visitors."""
    load: Callable[[], Loaded]
    """Reads the weights; takes seconds."""
    rules: PictureRules
    """What the page offers with it."""
    facts: Facts | None = None
    """As far as they are known before it is loaded."""


def find_entry(
    name: str, device: torch.device, label: str | None = None, **settings: Any
) -> ModelEntry:
    """A model of any method; nothing is loaded or downloaded.

    Args:
        name: what `registry.find_method` takes, or `<name>=<folder, file or seeded:<n>>`.
        device: where it runs.
        label: what it is called on the page.
        settings: options of its method.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or its weights are missing or
            damaged. Whether the Hub has a repository is seen when it is loaded.
    """
    model, equals, weights = name.partition("=")
    if equals and not Path(name).exists():
        check_name("model with weights (<name>=<weights>)", model, MODEL_NAMES)
        settings["weights"] = weights
    else:
        model = name

    def find() -> tuple[Method, Facts]:
        method = find_method(model, settings).for_pictures(False)
        method.check()
        return method, Facts(method.demo.threshold, _notice(label or name, method))

    def load() -> Loaded:
        method, facts = find()
        return Loaded(method, method.load(device), facts)

    rules = None if settings else method_class(model).remote(model)
    if rules is None:
        method, facts = find()
        return ModelEntry(label or name, load, method.demo, facts)
    return ModelEntry(name, load, rules, None if rules.guessed else Facts(rules.threshold))


def _notice(name: str, method: Method) -> str | None:
    """What the colours of a model are worth, if they mean little."""
    if method.untrained:
        return UNTRAINED.format(name)
    return DRAWN_WORLD.format(name, ", ".join(CLASS_NAMES)) if method.toy else None


class Models:
    """The entries by name, and those that are loaded.

    Args:
        entries: the first one is chosen when the page opens.
        device: where they run.
    """

    def __init__(self, entries: Sequence[ModelEntry], device: torch.device) -> None:
        self.entries = {entry.name: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise ValueError(f"a model is offered twice: {', '.join(e.name for e in entries)}.")
        self.device = device
        self._loaded: dict[str, Loaded] = {}
        self._lock = threading.Lock()

    def entry(self, name: str) -> ModelEntry:
        """The entry of that name.

        Raises:
            ValueError: it is not offered.
        """
        if name not in self.entries:
            raise ValueError(f"There is no model “{name}” here, only {', '.join(self.entries)}.")
        return self.entries[name]

    def facts(self, name: str) -> Facts | None:
        """What is known of a model; what was loaded counts more than what was expected."""
        loaded = self._loaded.get(name)
        return loaded.facts if loaded is not None else self.entry(name).facts

    def notice(self, name: str) -> str | None:
        """What a visitor must know of a model by now."""
        facts = self.facts(name)
        return UNKNOWN.format(name) if facts is None else facts.notice

    def threshold(self, name: str) -> float:
        """The background threshold of a model, as far as it is known by now."""
        facts = self.facts(name)
        return GUESSED_THRESHOLD if facts is None else facts.threshold

    def is_loaded(self, name: str) -> bool:
        """Whether the next use starts at once."""
        return name in self._loaded

    @contextmanager
    def use(self, name: str) -> Iterator[Loaded]:
        """A model for one request alone: reading attention hooks into it, which is not shared.

        The queue gives one turn at a time, but a step that was stopped goes on to its end while
        the next request has its turn already.

        Raises:
            ValueError, OSError, RuntimeError: it is not offered, or cannot be loaded.
        """
        entry = self.entry(name)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = entry.load()
            yield self._loaded[name]
