"""A recipe of `configs/`: the projection, how it is trained, and on what."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from talk2dino.backbones.seeded import default_weights
from talk2dino.config import build, check_at_least, check_name, naming
from talk2dino.files import find_in_checkout, write_text
from talk2dino.methods.talk2dino.alignment import takes
from talk2dino.methods.talk2dino.losses import LOSSES
from talk2dino.methods.talk2dino.projection import SECTIONS, ProjectionConfig
from talk2dino.textfiles import read_sections, read_yaml


@dataclass(frozen=True)
class FrozenModels:
    """The two models that a projection is between."""

    vision_model: str = "dinov2_vitb14_reg"
    """Vision backbone; see talk2dino.backbones.vision."""
    vision_weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; unless given, the model's default."""
    text_model: str = "ViT-B/16"
    """Text encoder; see talk2dino.backbones.text."""
    text_weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; unless given, the model's default."""

    def frozen(self, side: str) -> tuple[str, str]:
        """Name and weights of the `vision` or `text` model, the default ones by their name."""
        name = getattr(self, f"{side}_model")
        return name, getattr(self, f"{side}_weights") or default_weights(name)


@dataclass(frozen=True)
class FeatureConfig(FrozenModels):
    """The `features:` section: what a projection is trained on."""

    resize_dim: int = 448
    """Short side of a training image, in pixels."""
    crop_dim: int = 448
    """Side of the central square that is kept, in pixels."""

    def __post_init__(self) -> None:
        check_at_least(1, resize_dim=self.resize_dim, crop_dim=self.crop_dim)


@dataclass(frozen=True)
class TrainConfig:
    """The `train:` section. The published recipe is lr 1e-4, infonce, 100 epochs of batch 128."""

    lr: float = 1e-4
    """Learning rate."""
    ltype: str = "infonce"
    """Loss: one of talk2dino.methods.talk2dino.losses.LOSSES."""
    num_epochs: int = 100
    """Passes over the captions."""
    batch_size: int = 128
    """Captions per step."""
    shuffle: bool = True
    """Draw a new order of the captions every epoch."""
    save_best_model: bool = True
    """Keep the weights of the epoch with the lowest validation loss instead of the last ones."""

    loss: Mapping[str, Any] = field(default_factory=dict)
    """The loss's own keys, which stand among the others in the file; those left out are added."""

    def __post_init__(self) -> None:
        check_name("loss (ltype)", self.ltype, LOSSES)
        check_at_least(1, num_epochs=self.num_epochs, batch_size=self.batch_size)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        own = {key: default for key, _, default in _loss_keys(self.ltype)}
        object.__setattr__(self, "loss", own | dict(self.loss))
        self.loss_of(torch.eye(2))  # the loss refuses its own wrong values

    def loss_of(self, scores: Tensor) -> Tensor:
        """The loss of (B, B) scores: the function that `ltype` names, with its settings."""
        return LOSSES[self.ltype](scores, **self.loss)

    def as_dict(self) -> dict[str, Any]:
        """Every key of the section that has an effect, flat."""
        general = {key: value for key, value in vars(self).items() if key != "loss"}
        return general | dict(self.loss)


@dataclass(frozen=True)
class Recipe:
    """One file of `configs/`: everything that defines a trained projection."""

    model: ProjectionConfig
    """The map and its alignment."""
    train: TrainConfig = field(default_factory=TrainConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    path: Path = Path()
    written: tuple[str, ...] = ()
    """Keys of the `model` section that the file has; the others are at their defaults."""


def load_recipe(path: str | Path) -> Recipe:
    """Read a file of `configs/`: sections `model` (required), `train` and `features`.

    A recipe that comes with the project is found from any folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or a section or key is unknown or has a wrong value.
    """
    path = find_in_checkout(path)
    sections = read_sections(path, SECTIONS, required="model")
    model = build(ProjectionConfig, sections["model"], path.name)
    check_used(model, sections["model"], path.name)
    return Recipe(
        model=model,
        train=_build_train(sections.get("train") or {}, path.name),
        features=build(FeatureConfig, sections.get("features") or {}, path.name),
        path=path,
        written=tuple(sections["model"]),
    )


def write_recipe(source: str | Path, changes: Mapping[str, Any], path: Path) -> Recipe:
    """Copy a recipe with other values for some keys, atomically.

    Args:
        source: the recipe.
        changes: key of `recipe_keys` -> its value.
        path: the copy.
    """
    content = dict(read_yaml(find_in_checkout(source)))
    sections = recipe_keys()
    for key, value in changes.items():
        content[sections[key]] = {**(content.get(sections[key]) or {}), key: value}
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return load_recipe(path)


def recipe_keys() -> dict[str, str]:
    """Every key of the `train:` and `model:` sections -> its section."""
    train = [entry.name for entry in dataclasses.fields(TrainConfig) if entry.name != "loss"]
    train += [key for ltype in LOSSES for key, *_ in _loss_keys(ltype)]
    model = [entry.name for entry in dataclasses.fields(ProjectionConfig)]
    return dict.fromkeys(train, "train") | dict.fromkeys(model, "model")


def present_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training as they are written now.

    Earlier ones hold the keys of the triplet loss for every loss, and InfoNCE's temperature, which
    was 0.07, for none; and no temperature of a strategy.
    """
    present = {"model.routing_temperature": 0.1, **settings}
    if present.get("train.ltype") == "infonce" and "train.temperature" not in present:
        present.pop("train.margin", None)
        present.pop("train.max_violation", None)
        present["train.temperature"] = 0.07
    return present


def check_used(config: ProjectionConfig, given: Iterable[str], source: str) -> None:
    """Raise ValueError for a key that is given but means nothing beside the others."""
    visual = config.model_class == "VisualProjectionLayer"
    unused = {
        "alpha": not takes(config.alignment_strategy, "alpha"),
        "routing_temperature": not takes(config.alignment_strategy, "temperature"),
        "hidden_embed_dim": not visual,
        "hidden_layer": visual,
    }
    for key in given:
        if unused.get(key):
            scores = key in ("alpha", "routing_temperature")
            other = "alignment_strategy" if scores else "model_class"
            raise ValueError(
                f"{source}: {key} has no effect with {other}: {getattr(config, other)}. Remove it, "
                f"or choose another {other}."
            )


def _build_train(section: Any, source: str) -> TrainConfig:
    """The `train:` section, in which the keys of the chosen loss stand among the others."""
    hints = typing.get_type_hints(TrainConfig)
    general = [(n, hint, getattr(TrainConfig, n)) for n, hint in hints.items() if n != "loss"]
    given = section if isinstance(section, Mapping) else {}
    ltype = str(given.get("ltype", TrainConfig.ltype))
    with naming(source):
        check_name("loss (ltype)", ltype, LOSSES)  # first: it decides which keys there are
    own = _loss_keys(ltype)
    for key in given:
        owners = [name for name in LOSSES if key in (entry[0] for entry in _loss_keys(name))]
        if owners and ltype not in owners:
            raise ValueError(
                f"{source}: {key} has no effect with ltype: {ltype}, it belongs to "
                f"{' and '.join(owners)}. Remove it, or choose that loss."
            )
    fields = dataclasses.make_dataclass("Section", [*general, *own])
    values = dict(vars(build(fields, section, source)))
    loss = {key: values.pop(key) for key, *_ in own}
    with naming(source):
        return TrainConfig(**values, loss=loss)


def _loss_keys(ltype: str) -> list[tuple[str, Any, Any]]:
    """Name, type and default of the parameters of a loss after its scores."""
    hints = typing.get_type_hints(LOSSES[ltype])
    _, *settings = inspect.signature(LOSSES[ltype]).parameters.values()
    return [
        (entry.name, hints.get(entry.name, type(entry.default)), entry.default)
        for entry in settings
    ]
