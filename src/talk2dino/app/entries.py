"""From names on the command line to the models that the page offers; nothing is loaded here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from talk2dino.app.models import Abilities, Facts, Loaded, ModelEntry
from talk2dino.backbones.seeded import PREFIX
from talk2dino.config import check_name
from talk2dino.methods.registry import MODEL_NAMES, find_method
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.hub.fetch import FetchOptions
from talk2dino.methods.talk2dino.hub.load import FoundModel, find_model
from talk2dino.methods.talk2dino.hub.published import PUBLISHED, TOY, demo_threshold, short_name
from talk2dino.methods.talk2dino.method import Talk2DinoMethod
from talk2dino.methods.talk2dino.segmenter import build_segmenter
from talk2dino.toy.scene import CLASS_NAMES

UNTRAINED = (
    "“{}” has random, untrained weights: everything works as with a real model, but the colours "
    "mean nothing."
)
DRAWN_WORLD = "“{}” has seen nothing but drawn pictures of {}."

_OTHERS = tuple(known for known in MODEL_NAMES if known not in Talk2DinoMethod.NAMES)


def find_entry(name: str, device: torch.device) -> ModelEntry:
    """A model by its name on the command line.

    Args:
        name: what `named_entry` takes, or a model of another method of the registry: its name, or
            `<name>=<folder, file or seeded:<n>>`.
        device: where it runs.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or its weights are missing or
            damaged. Whether the Hub has a repository is seen when it is loaded.
    """
    model, equals, weights = name.partition("=")
    if equals and not Path(name).exists():
        check_name("model with weights (<name>=<weights>)", model, _OTHERS)
    if model not in _OTHERS:
        if model.startswith(_OTHERS[0].partition("_")[0]):
            check_name("model", model, _OTHERS)
        return named_entry(name, device)
    method = find_method(model, {"weights": weights} if equals else {})
    method.check()
    notice = None
    if weights.startswith(PREFIX):
        notice = UNTRAINED.format(model)
    elif model.endswith(f"_{TOY}"):
        notice = DRAWN_WORLD.format(model, ", ".join(CLASS_NAMES))
    facts = Facts(method.demo.threshold, notice)
    abilities = Abilities(
        refine=False,
        protocol=method.demo.protocol,
        groups=method.demo.groups,
        redraw=False,  # the mean of several windows' backgrounds does not tell the scores
        thresholds=(0.0, 1.0),
        scores="class scores",
    )
    return ModelEntry(name, lambda: Loaded(method.load(device), facts), facts, abilities)


def named_entry(name: str, device: torch.device, fetch: FetchOptions | None = None) -> ModelEntry:
    """A model by its short name, folder, file or repository; see `Talk2DINO.from_pretrained`.

    Raises:
        ValueError, FileNotFoundError: as `find_entry`.
    """
    fetch = fetch or FetchOptions()
    try:
        found = find_model(name, fetch=dataclasses.replace(fetch, local_files_only=True))
    except RuntimeError:  # one of the Hub that is not here yet: downloaded when it is chosen
        published = PUBLISHED.get(short_name(name) or name)
        facts = Facts(published.background_threshold) if published else None
        return ModelEntry(name, lambda: _load(name, find_model(name, fetch=fetch), device), facts)
    found.check()
    return ModelEntry(name, lambda: _load(name, found, device), _facts(name, found))


def _load(name: str, found: FoundModel, device: torch.device) -> Loaded:
    return Loaded(found.load(device).segmenter, _facts(name, found))


def _facts(name: str, found: FoundModel) -> Facts:
    return Facts(found.background_threshold, _notice(name, found.config))


def config_entry(name: str, config: SegmenterConfig, device: torch.device) -> ModelEntry:
    """A model by its configuration, as `demo.py --config` takes it."""
    facts = Facts(demo_threshold(config), _notice(name, config))
    return ModelEntry(name, lambda: Loaded(build_segmenter(config, device), facts), facts)


def _notice(name: str, config: SegmenterConfig) -> str | None:
    """What the colours of a model are worth, if they mean little."""
    if config.projection_weights.startswith(PREFIX):
        return UNTRAINED.format(name)
    if config.vision_model == TOY:
        return DRAWN_WORLD.format(name, ", ".join(CLASS_NAMES))
    return None
