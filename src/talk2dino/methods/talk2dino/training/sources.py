"""Opens what `--train_dataset` names: stored features, or images to encode.

Images and captions are encoded once, before the first epoch, by what the extraction commands run:
to what a stored file would hold, in memory or in a file without a name that goes with the process.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talk2dino.backbones.text import is_bert
from talk2dino.backbones.vision import recorded_normalisation
from talk2dino.config import first_few
from talk2dino.features.captions import CaptionInput, Collection, check_exist
from talk2dino.features.chunks import Extraction, fetched_behind
from talk2dino.features.extract import ImageExtraction, ImageSettings
from talk2dino.features.keys import BERT_KEY
from talk2dino.features.store import FeatureFile, check_records, read_features
from talk2dino.features.text import TextExtraction, TextSettings
from talk2dino.files import listed
from talk2dino.methods.talk2dino.config import feature_differences
from talk2dino.methods.talk2dino.recipe import FeatureConfig, Recipe
from talk2dino.methods.talk2dino.training.dataset import (
    DENSE_TEXT,
    LAST_LAYER_TEXT,
    FeatureChoice,
    StoredPairs,
    check_widths,
    forget,
)
from talk2dino.progress import Progress, silent

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

    def extractions(self, choice: FeatureChoice, device: str) -> tuple[Extraction, Extraction]:
        """What makes these features of images and of captions; loads no model yet.

        Raises:
            ValueError, FileNotFoundError: unknown names or sizes, missing weights, or models that
                do not make the features.
        """
        frozen = self.features
        if is_bert(frozen.text_model) != (choice.text == BERT_KEY):
            raise ValueError(
                f"--text_features {choice.text} does not come from text_model "
                f"{frozen.text_model} of the recipe's features section"
            )
        images = ImageSettings(
            model=frozen.vision_model,
            weights=frozen.vision_weights,
            resize_dim=frozen.resize_dim,
            crop_dim=frozen.crop_dim,
            keys=choice.image_keys,
            device=device,
            workers=self.workers,
        )
        captions = TextSettings(
            model=frozen.text_model,
            weights=frozen.text_weights,
            dense=DENSE_TEXT in choice.caption_keys,
            second_last=LAST_LAYER_TEXT in choice.caption_keys,
            device=device,
        )
        return ImageExtraction(images), TextExtraction(captions)

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on when images are encoded."""
        frozen = {f"features.{key}": value for key, value in asdict(self.features).items()}
        own = recorded_normalisation(self.features.vision_model)
        return {**frozen, **own, "data_dir": str(self.data_dir)}


def dataset_input(path: str, data_dir: Path) -> CaptionInput:
    """What a flag names.

    Args:
        path: a feature file; a folder or pattern of tars, with our features or with images; a COCO
            captions JSON; or a folder of images with one such JSON in it.
        data_dir: where the images of a JSON are.

    Raises:
        FileNotFoundError, ValueError: nothing is there, or it is of an unknown kind.
    """
    folder = Path(path)
    if not folder.is_dir() or listed(folder, "*.tar"):
        return CaptionInput(path, data_dir)
    found = listed(folder, "*.json")
    if len(found) != 1:
        raise ValueError(
            f"{path} is a folder with neither .tar files nor exactly one captions .json "
            f"({len(found)} found)"
        )
    return CaptionInput(found[0], folder)


def open_datasets(
    datasets: Sequence[Dataset | None],
    recipe: Recipe,
    images: ImageOptions,
    device: torch.device,
    progress: Progress = silent,
) -> list[StoredPairs | None]:
    """The pairs of a caption and its image's features; images are encoded when all is there.

    Args:
        datasets: what is opened.
        recipe: which the features must fit.
        images: how images are encoded.
        device: where, and where the batches are needed.
        progress: shows the encoding of images; see talk2dino.progress.

    Raises:
        ValueError: a file is damaged, lacks a feature (the message names the command for it) or
            does not fit the recipe; an image cannot be read.
        FileNotFoundError: images are missing.
    """
    opened: list[Any] = [given and _opened(*given, recipe, images, device) for given in datasets]
    for place, (given, found) in enumerate(zip(datasets, opened, strict=True)):
        if given is not None and isinstance(found, Collection):
            path, choice = given
            features = _encoded(found, path, choice, recipe, images, device, progress)
            opened[place] = StoredPairs(features, choice, path, device, images.cache_bytes)
    return opened


def _opened(
    path: str, choice: FeatureChoice, recipe: Recipe, images: ImageOptions, device: torch.device
) -> StoredPairs | Collection:
    """Stored features, checked; or what is to be encoded, all of which is there."""
    data = dataset_input(path, images.data_dir)
    if not data.holds_features:
        collection = data.split(0, 1)
        check_exist(collection.sources, every=True)
        return collection
    if data.tars:
        data.need_images = False
        features = data.split(0, 1).features
    else:
        features = read_features(path)
        check_records(features, path, need_ids=False)
    pairs = StoredPairs(features, choice, path, device, images.cache_bytes)
    columns = (features.image_features, features.caption_features)
    check_widths(*columns, choice, recipe, path)
    for difference in feature_differences(features.settings, recipe.features):
        logger.warning("%s: %s as the recipe says", path, difference)
    return pairs


def _encoded(
    collection: Collection,
    path: str,
    choice: FeatureChoice,
    recipe: Recipe,
    images: ImageOptions,
    device: torch.device,
    progress: Progress,
) -> FeatureFile:
    """All features: what the extraction commands would have stored.

    Raises:
        ValueError: they do not fit the recipe, as the first image and the first caption show; or an
            image cannot be read.
    """
    records = collection.features
    of_images, of_captions = images.extractions(choice, str(device))
    parts = (
        (of_images, choice.image_keys, records.num_images, progress),
        (of_captions, choice.caption_keys, len(records.annotations), silent),
    )
    image, caption = (next(_rows(collection, e, keys, [range(1)])) for e, keys, *_ in parts)
    check_widths(image, caption, choice, recipe, path)
    needed = sum(row.nbytes for row in image.values()) * records.num_images
    needed += sum(row.nbytes for row in caption.values()) * len(records.annotations)
    if large := needed > images.cache_bytes:
        logger.warning(
            "%s: its features take %.1f GB, more than --cache_gb %g: they are in a file in %s "
            "(TMPDIR) while this runs. Extract them to keep them: dino_extraction_v2.py and "
            "text_features_extraction.py.",
            *(path, needed / 1e9, images.cache_bytes / 1e9, tempfile.gettempdir()),
        )
    columns = []
    for first, (extraction, keys, count, shown) in zip((image, caption), parts, strict=True):
        make = _unnamed if large else Tensor.new_empty
        held = {key: make(row, (count, *row.shape[1:])) for key, row in first.items()}
        chunks = extraction.chunks(count)
        with shown(count, 0) as bar:
            rows_of_all = _rows(collection, extraction, keys, chunks)
            for positions, found in zip(chunks, rows_of_all, strict=True):
                for key, rows in found.items():
                    held[key][positions.start : positions.stop] = rows
                    if large:
                        forget(held[key])
                bar.update(len(positions))
        columns.append(held)
    recorded = {e.settings.section: e.settings.recorded() for e in (of_images, of_captions)}
    of_all = (columns[0], columns[1], recorded)
    features = FeatureFile(records.images, records.annotations, *of_all)
    features.mapped_from = Path(tempfile.gettempdir()) if large else None
    return features


def _rows(
    collection: Collection, extraction: Extraction, keys: Sequence[str], chunks: Sequence[range]
) -> Iterator[dict[str, Tensor]]:
    """The features of chunks of images or captions, key -> (n, ...) in main memory."""
    for found in fetched_behind(extraction.results(collection, chunks), extraction.device):
        if found.failures:
            raise ValueError(
                f"{first_few(found.failures.values())}; extract the features first: "
                "dino_extraction_v2.py leaves such images out."
            )
        yield {key: found.columns[key] for key in keys}


def _unnamed(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor, mapped from a file without a name, which goes with the process."""
    with tempfile.TemporaryFile() as file:
        file.truncate(shape[0] * like[:1].nbytes)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
            os.posix_fallocate(file.fileno(), 0, shape[0] * like[:1].nbytes)
        return torch.from_numpy(np.memmap(file, like.numpy().dtype, "r+", shape=shape))
