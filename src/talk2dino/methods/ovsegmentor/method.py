"""OVSegmentor for the evaluator and the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from talk2dino.backbones.templates import ALIASES, get_templates
from talk2dino.benchmarks.method import DemoRules
from talk2dino.benchmarks.table import BENCHMARKS, STUFF_BACKGROUND, Benchmark
from talk2dino.files import find_in_checkout, weights_identity
from talk2dino.methods.options import ModelOptions
from talk2dino.methods.ovsegmentor import classes
from talk2dino.methods.ovsegmentor.checkpoints import check_source
from talk2dino.methods.ovsegmentor.config import PRESETS
from talk2dino.methods.ovsegmentor.segmenter import OVSegmentorSegmenter, build_ovsegmentor
from talk2dino.segmenter import Segmenter

_PUBLISHED_ON = ("voc", "context", "coco_object", "coco_stuff", "ade20k")


@dataclass(frozen=True)
class OVSegmentorMethod:
    """A `talk2dino.benchmarks.method.Method`."""

    model: str
    """One of the presets; what results call it."""
    weights: str
    """A converted folder, a published file, or `seeded:<n>`."""
    template: str = "simple"
    """Name of the prompt set; see talk2dino.backbones.templates."""

    OPTIONS = frozenset({"weights", "template"})
    """The choices that mean something for it."""
    NAMES = tuple(PRESETS)
    """Its models."""

    def __post_init__(self) -> None:
        get_templates(self.template)

    @classmethod
    def from_options(cls, name: str, options: ModelOptions) -> OVSegmentorMethod:
        """The model of a name; its weights are `weights/<name>`, converted, or `<name>.pth`."""
        weights = options.weights
        if weights is None:
            folder, file = find_in_checkout(f"weights/{name}"), f"weights/{name}.pth"
            weights = str(folder if folder.is_dir() else find_in_checkout(file))
        return cls(name, weights, options.template or "simple")

    @property
    def demo(self) -> DemoRules:
        """As its published demo."""
        return DemoRules(
            threshold=classes.DEFAULT_THRESHOLD, always_background=True, windows=True, groups=True
        )

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """The five of its repository."""
        return [self.benchmark(BENCHMARKS[key]) for key in _PUBLISHED_ON]

    @property
    def threshold_meaning(self) -> str:
        """See `Method`."""
        return "products of two softmaxes over the classes; the published ones are 0.35 to 0.95"

    def benchmark(self, row: Benchmark) -> Benchmark:
        """COCO-Stuff is evaluated with the background as a class of its own."""
        return STUFF_BACKGROUND if row == BENCHMARKS["coco_stuff"] else row

    def on(self, row: Benchmark) -> OVSegmentorMethod:
        """The same everywhere."""
        return self

    def threshold(self, row: Benchmark) -> float | None:
        """The published one, or that of the published demo."""
        if not row.background:
            return None
        published = classes.background_threshold(_published_key(row))
        return classes.DEFAULT_THRESHOLD if published is None else published

    def class_names(self, row: Benchmark, names: Sequence[str]) -> list[str]:
        """The published prompt names."""
        return classes.class_names(_published_key(row), names)

    def check(self) -> None:
        """See `check_source`."""
        check_source(self.weights)

    def settings(self) -> dict[str, Any]:
        """Model, weights and template."""
        return {
            "model": self.model,
            "weights": weights_identity(self.weights),
            "template": ALIASES.get(self.template, self.template),
        }

    def text_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All of them: both encoders are in one file."""
        return dict(settings)

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> OVSegmentorSegmenter:
        """See `build_ovsegmentor`."""
        if isinstance(loaded, OVSegmentorSegmenter):
            return OVSegmentorSegmenter(loaded.model, loaded.tokenizer, self.template)
        return build_ovsegmentor(self.weights, self.model, device, self.template)


def _published_key(row: Benchmark) -> str:
    return "coco_stuff" if row == STUFF_BACKGROUND else row.key
