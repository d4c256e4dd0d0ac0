"""The models that the page offers: loaded when first used, and used by one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from talk2dino.segmenter import Segmenter
from talk2dino.sizes import WHOLE, Protocol

GUESSED_THRESHOLD = 0.55
"""Where the slider stands while a model's own threshold is not known: most published models'."""
UNKNOWN = (
    "What “{}” was trained on, and its background threshold, can be said once it is loaded. The "
    "first request loads it."
)


@dataclass(frozen=True)
class Abilities:
    """What the page offers with a model, and how it names its scores."""

    refine: bool = True
    """Whether scores can follow the edges of the picture."""
    protocol: Protocol = WHOLE
    """Size and windows of pictures."""
    groups: bool = False
    """Whether there are pictures of its groups."""
    redraw: bool = True
    """Whether kept scores can be given another background threshold."""
    thresholds: tuple[float, float] = (0.3, 0.8)
    """Ends of the slider of background thresholds."""
    scores: str = "sigmoid(cosine)"
    """What the scores are."""


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

    segmenter: Segmenter
    """The model."""
    facts: Facts
    """As its weights and their configuration tell."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be chosen."""

    name: str
    """As shown to visitors."""
    load: Callable[[], Loaded]
    """Reads the weights; takes seconds."""
    facts: Facts | None = None
    """As far as they are known before it is loaded."""
    abilities: Abilities = field(default_factory=Abilities)
    """What the page offers with it."""


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
    def use(self, name: str) -> Iterator[Segmenter]:
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
            yield self._loaded[name].segmenter
