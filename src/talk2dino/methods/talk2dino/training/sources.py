"""Opens what `--train_dataset` names: stored features, or images to encode.

Images are encoded by the frozen models to what a stored file would hold. What fits in memory is
encoded once, before the first epoch; otherwise every batch is encoded when it comes, every epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.text import BertEncoder, TextEncoder, is_bert, load_text
from talk2dino.backbones.vision import VisionBackbone, load_vision, recorded_normalisation
from talk2dino.features.captions import CaptionInput, Collection
from talk2dino.features.decode import DecodedBatch, Decoding, batches_of, decoded_batches
from talk2dino.features.extract import ImageSettings, image_features
from talk2dino.features.keys import first_few
from talk2dino.features.store import FeatureFile, check_records, read_features
from talk2dino.features.tars import hold_features, is_tar_input, list_tars
from talk2dino.features.text import BERT_KEY, TextSettings, caption_features
from talk2dino.files import listed
from talk2dino.methods.talk2dino.config import feature_differences
from talk2dino.methods.talk2dino.recipe import FeatureConfig
from talk2dino.methods.talk2dino.training.dataset import (
    Batch,
    FeatureChoice,
    Pairs,
    StoredPairs,
    make_batch,
)
from talk2dino.progress import Progress, silent

IMAGES_AT_ONCE, CAPTIONS_AT_ONCE = 64, 256


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
    """Features up to this size are kept in memory."""

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

    def decoding(self) -> Decoding:
        """How images are read for the backbone."""
        frozen = self.options.features
        transform = self.vision.image_transform(frozen.resize_dim, frozen.crop_dim)
        return Decoding(transform, self.options.workers)

    def images(self, decoded: DecodedBatch, keys: Sequence[str]) -> dict[str, Tensor]:
        """Key -> (B, ...) features of decoded images."""
        return _trainable(image_features(self.vision, decoded.images.to(self.device), keys))

    def captions(self, captions: list[str], keys: tuple[str, ...]) -> dict[str, Tensor]:
        """Key -> (B, ...) features of captions."""
        return _trainable(caption_features(self.text, captions, keys))


class EncodedPairs(Pairs):
    """Pairs whose images and captions are encoded whenever a batch needs them."""

    def __init__(self, collection: Collection, choice: FeatureChoice, encoders: Encoders) -> None:
        super().__init__(collection.features, choice)
        self.collection, self.encoders = collection, encoders
        check_all_exist(collection)

    def bytes_of_all(self) -> int:
        """Size of the features of all images and captions, judged by the first pair."""
        images, captions = (
            {k: v.nbytes for k, v in part.items()} for part in self.columns_of_some()
        )
        return sum(images.values()) * self.num_images + sum(captions.values()) * len(self)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch for each (B,) tensor of caption numbers; all but the last of one size."""
        if not indices:
            return
        rows = self.caption_rows[torch.cat(list(indices))].tolist()
        sources = [self.collection.sources[row] for row in rows]
        batches = batches_of(len(indices[0]), len(rows))
        found = decoded_batches(sources, self.encoders.decoding(), batches)
        for index, decoded in zip(indices, found, strict=True):
            for position, problem in decoded.failures.items():
                image = self.features.images[rows[position]]
                raise RuntimeError(f"image {image['id']}: {problem}")
            captions = [self.features.annotations[i]["caption"] for i in index.tolist()]
            yield make_batch(
                self.choice,
                self.encoders.images(decoded, self.choice.image_keys),
                self.encoders.captions(captions, self.choice.caption_keys),
            )

    def encode_all(self) -> FeatureFile:
        """All features at once, in memory: what the extraction commands would have stored.

        Raises:
            ValueError: an image cannot be read; the message names the first few.
        """
        features = self.features
        images = self._encode_images()
        texts = [annotation["caption"] for annotation in features.annotations]
        parts = [
            self.encoders.captions(texts[i : i + CAPTIONS_AT_ONCE], self.choice.caption_keys)
            for i in range(0, len(texts), CAPTIONS_AT_ONCE)
        ]
        captions = {k: torch.cat([p[k].cpu() for p in parts]) for k in self.choice.caption_keys}
        return FeatureFile(features.images, features.annotations, images, captions)

    def _encode_images(self) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        failures: dict[int, str] = {}
        batches = batches_of(IMAGES_AT_ONCE, self.num_images)
        all_decoded = decoded_batches(self.collection.sources, self.encoders.decoding(), batches)
        with self.encoders.progress(self.num_images, 0) as bar:
            for batch, decoded in zip(batches, all_decoded, strict=True):
                failures |= decoded.failures
                if not failures:
                    found = self.encoders.images(decoded, self.choice.image_keys)
                    for key, rows in found.items():
                        shape = (self.num_images, *rows.shape[1:])
                        column = columns.setdefault(key, torch.empty(shape))
                        column[batch.start : batch.stop] = rows.cpu()
                bar.update(len(batch))
        if failures:
            named = [
                f"image {self.features.images[row]['id']}: {why}" for row, why in failures.items()
            ]
            raise ValueError(
                f"{len(failures)} of {self.num_images} images cannot be read: {first_few(named)}. "
                "Extract the features first: dino_extraction_v2.py leaves such images out."
            )
        return columns

    def columns_of_some(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of one image (any; shapes are all that counts) and of the first caption."""
        size = self.encoders.options.features.crop_dim
        blank = DecodedBatch(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        caption = [self.features.annotations[0]["caption"]]
        return (
            self.encoders.images(blank, self.choice.image_keys),
            self.encoders.captions(caption, self.choice.caption_keys),
        )


def encoding_settings(options: ImageOptions) -> dict[str, Any]:
    """What the numbers depend on when images are encoded."""
    frozen = {f"features.{key}": value for key, value in asdict(options.features).items()}
    own = recorded_normalisation(options.features.vision_model)
    return {**frozen, **own, "data_dir": str(options.data_dir)}


def check_all_exist(collection: Collection) -> None:
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


def _trainable(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that autograd accepts as inputs: what inference mode made, it refuses."""
    return {key: column.clone() for key, column in columns.items()}


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
        check_records(stored, place, need_ids=False)
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
