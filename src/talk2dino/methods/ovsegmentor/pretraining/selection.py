"""Choosing an epoch by held-out captions, which are neither trained on nor reported."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torchvision import transforms

from talk2dino.backbones.vision import IMAGENET_MEAN, IMAGENET_STD
from talk2dino.devices import mixed_precision
from talk2dino.files import read_ahead
from talk2dino.methods.ovsegmentor.data.batches import EpochBatches, make_loader, open_samples
from talk2dino.methods.ovsegmentor.data.dataset import (
    Collate,
    PretrainingSamples,
    SampleOptions,
    Transform,
)
from talk2dino.methods.ovsegmentor.data.rows import Rows
from talk2dino.methods.ovsegmentor.losses import infonce
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.config import PretrainingRecipe
from talk2dino.methods.ovsegmentor.text import Tokenizer
from talk2dino.processes import Processes


class HeldOut:
    """The image-caption loss of whole, unchanged images: the same batches every time.

    Only what segmentation uses is judged; the entity decoder is not.

    Args:
        recipe: its selection section has a metafile.
        tokenizer: of the model's text encoder.
        processes: this process and its equals, which divide every batch.
        workers: processes that read images.

    Raises:
        ValueError: there are fewer captions than processes; see also `open_held_out`.
    """

    def __init__(
        self, recipe: PretrainingRecipe, tokenizer: Tokenizer, processes: Processes, workers: int
    ) -> None:
        self.recipe, self.processes, self.workers = recipe, processes, workers
        self.samples = samples = open_held_out(recipe, tokenizer)
        rank, world = processes.rank, processes.count
        if len(samples) < world:
            raise ValueError(
                f"selection: metafile: {recipe.selection.metafile} holds {len(samples)} captions "
                f"that can be used; at least {world} are needed, one for each process"
            )
        size = min(recipe.selection.batch_size, len(samples) // world)
        self.batches = EpochBatches(len(samples), size, 0, rank, world)
        collate = Collate(tokenizer, recipe.train.text_length)
        self.loader = make_loader(samples, self.batches, collate, workers)

    def check_images(self) -> None:
        """Read every held-out image once: the first loss is an epoch, perhaps hours, away.

        Raises:
            RuntimeError: in every process, if any of them finds an image that cannot be read.
        """
        rows, place = self.samples.rows, self.processes.rank
        first_rows = {rows.name(row): row for row in reversed(rows.usable.tolist())}
        own = sorted(first_rows.values())[place :: self.processes.count]
        looks = (partial(_problem, rows, row) for row in own)
        problem = next(filter(None, read_ahead(looks, max(self.workers, 1))), "")
        for found in self.processes.gather(problem):
            if found:
                raise RuntimeError(f"a held-out image: {found}")

    @torch.no_grad()
    def loss(self, model: OVSegmentor) -> float:
        """Mean InfoNCE over the batches and processes; the model's mode is put back.

        Raises:
            RuntimeError: an image could not be read, so that epochs could not be compared.
        """
        training = model.training
        model.eval()
        losses = []
        self.batches.start_at(0)
        for batch in self.loader:
            if batch.failures:
                failure = batch.failures[0]
                raise RuntimeError(f"a held-out image: {failure.name}: {failure.reason}")
            inputs = batch.inputs.to(model.device)
            with mixed_precision(self.recipe.train.amp or "", model.device):
                images = model.encode_images(inputs.images)
                captions = model.encode_texts(inputs.captions)
            losses.append(infonce(images.embedding, captions.embedding, model.scale))
        model.train(training)
        own = torch.stack(losses).mean().item()
        return math.fsum(self.processes.gather(own)) / self.processes.count


def _problem(rows: Rows, row: int) -> str:
    """What is wrong with the image of a row, which is read for that; else nothing."""
    try:
        rows.source(row).read()
    except (ValueError, OSError) as error:
        return f"{rows.name(row)}: {error}"
    return ""


def open_held_out(recipe: PretrainingRecipe, tokenizer: Tokenizer) -> PretrainingSamples:
    """The captions of the selection section.

    Raises:
        FileNotFoundError, ValueError: see `open_samples`.
    """
    selection = recipe.selection
    assert selection.metafile is not None
    data = dataclasses.replace(recipe.data, metafile=selection.metafile, images=selection.images)
    return open_samples(data, whole_image(recipe.augment.size), SampleOptions(), tokenizer)


def whole_image(size: int) -> Transform:
    """The short side to 8/7 of `size`, and of that the central square; normalised."""
    transform: Transform = transforms.Compose(
        [
            transforms.Resize(size * 256 // 224),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return transform
