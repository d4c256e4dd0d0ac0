"""Talk2DINO as a method: its models, options, thresholds and published numbers."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino.backbones import vision
from talk2dino.backbones.templates import ALIASES, TEMPLATES  # noqa: F401  for the help
from talk2dino.benchmarks.table import Benchmark
from talk2dino.devices import check_compiler, compile_blocks
from talk2dino.files import content_digest, find_in_checkout
from talk2dino.methods.base import Method, MethodOptions, PictureRules, Published, published
from talk2dino.methods.talk2dino.alignment import takes
from talk2dino.methods.talk2dino.config import (
    SegmenterConfig,
    feature_differences,
    read_segmenter_config,
)
from talk2dino.methods.talk2dino.hub.find import (
    FILE_SUFFIXES,
    MODELS,
    PUBLISHED,
    TOY,
    FoundModel,
    default_threshold,
    demo_threshold,
    find_model,
    is_repository,
    short_name,
)
from talk2dino.methods.talk2dino.segmenter import Talk2DinoSegmenter, build_segmenter
from talk2dino.refine.refinement import REFINEMENTS, RefinementOptions
from talk2dino.segmenter import Segmenter
from talk2dino.training.job import read_summary

logger = logging.getLogger(__name__)

_PAPER = "Talk2DINO's paper"
_PUBLISHED = {
    "vitb": published(_PAPER, 61.5, 35.1, 41.0, 87.1, 39.8, 28.1, 36.6, 21.1),
    "vitb_pamr": published(_PAPER, 65.8, 37.7, 45.1, 88.5, 42.4, 30.2, 38.1, 22.5),
    "vitl": published(_PAPER, 60.1, 34.2, 37.6, 87.1, 39.1, 27.0, 35.8, 21.1),
    "vitl_pamr": published(_PAPER, 66.1, 37.3, 42.3, 89.8, 42.7, 29.6, 38.4, 22.9),
}
"""The authors' numbers; DINOv3 has none."""
RECIPE_SUFFIXES = (".yaml", ".yml")
BACKBONE_WEIGHTS = ("vision_weights", "text_weights")
_RULES = PictureRules(
    0.55, refines=("pamr",), redraws=True, thresholds=(0.3, 0.8), scores="sigmoid(cosine)"
)
"""For a user's pictures."""
_NOT_OF_TEXT = (
    *("vision_model", "vision_weights", "input_size", "precision", "mean", "std"),
    *("compile", "clean_background", "propagation_graph", *REFINEMENTS),
)


@dataclass(frozen=True)
class Talk2DinoOptions(RefinementOptions, MethodOptions):
    """Choices beside a model's name."""

    weights: str | None = None
    """Projection, or a whole model: a file, a folder or seeded:<n>."""
    vision_weights: str | None = None
    """Of DINO: pretrained, a file, or seeded:<n>."""
    text_weights: str | None = None
    """Of CLIP: pretrained, a file, or seeded:<n>."""
    template: str | None = None
    """Prompt set: {TEMPLATES}."""
    clean_background: bool | None = None
    """Raise scores where attention agrees with a class."""
    precision: str = "fp32"
    """Of the vision backbone: fp32, tf32, bf16 or fp16."""
    compile: bool = False
    """Compile the vision backbone: a minute at the start, faster afterwards."""


@dataclass(frozen=True)
class Talk2DinoMethod(Method):
    """Talk2DINO (ICCV 2025)."""

    config: SegmenterConfig
    """Models and options of inference."""
    background_threshold: float
    """Of pictures that belong to no benchmark."""

    PUBLISHED = _PUBLISHED
    Options = Talk2DinoOptions
    threshold_meaning = "sigmoid(cosine), which is 0.27 to 0.73; 0.55 is cosine 0.20"

    @classmethod
    def from_options(cls, name: str, options: MethodOptions) -> Talk2DinoMethod:
        """A model by its name, its YAML file (a recipe or an evaluation's), or as a whole.

        A projection of that name in weights/ comes first, with the recipe's backbones. Without it,
        and for folders, files and repositories, the model is what `Talk2DINO.from_pretrained`
        takes it for. A whole model as the weights of a name replaces it.

        Raises:
            FileNotFoundError, ValueError: see `read_segmenter_config` and `hub.find.find_model`.
            RuntimeError: a model of the Hub could not be downloaded.
        """
        changes = options.given()
        changes.pop("compile", None)  # it is how a model runs, not what it is
        weights = changes.pop("weights", None)
        if name in MODELS or Path(name).suffix.lower() in RECIPE_SUFFIXES:
            path = find_in_checkout(MODELS.get(name, name))
            ours = {find_in_checkout(recipe).resolve(): short for short, recipe in MODELS.items()}
            label = ours.get(path.resolve(), path.stem)
            if weights is not None and Path(weights).exists():
                found = find_model(weights, None if Path(weights).is_dir() else path)
            else:
                own = {} if weights is None else {"projection_weights": weights}
                config = read_segmenter_config(path, **own)
                found = FoundModel(config, demo_threshold(config), label)
                chosen = {"weights", *BACKBONE_WEIGHTS} & options.given().keys()
                if name in MODELS and not (chosen or Path(config.projection_weights).is_file()):
                    found = find_model(name)
        elif weights is None:
            found, path = find_model(name), Path(name).resolve()
            label = short_name(name) or (path.stem if path.is_file() else path.name)
        else:
            raise ValueError(
                f"{name} has its own weights, so --weights {weights} has no place. "
                "Leave one of them out."
            )
        config = dataclasses.replace(found.config, **changes)
        return cls(label, options, config, found.background_threshold)

    @classmethod
    def claims(cls, place: str) -> bool:
        """Paths, recipes and repositories are ours, unless another method knows them."""
        path = Path(place)
        suffixes = (*RECIPE_SUFFIXES, *FILE_SUFFIXES)
        return path.exists() or path.suffix.lower() in suffixes or is_repository(place)

    @property
    def demo(self) -> PictureRules:
        on = tuple(name for name in REFINEMENTS if getattr(self.config, name))
        return dataclasses.replace(_RULES, threshold=self.background_threshold, refines=on)

    @classmethod
    def remote(cls, name: str) -> PictureRules | None:
        published = PUBLISHED.get(short_name(name) or name)
        if published is None:
            return None
        try:
            find_model(name, local_files_only=True)
        except RuntimeError:
            return dataclasses.replace(_RULES, threshold=demo_threshold(published.config("")))
        return None

    @property
    def weights(self) -> str:
        return self.config.projection_weights

    @property
    def toy(self) -> bool:
        return self.config.vision_model == TOY

    def on(self, row: Benchmark) -> Talk2DinoMethod:
        """With background cleaning where it was published so, unless it was chosen otherwise."""
        return self._unless_given(clean_background=row.clean_background)

    def for_pictures(self, background: bool) -> Talk2DinoMethod:
        """Refined, and cleaned where there is a background, unless it was chosen otherwise."""
        return self._unless_given(pamr=True, clean_background=background)

    def refined(self, names: Collection[str]) -> Talk2DinoMethod:
        return self._with(**{name: name in names for name in REFINEMENTS})

    @property
    def patch_size(self) -> int:
        return vision.patch_size(self.config.vision_model)

    def for_windows(self, side: int) -> Talk2DinoMethod:
        """With the nearest input of whole patches, to which every window is resized."""
        nearest = max(round(side / self.patch_size), 1) * self.patch_size
        if nearest != side:
            text = "%s: windows of %d pixels are resized to %d, which are whole patches of %d"
            logger.warning(text, self.model, side, nearest, self.patch_size)
        return self._with(input_size=nearest)

    def threshold(self, row: Benchmark) -> float | None:
        return default_threshold(self.config.projection.dino_embed_dim) if row.background else None

    @property
    def refines(self) -> bool:
        return self.config.pamr

    @property
    def published(self) -> Published:
        """Of its authors; nothing with refinements of ours."""
        return Published({}) if self.config.recorded() else super().published

    def check(self) -> None:
        self.config.check()

    def settings(self) -> dict[str, Any]:
        config = self.config
        settings = dataclasses.asdict(config)
        settings["projection_weights"] = content_digest(config.whole or config.projection_weights)
        for side in ("vision", "text"):
            settings[f"{side}_weights"] = content_digest(config.frozen(side)[1])
        settings["projection"].pop("starting_checkpoint")
        if not takes(config.projection.alignment_strategy, "temperature"):
            settings["projection"].pop("routing_temperature")
        # What is off is not named, so that counts keep their names from before there was a choice.
        beyond = config.recorded()
        for name in {*REFINEMENTS, "propagation_graph"} - {"pamr", *beyond}:
            settings.pop(name)
        settings["template"] = ALIASES.get(config.template, config.template)
        if config.precision == "fp32":
            settings.pop("precision")
        settings |= {"compile": True} if self.options.given().get("compile") else {}
        settings |= vision.recorded_normalisation(config.vision_model)
        content: dict[str, Any] = json.loads(json.dumps(settings))
        return content

    def text_settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings().items() if key not in _NOT_OF_TEXT}

    def describe(self) -> tuple[str, list[str]]:
        """Its backbones and its projection; notes on models it was not trained with."""
        config = self.config
        source = (
            f"from {config.whole}" if config.whole else f"projection {config.projection_weights}"
        )
        untrained = "this projection is untrained; the colours will mean nothing"
        summary = read_summary(Path(config.projection_weights).with_suffix(".json"))
        others = feature_differences(summary.get("trained_on", {}), config)
        notes = [untrained] if self.untrained else []
        notes += [f"when the projection was trained, {other} as now" for other in others]
        return f"{config.vision_model} and {config.text_model}, {source}", notes

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> Talk2DinoSegmenter:
        if not isinstance(loaded, Talk2DinoSegmenter):
            if compiled := self.options.given().get("compile"):
                check_compiler(device)
            segmenter = build_segmenter(self.config, device)
            if compiled:
                compile_blocks(segmenter.vision.model.blocks)
            return segmenter
        options = dict(vars(self.config))
        del options["text_model"]  # the loaded one has its activation in its name
        return loaded.variant(**options)

    def _unless_given(self, **changes: Any) -> Talk2DinoMethod:
        chosen = self.options.given()
        return self._with(**{key: chosen.get(key, value) for key, value in changes.items()})

    def _with(self, **changes: Any) -> Talk2DinoMethod:
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))


def name_of_recipe(stem: str) -> str | None:
    """The model of a file of `configs/`, whose name is given without its suffix."""
    return next((name for name, path in MODELS.items() if Path(path).stem == stem), None)
