"""Talk2DINO for the evaluator and the demo."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino.backbones import text, vision
from talk2dino.backbones.templates import ALIASES
from talk2dino.benchmarks.method import DemoRules
from talk2dino.benchmarks.table import BENCHMARKS, MODELS, Benchmark
from talk2dino.files import find_in_checkout, weights_identity
from talk2dino.methods.options import ModelOptions
from talk2dino.methods.talk2dino.config import SegmenterConfig, read_segmenter_config
from talk2dino.methods.talk2dino.hub.load import (
    FoundModel,
    check_segmenter,
    find_model,
    is_whole_model,
    load_segmenter,
)
from talk2dino.methods.talk2dino.hub.published import demo_threshold, short_name
from talk2dino.segmenter import Segmenter, Talk2DinoSegmenter

RECIPE_SUFFIXES = (".yaml", ".yml")
BACKBONE_WEIGHTS = ("vision_weights", "text_weights")
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

    whole: Path | None = None
    """The file with the weights of its models; None where `config` names them."""
    background_threshold: float | None = None
    """Of pictures that belong to no benchmark; None for the published one."""

    OPTIONS = frozenset(entry.name for entry in dataclasses.fields(ModelOptions))
    """The choices that mean something for it."""
    NAMES = tuple(MODELS)
    """Its models."""

    @classmethod
    def from_options(cls, name: str, options: ModelOptions) -> Talk2DinoMethod:
        """A model by its name, its YAML file (a recipe or an evaluation's), or as a whole.

        A projection of that name in weights/ comes first, with the recipe's backbones. Without it,
        and for folders, files and repositories, the model is what `Talk2DINO.from_pretrained`
        takes it for. A folder as the weights of a name replaces the whole model.

        Raises:
            FileNotFoundError, ValueError: see `read_segmenter_config` and `hub.load.find_model`.
            RuntimeError: a model of the Hub could not be downloaded.
        """
        changes = {key: getattr(options, key) for key in options.given() if key != "weights"}
        if name in MODELS or Path(name).suffix.lower() in RECIPE_SUFFIXES:
            path, label = _recipe(name)
            if options.weights is not None and is_whole_model(options.weights):
                return cls._found(find_model(options.weights), label, changes)
            if options.weights is not None:
                changes["projection_weights"] = options.weights
            config = read_segmenter_config(path, **changes)
            chosen = {"weights", *BACKBONE_WEIGHTS} & set(options.given())
            if name in MODELS and not chosen and not Path(config.projection_weights).is_file():
                return cls._found(find_model(name), name, changes)
            return cls(label, config)
        if options.weights is not None:
            raise ValueError(
                f"{name} has its own weights, so --weights {options.weights} has no place. "
                "Leave one of them out."
            )
        label = Path(name).resolve().stem if Path(name).is_file() else Path(name).resolve().name
        return cls._found(find_model(name), short_name(name) or label, changes)

    @classmethod
    def _found(cls, found: FoundModel, label: str, changes: Mapping[str, Any]) -> Talk2DinoMethod:
        replaced = sorted(set(BACKBONE_WEIGHTS) & set(changes))
        if found.whole is not None and replaced:
            raise ValueError(
                f"{found.origin} holds the weights of its backbones. Leave out --{replaced[0]}."
            )
        config = dataclasses.replace(found.config, **changes)
        return cls(label, config, found.whole, found.background_threshold)

    @property
    def demo(self) -> DemoRules:
        """As its published demo."""
        threshold = self.background_threshold
        if threshold is None:
            threshold = demo_threshold(self.config)
        return DemoRules(threshold, always_background=False, windows=False, groups=False)

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
        """See `hub.load.FoundModel.check`."""
        check_segmenter(self.config, self.whole)

    def settings(self) -> dict[str, Any]:
        """The configuration as plain data."""
        config = self.config
        settings = dataclasses.asdict(config)
        for side, weights in (
            ("projection", config.projection_weights),
            ("vision", config.vision_weights or vision.default_weights(config.vision_model)),
            ("text", config.text_weights or text.default_weights(config.text_model)),
        ):
            if self.whole is not None and (
                side == "projection" or Path(weights) in (self.whole, self.whole.parent)
            ):
                weights = str(self.whole)  # not the folder: a model card decides no scores
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
        """See `hub.load.load_segmenter`."""
        if not isinstance(loaded, Talk2DinoSegmenter):
            return load_segmenter(self.config, self.whole, device)
        config = self.config
        return loaded.variant(
            pamr=config.pamr,
            clean_background=config.clean_background,
            template=config.template,
            precision=config.precision,
        )


def _recipe(name: str) -> tuple[Path, str]:
    """The YAML file of a name, and the name of a YAML file."""
    if name in MODELS:
        return find_in_checkout(MODELS[name]), name
    path = Path(name)
    names = {find_in_checkout(recipe).resolve(): key for key, recipe in MODELS.items()}
    return path, names.get(path.resolve(), path.stem)
