"""Batches of decoded images, read ahead by worker processes; bad ones are reported, not raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from talk2dino.backbones.vision import ImageTransform
from talk2dino.features.sources import ImageSource
from talk2dino.pictures.images import MAX_PIXELS

_NO_PIXELS = torch.empty(0, 3, 0, 0, dtype=torch.uint8)


class DecodedBatch(NamedTuple):
    """Some images of a collection."""

    images: Tensor
    """(B, 3, crop, crop) uint8 RGB of those that could be read, in order."""
    failures: dict[int, str]
    """Position -> why it could not be read."""
    caption_inputs: Tensor | None
    """(B, 3, h, w) float, for the captioning model, if there is one."""


@dataclass(frozen=True)
class Decoding:
    """How images are read."""

    transform: ImageTransform
    """PIL image to uint8 pixels."""
    workers: int = 0
    """Worker processes; 0 reads in this process."""
    caption_transform: Callable[[Image.Image], Tensor] | None = None
    """PIL image to the pixels of a captioning model."""


def batches_of(size: int, total: int) -> list[range]:
    """The positions 0 to `total`, in batches; the last one may be smaller."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def decoded_batches(
    sources: Sequence[ImageSource],
    decoding: Decoding,
    batches: Sequence[range],
    pin_memory: bool = False,
) -> Iterator[DecodedBatch]:
    """Read batches of images, each given by the positions in `sources`."""
    loader = DataLoader(
        _Images(sources, decoding),
        batch_sampler=map(list, batches),
        num_workers=decoding.workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a process that reads images has ended ({error}). If memory is short, pass fewer "
            "--workers; run the same command again to go on."
        ) from error


class _Images(Dataset):
    def __init__(self, sources: Sequence[ImageSource], decoding: Decoding) -> None:
        self.sources, self.decoding = sources, decoding

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> DecodedBatch:
        try:
            image_rgb = self.sources[position].read(self.decoding.transform.least)
            _check_shape(image_rgb, self.decoding.transform.resize_dim)
            pixels = self.decoding.transform(image_rgb)
            transform = self.decoding.caption_transform
            caption_input = transform(image_rgb)[None] if transform else None
        # One image must not end a run of hours, whatever a decoder raises: it is counted and named.
        except Exception as error:
            return DecodedBatch(_NO_PIXELS, {position: str(error) or type(error).__name__}, None)
        return DecodedBatch(pixels[None], {}, caption_input)


def _check_shape(image_rgb: Image.Image, resize_dim: int) -> None:
    short, long = sorted(image_rgb.size)
    if resize_dim * resize_dim * long > MAX_PIXELS * short:
        raise ValueError(
            f"its sides are {image_rgb.width} x {image_rgb.height} pixels: resized to a short "
            f"side of {resize_dim} it would have more than {MAX_PIXELS} pixels"
        )


def _collate(items: list[DecodedBatch]) -> DecodedBatch:
    """One batch of batches of one image."""
    pixels = [item.images for item in items if len(item.images)]
    inputs = [item.caption_inputs for item in items if item.caption_inputs is not None]
    return DecodedBatch(
        images=torch.cat(pixels) if pixels else _NO_PIXELS,
        failures={position: why for item in items for position, why in item.failures.items()},
        caption_inputs=torch.cat(inputs) if inputs else None,
    )
