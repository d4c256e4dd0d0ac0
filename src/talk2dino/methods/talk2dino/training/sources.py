"""Opens what `--train_dataset` names: stored features, or images to encode.

Images are encoded by the frozen models, once, before the first epoch, to what a stored file would
hold: in memory, or in a file without a name that goes with the process.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talk2dino.backbones.text import BertEncoder, TextEncoder, is_bert, load_text
from talk2dino.backbones.vision import VisionBackbone, load_vision, recorded_normalisation
from talk2dino.features.captions import CaptionInput, Collection
from talk2dino.features.extract import (
    Decoding,
    ImageSettings,
    batches_of,
    decoded_batches,
    image_features,
)
from talk2dino.features.keys import first_few
from talk2dino.features.store import FeatureFile, check_records, read_features
from talk2dino.features.tars import hold_features, is_tar_input, list_tars
from talk2dino.features.text import BERT_KEY, TextSettings, caption_features
from talk2dino.files import listed
from talk2dino.methods.talk2dino.config import feature_differences
from talk2dino.methods.talk2dino.recipe import FeatureConfig, Recipe
from talk2dino.methods.talk2dino.training.dataset import (
    FeatureChoice,
    StoredPairs,
    check_widths,
    forget,
)
from talk2dino.progress import Progress, silent

IMAGES_AT_ONCE, CAPTIONS_AT_ONCE = 64, 256
FEATURE_SUFFIXES = (".pth", ".pt")
Dataset = tuple[str, FeatureChoice]
"""What a flag names, and which features are used of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageOptions:
    """How to encode images and captions when a dataset holds no features."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    """The two frozen models and the image size."""
    data_dir: Path = Path("../coco/")
    """Where the image files of a COCO JSON are."""
    workers: int = 0
    """Decoding processes."""
    cache_bytes: int = 8 << 30
    """Features up to this size are kept in memory; larger ones in a file in TMPDIR."""

    def check(self, choice: FeatureChoice) -> None:
        """Raise unless the two models can give these features; loads nothing.

        Raises:
            ValueError, FileNotFoundError: unknown names or sizes, missing weights.
        """
        frozen = self.features
        ImageSettings(
            model=frozen.vision_model,
            weights=frozen.vision_weights,
            resize_dim=frozen.resize_dim,
            crop_dim=frozen.crop_dim,
            workers=self.workers,
        )
        TextSettings(frozen.text_model, frozen.text_weights)
        if is_bert(frozen.text_model) != (choice.text == BERT_KEY):
            raise ValueError(
                f"--text_features {choice.text} does not come from text_model "
                f"{frozen.text_model} of the recipe's features section"
            )

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on when images are encoded."""
        frozen = {f"features.{key}": value for key, value in asdict(self.features).items()}
        own = recorded_normalisation(self.features.vision_model)
        return {**frozen, **own, "data_dir": str(self.data_dir)}

    def made_with(self) -> dict[str, Any]:
        """What makes the features, as a feature file says it."""
        models = self.features
        own = recorded_normalisation(models.vision_model)
        return {
            "vision": {"model": models.vision_model, "weights": models.vision_weights, **own},
            "text": {"model": models.text_model, "weights": models.text_weights},
        }


class Encoders:
    """The two frozen models, loaded when first needed.

    Args:
        options: which models.
        device: where they run.
        progress: shows the encoding of images; see talk2dino.progress.
    """

    def __init__(
        self, options: ImageOptions, device: torch.device | str, progress: Progress = silent
    ) -> None:
        self.options, self.device, self.progress = options, torch.device(device), progress

    @cached_property
    def vision(self) -> VisionBackbone:
        """On the device."""
        frozen = self.options.features
        return load_vision(frozen.vision_model, frozen.vision_weights, self.device)

    @cached_property
    def text(self) -> TextEncoder | BertEncoder:
        """On the device."""
        frozen = self.options.features
        return load_text(frozen.text_model, frozen.text_weights, self.device)

    def images(self, images: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """Key -> (B, ...) features of decoded images (B, 3, S, S) uint8, on the CPU."""
        found = image_features(self.vision, images.to(self.device), keys)
        return {key: column.cpu() for key, column in found.items()}

    def captions(self, captions: list[str], keys: tuple[str, ...]) -> dict[str, Tensor]:
        """Key -> (B, ...) features of captions, on the CPU."""
        found = caption_features(self.text, captions, keys)
        return {key: column.cpu() for key, column in found.items()}


def check_source(path: str, choice: FeatureChoice, images: ImageOptions) -> None:
    """Raise unless there is something at `path` that can be read; opens nothing large.

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


def open_datasets(
    datasets: Sequence[Dataset | None], recipe: Recipe, encoders: Encoders
) -> list[StoredPairs | None]:
    """The pairs of a caption and its image's features; images are encoded when all is checked.

    Raises:
        ValueError: a file is damaged, lacks a feature (the message names the command for it) or
            does not fit the recipe; an image cannot be read.
        FileNotFoundError: images are missing.
    """
    opened = [None if given is None else _open(*given, recipe, encoders) for given in datasets]
    pairs: list[StoredPairs | None] = []
    for given, found in zip(datasets, opened, strict=True):
        if isinstance(found, tuple):
            assert given is not None
            path, choice = given
            features = _encoded(*found, choice, encoders)
            memory = encoders.options.cache_bytes
            found = StoredPairs(features, choice, path, encoders.device, memory)
        pairs.append(found)
    return pairs


def _open(
    path: str, choice: FeatureChoice, recipe: Recipe, encoders: Encoders
) -> StoredPairs | tuple[Collection, bool]:
    """Stored features; or what is to be encoded, and whether its features exceed the memory."""
    place, options = _located(path, encoders.options)
    if holds_features(place):
        if Path(place).suffix in FEATURE_SUFFIXES:
            features = read_features(place)
            check_records(features, place, need_ids=False)
        else:
            features = CaptionInput(place, options.data_dir).split(0, 1).features
        pairs = StoredPairs(features, choice, path, encoders.device, options.cache_bytes)
        columns = (features.image_features, features.caption_features)
        check_widths(*columns, choice, recipe, path)
        for difference in feature_differences(features.settings, recipe.features):
            logger.warning("%s: %s as the recipe says", path, difference)
        return pairs
    collection = CaptionInput(place, options.data_dir).split(0, 1)
    _check_all_exist(collection)
    side, records = options.features.crop_dim, collection.features
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    image = encoders.images(blank, choice.image_keys)
    caption = encoders.captions([records.annotations[0]["caption"]], choice.caption_keys)
    check_widths(image, caption, choice, recipe, path)
    needed = sum(v.nbytes for v in image.values()) * records.num_images
    needed += sum(v.nbytes for v in caption.values()) * len(records.annotations)
    if large := needed > options.cache_bytes:
        logger.warning(
            "%s: its features take %.1f GB, more than --cache_gb %g: they are in a file in %s "
            "(TMPDIR) while this runs. Extract them to keep them: dino_extraction_v2.py and "
            "text_features_extraction.py.",
            *(path, needed / 1e9, options.cache_bytes / 1e9, tempfile.gettempdir()),
        )
    return collection, large


def _encoded(
    collection: Collection, large: bool, choice: FeatureChoice, encoders: Encoders
) -> FeatureFile:
    """All features: what the extraction commands would have stored.

    Raises:
        ValueError: an image cannot be read; the message names the first few.
    """
    records, options = collection.features, encoders.options
    columns: dict[str, Tensor] = {}
    captions: dict[str, Tensor] = {}
    failures: dict[int, str] = {}
    sizes = options.features.resize_dim, options.features.crop_dim
    decoding = Decoding(encoders.vision.image_transform(*sizes), options.workers)
    batches = batches_of(IMAGES_AT_ONCE, records.num_images)
    decoded_all = decoded_batches(collection.sources, decoding, batches)
    with encoders.progress(records.num_images, 0) as bar:
        for batch, decoded in zip(batches, decoded_all, strict=True):
            failures |= decoded.failures
            if not failures:
                found = encoders.images(decoded.images, choice.image_keys)
                _put(found, columns, batch.start, records.num_images, large)
            bar.update(len(batch))
    if failures:
        named = [f"image {records.images[row]['id']}: {why}" for row, why in failures.items()]
        raise ValueError(
            f"{len(failures)} of {records.num_images} images cannot be read: {first_few(named)}. "
            "Extract the features first: dino_extraction_v2.py leaves such images out."
        )
    texts = [annotation["caption"] for annotation in records.annotations]
    for start in range(0, len(texts), CAPTIONS_AT_ONCE):
        found = encoders.captions(texts[start : start + CAPTIONS_AT_ONCE], choice.caption_keys)
        _put(found, captions, start, len(texts), large)
    made = options.made_with()
    features = FeatureFile(records.images, records.annotations, columns, captions, made)
    features.mapped_from = Path(tempfile.gettempdir()) if large else None
    return features


def _put(
    found: Mapping[str, Tensor], columns: dict[str, Tensor], start: int, count: int, large: bool
) -> None:
    """Put rows into columns of `count` rows; large ones are mapped from a file without a name."""
    for key, rows in found.items():
        if key not in columns:
            shape = (count, *rows.shape[1:])
            columns[key] = _unnamed(shape, rows) if large else rows.new_empty(shape)
        columns[key][start : start + len(rows)] = rows
        if large:
            forget(columns[key])


def _unnamed(shape: tuple[int, ...], like: Tensor) -> Tensor:
    with tempfile.TemporaryFile() as file:
        file.truncate(shape[0] * like[:1].nbytes)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
            os.posix_fallocate(file.fileno(), 0, shape[0] * like[:1].nbytes)
        return torch.from_numpy(np.memmap(file, like.numpy().dtype, "r+", shape=shape))


def _check_all_exist(collection: Collection) -> None:
    """Raise FileNotFoundError if an image is missing, before anything is encoded."""
    missing = [
        (image, source)
        for image, source in zip(collection.features.images, collection.sources, strict=True)
        if not source.exists()
    ]
    if missing:
        names = first_few(image.get("file_name", image["id"]) for image, _ in missing)
        problems = [source.problem for _, source in missing if source.problem]
        places = " and ".join(missing[0][1].places)
        why = f"the first was looked for at {places}. Is --data_dir right?"
        why = f"{problems[-1]}." if problems else why
        raise FileNotFoundError(
            f"{len(missing)} of {len(collection.sources)} images are missing: {names}; {why} "
            "dino_extraction_v2.py leaves such images out."
        )


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
