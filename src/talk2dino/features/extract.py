"""Image features: decode, run the frozen backbone, pool, store (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from talk2dino.backbones.attention import average_attention, head_embeddings
from talk2dino.backbones.seeded import default_weights
from talk2dino.backbones.vision import (
    EXACT,
    RESIZES,
    VisionBackbone,
    check_sides,
    check_vision,
    load_vision,
    patch_size,
    recorded_normalisation,
)
from talk2dino.config import check_name
from talk2dino.devices import (
    AMP_TYPES,
    check_compiler,
    compile_blocks,
    joined,
    mixed_precision,
    resolve_dtype,
)
from talk2dino.features.captions import Collection
from talk2dino.features.chunks import Chunk, Extraction
from talk2dino.features.decode import DecodedBatch, Decoding, decoded_batches
from talk2dino.features.keys import IMAGE_KEYS
from talk2dino.features.recaption import Captioner, check_installed, recaptioned
from talk2dino.features.sources import check_any_exists
from talk2dino.features.store import FeatureFile, Record


@dataclass(frozen=True)
class ImageSettings:
    """What is extracted from images, and how."""

    model: str = "dinov2_vitl14_reg"
    """Vision backbone; see talk2dino.backbones.vision."""
    weights: str | None = None
    """`pretrained`, a file, or `seeded:<n>` (default: the model's own)."""
    resize_dim: int = 518
    """Short side after resizing, in pixels."""
    crop_dim: int = 518
    """Side of the central square that is kept, in pixels."""
    resize: str = EXACT
    """`exact`: PIL's resizing. `fast`: PyTorch's, and large JPEGs decoded at a part of their size;
    pixels differ by a few levels."""
    keys: tuple[str, ...] = ("dino_features",)
    """What is stored; names of IMAGE_KEYS."""
    dtype: str = "float32"
    """Number type of the stored tensors."""
    amp: str = ""
    """Type of mixed precision, empty for none; auto is bfloat16 (float16 on mps). What is stored is
    of `dtype` in any case."""
    compile: bool = False
    """Compile the backbone, which takes a minute at the start and is faster afterwards."""
    blip_model: str | None = None
    """BLIP model that writes new captions in place of the old ones."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda, cuda:<n> or mps."""
    batch_size: int = 64
    """Images per forward pass (on a CPU fewer)."""
    workers: int = 2
    """Processes that read images."""

    section: ClassVar[str] = "vision"
    """Where a feature file's settings keep `recorded()`."""

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name("image feature", key, IMAGE_KEYS)
        for name in ("resize_dim", "crop_dim", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"--workers must not be negative, got {self.workers}")
        check_name("resize", self.resize, RESIZES)
        if self.crop_dim > self.resize_dim:
            raise ValueError(
                f"--crop_dim {self.crop_dim} is larger than --resize_dim {self.resize_dim}: "
                "the pictures would get black borders"
            )
        if self.amp:
            check_name("amp", self.amp, AMP_TYPES)
        check_vision(self.model, self.weights)
        resolve_dtype(self.dtype)

    def recorded(self) -> dict[str, Any]:
        """What decides the numbers; stored in the feature file as settings["vision"]."""
        return {
            "model": self.model,
            "weights": self.weights or default_weights(self.model),
            "resize_dim": self.resize_dim,
            "crop_dim": self.crop_dim,
            "dtype": self.dtype,
            "amp": self.amp == "auto" or self.amp or False,
            **({} if self.resize == EXACT else {"resize": self.resize}),
            **({"compile": True} if self.compile else {}),
            **recorded_normalisation(self.model),
        }


class ImageExtraction(Extraction):
    """Features of images; those that cannot be read are left out with their captions."""

    settings: ImageSettings
    unit = "images"
    cpu_batch = 4

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__(settings)
        check_sides(settings.model, patch_size(settings.model), settings.crop_dim)
        if settings.compile:
            check_compiler(self.device)
        if settings.blip_model:
            check_installed()

    @cached_property
    def models(self) -> tuple[VisionBackbone, Captioner | None]:
        """The backbone, and the captioning model if one is asked for."""
        name = self.settings.blip_model
        captioner = Captioner(name, self.device) if name else None
        backbone = load_vision(self.settings.model, self.settings.weights, self.device)
        if self.settings.compile:
            compile_blocks(backbone.model.blocks)
        return backbone, captioner

    def items(self, collection: Collection) -> list[Any]:
        """Id, name, and what changes with the file."""
        check_any_exists(collection.sources)
        return [
            (image["id"], _name(image), source.state())
            for image, source in zip(collection.features.images, collection.sources, strict=True)
        ]

    def results(self, collection: Collection, chunks: Sequence[range]) -> Iterator[Chunk]:
        """One batch is one chunk; batches are decoded ahead."""
        settings, (backbone, captioner) = self.settings, self.models
        decoding = Decoding(
            backbone.image_transform(settings.resize_dim, settings.crop_dim, settings.resize),
            settings.workers,
            captioner.transform if captioner else None,
        )
        on_gpu = self.device.type == "cuda"
        decoded = decoded_batches(collection.sources, decoding, chunks, pin_memory=on_gpu)
        images = collection.features.images
        return (self._found(batch, images) for batch in decoded)

    def _found(self, decoded: DecodedBatch, images: list[Record]) -> Chunk:
        """The features of a batch, on the device."""
        backbone, captioner = self.models
        dtype = resolve_dtype(self.settings.dtype)
        columns: dict[str, Tensor] = {}
        captions: list[str] = []

        def features(pixels: Tensor) -> dict[str, Tensor]:
            found = image_features(backbone, pixels, self.settings.keys, self.settings.amp)
            return {key: column.to(dtype) for key, column in found.items()}

        if len(decoded.images):
            pixels = decoded.images.to(self.device, non_blocking=True)
            columns = joined(self.fit.pieces(features, pixels))
            if captioner and decoded.caption_inputs is not None:
                inputs = decoded.caption_inputs.to(self.device, non_blocking=True)
                pieces = self.fit.pieces(captioner, inputs)
                captions = [caption for piece in pieces for caption in piece]
        failures = {
            row: f"image {images[row]['id']} ({_name(images[row])}): {why}"
            for row, why in decoded.failures.items()
        }
        return Chunk(columns, failures, captions)

    def completed(self, collection: Collection, made: Chunk) -> FeatureFile:
        """The images that could be read; older image columns stay if made the same way."""
        kept = torch.ones(collection.features.num_images, dtype=torch.bool)
        kept[list(made.failures)] = False
        read = replace(collection, features=collection.features.select(kept.nonzero().flatten()))
        result = super().completed(read, made)
        if self.settings.blip_model:
            recaptioned(result, made.captions, self.settings.blip_model)
        return result


@torch.inference_mode()
def image_features(
    backbone: VisionBackbone, images: Tensor, keys: Iterable[str], amp: str = ""
) -> dict[str, Tensor]:
    """The stored features of a batch of images.

    Args:
        backbone: on the device of `images`.
        images: (B, 3, h, w) uint8 RGB.
        keys: names of IMAGE_KEYS.
        amp: number type of mixed precision in the backbone, a name of AMP_TYPES; pooling is
            float32 in any case.

    Returns:
        Key -> (B, ...) float32, on the same device: `dino_features`, `second_last_out` and
        `avg_self_attn_out` (B, D), `disentangled_self_attn` (B, H, D), `self_attn_maps` (B, H, P),
        `patch_tokens` (B, P, D).
    """
    with mixed_precision(amp, images.device):
        found = backbone(backbone.normalise(images))
    logits, patches = found.attention_logits.float(), found.patches.float()
    make = {
        "dino_features": lambda: found.cls.float(),
        "avg_self_attn_out": lambda: average_attention(logits, patches),
        "disentangled_self_attn": lambda: head_embeddings(logits, patches),
        "self_attn_maps": lambda: logits,
        "patch_tokens": lambda: patches,
        "second_last_out": lambda: found.penultimate_cls.float(),
    }
    return {key: make[key]() for key in keys}


def _name(image: dict[str, Any]) -> str:
    return str(image.get("file_name") or image.get("coco_url") or Path())
