"""Talk2DINO for the evaluator and the demo."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino import text, vision
from talk2dino.benchmarks.method import DemoRules
from talk2dino.benchmarks.table import BENCHMARKS, MODELS, Benchmark
from talk2dino.files import find_in_checkout
from talk2dino.registry.options import ModelOptions, weights_identity
from talk2dino.segmenter import Segmenter, Talk2DinoSegmenter, build_segmenter
from talk2dino.segmenter_config import SegmenterConfig, read_segmenter_config
from talk2dino.templates import ALIASES

_LARGE = 1024  # width of ViT-L, whose published threshold is lower
_NOT_OF_TEXT = (
    *("vision_model", "vision_weights", "input_size", "precision"),
    *("pamr", "clean_background"),
)


@dataclass(frozen=True)
class Talk2DinoMethod:
    """A `talk2dino.benchmarks.method.Method`."""

    model: str
    """What results call it."""
    config: SegmenterConfig
    """Models and options of inference."""

    OPTIONS = frozenset(entry.name for entry in dataclasses.fields(ModelOptions))
    """The choices that mean something for it."""
    NAMES = tuple(MODELS)
    """Its models."""

    @classmethod
    def from_options(cls, name: str, options: ModelOptions) -> Talk2DinoMethod:
        """The model of a name, or of a YAML file: a recipe or an evaluation's.

        Raises:
            FileNotFoundError, ValueError: see `read_segmenter_config`.
        """
        path = Path(name)
        if name in MODELS:
            path = find_in_checkout(MODELS[name])
        else:
            recipes = {find_in_checkout(recipe).resolve(): key for key, recipe in MODELS.items()}
            name = recipes.get(path.resolve(), path.stem)
        changes = {
            "projection_weights" if key == "weights" else key: getattr(options, key)
            for key in options.given()
        }
        return cls(name, read_segmenter_config(path, **changes))

    @property
    def demo(self) -> DemoRules:
        """As its published demo."""
        return DemoRules(threshold=0.55, always_background=False, windows=False, groups=False)

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """All eight."""
        return list(BENCHMARKS.values())

    @property
    def threshold_meaning(self) -> str:
        """See `Method`."""
        return "sigmoid(cosine), which is 0.27 to 0.73; 0.55 is cosine 0.20"

    def benchmark(self, row: Benchmark) -> Benchmark:
        """The row itself."""
        return row

    def on(self, row: Benchmark) -> Talk2DinoMethod:
        """With background cleaning where it was published so."""
        config = dataclasses.replace(self.config, clean_background=row.clean_background)
        return dataclasses.replace(self, config=config)

    def threshold(self, row: Benchmark) -> float | None:
        """The published one."""
        return row.threshold(large=self.config.projection.dino_embed_dim >= _LARGE)

    def class_names(self, row: Benchmark, names: Sequence[str]) -> list[str]:
        """MMSegmentation's, as they are."""
        return list(names)

    def check(self) -> None:
        """See `SegmenterConfig.check`."""
        self.config.check()

    def settings(self) -> dict[str, Any]:
        """The configuration as plain data."""
        config = self.config
        settings = dataclasses.asdict(config)
        for side, weights in (
            ("projection", config.projection_weights),
            ("vision", config.vision_weights or vision.default_weights(config.vision_model)),
            ("text", config.text_weights or text.default_weights(config.text_model)),
        ):
            settings[f"{side}_weights"] = weights_identity(weights)
        settings["projection"].pop("starting_checkpoint")
        settings["template"] = ALIASES.get(config.template, config.template)
        if config.precision == "fp32":  # counts keep their names from before there was a choice
            settings.pop("precision")
        content: dict[str, Any] = json.loads(json.dumps(settings))
        return content

    def text_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All that does not concern images alone."""
        return {key: value for key, value in settings.items() if key not in _NOT_OF_TEXT}

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> Talk2DinoSegmenter:
        """See `build_segmenter`."""
        if not isinstance(loaded, Talk2DinoSegmenter):
            return build_segmenter(self.config, device)
        config = self.config
        return loaded.variant(
            pamr=config.pamr,
            clean_background=config.clean_background,
            template=config.template,
            precision=config.precision,
        )
