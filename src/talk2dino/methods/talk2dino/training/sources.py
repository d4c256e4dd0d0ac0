"""Opens what `--train_dataset` names: stored features, or images to encode."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from talk2dino.features.captions import CaptionInput
from talk2dino.features.store import check_records, read_features
from talk2dino.features.tars import hold_features, is_tar_input, list_tars
from talk2dino.files import listed
from talk2dino.methods.talk2dino.provenance import feature_differences
from talk2dino.methods.talk2dino.sections import FeatureConfig
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, Pairs, StoredPairs
from talk2dino.methods.talk2dino.training.encoding import EncodedPairs, Encoders, ImageOptions

FEATURE_SUFFIXES = (".pth", ".pt")

logger = logging.getLogger(__name__)


def check_source(path: str, choice: FeatureChoice, images: ImageOptions) -> None:
    """Raise unless there is something at `path` that `open_pairs` can read; opens nothing large.

    Args:
        path: a feature file; a folder or pattern of tars, with our features or with images; a COCO
            captions JSON; or a folder of images with one such JSON in it.

    Raises:
        FileNotFoundError, ValueError: nothing there, of an unknown kind, or images that the models
            of `images` cannot encode.
    """
    place, images = _located(path, images)
    CaptionInput(place, images.data_dir)  # finds the file or the tars
    if not holds_features(place):
        images.check(choice)


def open_pairs(path: str, choice: FeatureChoice, encoders: Encoders) -> Pairs:
    """The pairs of a caption and its image's features at `path`.

    Raises:
        ValueError: the file is damaged, or lacks a feature; the message names the command for it.
        FileNotFoundError: images are missing.
    """
    place, options = _located(path, encoders.options)
    if Path(place).suffix in FEATURE_SUFFIXES:
        stored = read_features(place)
        check_records(stored, place)
        return StoredPairs(stored, choice, path, encoders.device, options.cache_bytes)
    collection = CaptionInput(place, options.data_dir).split(0, 1)
    if holds_features(place):
        return StoredPairs(collection.features, choice, path, encoders.device)
    return EncodedPairs(collection, choice, encoders)


def in_memory(pairs: Pairs, path: str) -> Pairs:
    """The same pairs, encoded now and kept if their features fit; stored ones as they are.

    Raises:
        ValueError: an image cannot be read.
    """
    if not isinstance(pairs, EncodedPairs):
        return pairs
    needed, limit = pairs.bytes_of_all(), pairs.encoders.options.cache_bytes
    if needed <= limit:
        return StoredPairs(pairs.encode_all(), pairs.choice, path, pairs.encoders.device)
    logger.warning(
        "%s: its features would take %.1f GB of memory, more than --cache_gb %g: they are encoded "
        "again in every epoch. Extracting them once to a file is much faster.",
        path,
        needed / 1e9,
        limit / 1e9,
    )
    return pairs


def warn_of_other_models(pairs: Pairs, recipe: FeatureConfig, path: str) -> None:
    """Warn where stored features say that they were made in another way than the recipe says."""
    if not isinstance(pairs, StoredPairs):
        return
    for what, found, wanted in feature_differences(pairs.features.settings, recipe):
        logger.warning("%s: %s is %s, the recipe says %s", path, what, found, wanted)


def holds_features(path: str) -> bool:
    """Whether a dataset holds features, rather than images."""
    if Path(path).is_dir() and not listed(path, "*.tar"):
        return False
    if is_tar_input(path):
        return hold_features(list_tars(path))
    return Path(path).suffix in FEATURE_SUFFIXES


def _located(path: str, options: ImageOptions) -> tuple[str, ImageOptions]:
    """The dataset itself: a folder of images stands for the only JSON in it."""
    folder = Path(path)
    if not folder.is_dir() or listed(folder, "*.tar"):
        return path, options
    found = listed(folder, "*.json")
    if len(found) != 1:
        raise ValueError(
            f"{path} is a folder with neither .tar files nor exactly one captions .json "
            f"({len(found)} found)"
        )
    return str(found[0]), replace(options, data_dir=folder)
