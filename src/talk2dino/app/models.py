"""The models that the page offers: loaded when first used, and used by one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from talk2dino.config import check_name
from talk2dino.hub.folder import read_folder_config
from talk2dino.hub.load import load_model
from talk2dino.hub.published import PUBLISHED, TOY, TOY_THRESHOLD, default_threshold
from talk2dino.inference import BenchmarkWindows, WindowScorer
from talk2dino.registry.models import MODEL_NAMES, find_method
from talk2dino.registry.options import ModelOptions
from talk2dino.registry.talk2dino import Talk2DinoMethod
from talk2dino.seeded import PREFIX
from talk2dino.segmenter import Segmenter, Talk2DinoSegmenter, build_segmenter
from talk2dino.segmenter_config import SegmenterConfig
from talk2dino.toy.scene import CLASS_NAMES

UNTRAINED = (
    "“{}” has random, untrained weights: everything works as with a real model, but the colours "
    "mean nothing."
)
DRAWN_WORLD = "“{}” has seen nothing but drawn pictures of {}."


@dataclass(frozen=True)
class Abilities:
    """What the page offers with a model, and how it names its scores."""

    refine: bool = True
    """Whether scores can follow the edges of the picture."""
    windows: bool = False
    """Whether pictures are scored at a benchmark's size in its windows."""
    groups: bool = False
    """Whether there are pictures of its groups."""
    redraw: bool = True
    """Whether kept scores can be given another background threshold."""
    thresholds: tuple[float, float] = (0.3, 0.8)
    """Ends of the slider of background thresholds."""
    scores: str = "sigmoid(cosine)"
    """What the scores are."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be chosen."""

    name: str
    """As shown to visitors."""
    load: Callable[[], Segmenter]
    """Reads the weights; takes seconds."""
    threshold: float
    """Background threshold that the slider starts with."""
    notice: str | None = None
    """What a visitor must know to read the result."""
    abilities: Abilities = field(default_factory=Abilities)
    """What the page offers with it."""


def scorer_of(
    entry: ModelEntry, segmenter: Segmenter, refine: bool, background: bool
) -> WindowScorer:
    """What scores whole pictures, as a visitor wants them."""
    if isinstance(segmenter, Talk2DinoSegmenter):
        return segmenter.variant(pamr=refine, clean_background=background)
    return BenchmarkWindows(segmenter) if entry.abilities.windows else segmenter


def find_entry(name: str, device: torch.device) -> ModelEntry:
    """A model by its name on the command line.

    Args:
        name: what `named_entry` takes, or a model of another method of the registry: its name, or
            `<name>=<folder, file or seeded:<n>>`.
        device: where it runs.

    Raises:
        ValueError, FileNotFoundError: there are no such weights of another method.
    """
    others = [known for known in MODEL_NAMES if known not in Talk2DinoMethod.NAMES]
    model, equals, weights = name.partition("=")
    if equals and not Path(name).exists():
        check_name("model with weights (<name>=<weights>)", model, others)
    if model not in others:
        return named_entry(name, device)
    method = find_method(model, ModelOptions(weights=weights if equals else None))
    method.check()
    notice = None
    if weights.startswith(PREFIX):
        notice = UNTRAINED.format(model)
    elif model.endswith(f"_{TOY}"):
        notice = DRAWN_WORLD.format(model, ", ".join(CLASS_NAMES))
    abilities = Abilities(
        refine=False,
        windows=method.demo.windows,
        groups=method.demo.groups,
        redraw=False,  # the mean of several windows' backgrounds does not tell the scores
        thresholds=(0.0, 1.0),
        scores="class scores",
    )
    return ModelEntry(name, lambda: method.load(device), method.demo.threshold, notice, abilities)


def named_entry(name: str, device: torch.device) -> ModelEntry:
    """A model by its short name, folder, file or repository; see `Talk2DINO.from_pretrained`."""
    published = [m for short, m in PUBLISHED.items() if name in (short, m.repo)]
    threshold = published[0].background_threshold if published else 0.55
    notice = None
    if name == TOY:
        threshold, notice = TOY_THRESHOLD, UNTRAINED.format(name)
    elif not published and Path(name).is_dir() and (config := read_folder_config(Path(name))):
        threshold = config.background_threshold
        notice = _notice(name, config.segmenter)
    return ModelEntry(name, lambda: load_model(name, device).segmenter, threshold, notice)


def config_entry(name: str, config: SegmenterConfig, device: torch.device) -> ModelEntry:
    """A model by its configuration, as `demo.py --config` takes it."""
    threshold, notice = default_threshold(config.projection.dino_embed_dim), _notice(name, config)
    if config.projection_weights.startswith(PREFIX):
        threshold = TOY_THRESHOLD
    return ModelEntry(name, lambda: build_segmenter(config, device), threshold, notice)


def _notice(name: str, config: SegmenterConfig) -> str | None:
    """What the colours of a model are worth, if they mean little."""
    if config.projection_weights.startswith(PREFIX):
        return UNTRAINED.format(name)
    if config.vision_model == TOY:
        return DRAWN_WORLD.format(name, ", ".join(CLASS_NAMES))
    return None


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
        self._loaded: dict[str, Segmenter] = {}
        self._lock = threading.Lock()

    def entry(self, name: str) -> ModelEntry:
        """The entry of that name.

        Raises:
            ValueError: it is not offered.
        """
        if name not in self.entries:
            raise ValueError(f"There is no model “{name}” here, only {', '.join(self.entries)}.")
        return self.entries[name]

    def is_loaded(self, name: str) -> bool:
        """Whether the next use starts at once."""
        return name in self._loaded

    @contextmanager
    def use(self, name: str) -> Iterator[Segmenter]:
        """A model for one request alone: reading attention hooks into it, which is not shared.

        Raises:
            ValueError, OSError, RuntimeError: it is not offered, or cannot be loaded.
        """
        entry = self.entry(name)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = entry.load()
            yield self._loaded[name]
