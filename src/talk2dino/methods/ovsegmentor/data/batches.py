"""The order of samples in a pretraining run, its loader, and what is done about lost images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from talk2dino.config import split_names
from talk2dino.methods.ovsegmentor.data.dataset import (
    Collate,
    ImageFailure,
    PretrainingSamples,
    SampleOptions,
    Transform,
)
from talk2dino.methods.ovsegmentor.data.sources import open_rows
from talk2dino.methods.ovsegmentor.data.words import (
    PUBLISHED,
    CaptionReader,
    EntityTable,
    find_lemmas,
    get_lemma,
)
from talk2dino.methods.ovsegmentor.text import Tokenizer

logger = logging.getLogger(__name__)

_NAMED = 20


@dataclass(frozen=True)
class PretrainingData:
    """The data section of a pretraining recipe."""

    metafile: str
    """A csv or tsv with image_id and caption (stage 2 also pairindex and pairentity), COCO
    captions, or tars."""
    images: str = ""
    """Folder of the images that a metafile names."""
    entities: str = ""
    """Words to look for, separated by commas; by default those of the paper."""
    lemmas: str = "auto"
    """Source of singulars: auto, lemminflect or wordnet."""
    compat: bool = False
    """Build questions and answers as the published loader does, with its defects."""

    def __post_init__(self) -> None:
        if not self.metafile:
            raise ValueError("'metafile:' is empty")
        if self.compat and self.entities:
            raise ValueError("entities cannot be chosen under compat, which has the published ones")
        self.table  # noqa: B018  # refuses its own wrong values

    @property
    def table(self) -> EntityTable:
        """The words that count as entities."""
        words = map(str.strip, split_names(self.entities))
        return EntityTable.of(words) if self.entities else PUBLISHED


def open_samples(
    data: PretrainingData, transform: Transform, options: SampleOptions, tokenizer: Tokenizer
) -> PretrainingSamples:
    """The samples of a recipe, of pictures that are transformed.

    Raises:
        FileNotFoundError, ValueError: see `open_rows`; also a tokeniser without a mask token.
    """
    mask = tokenizer.tokenizer.mask_token
    if mask is None:
        raise ValueError("the tokeniser has no mask token, which questions need. Use a BERT's.")
    reader = CaptionReader(get_lemma(find_lemmas(data.lemmas)), data.compat, mask, data.table)
    rows = open_rows(data.metafile, Path(data.images), reader, options.pairs)
    return PretrainingSamples(rows, reader, transform, options)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Keys of the batches of one process: every epoch another order, the last few left out.

    All processes shuffle alike; of each step's samples, process r takes the r-th part. So W
    processes with batches of B see in every step what one process with batches of W * B sees.

    Args:
        size: number of samples.
        batch_size: samples per process and step.
        seed: of the orders.
        rank: this process.
        world: how many processes there are.

    Raises:
        ValueError: there are fewer samples than one step takes.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {batch_size}")
        if size < batch_size * world:
            raise ValueError(
                f"{size} samples are fewer than one step takes ({world} x {batch_size})"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch = self.step = 0

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.size // (self.batch_size * self.world)

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration be the rest of `epoch` (from 0) from `step` (from 0) on."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} is not in an epoch of {self.steps} steps")
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Steps of the next iteration."""
        return self.steps - self.step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        for step in range(self.step, self.steps):
            start = (step * self.world + self.rank) * self.batch_size
            yield [(epoch, int(number)) for number in order[start : start + self.batch_size]]


def make_loader(
    samples: PretrainingSamples,
    batches: EpochBatches,
    collate: Collate,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of `LoadedBatch`; call `batches.start_at` before each iteration over it.

    It draws nothing from the global generators.
    """
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_set_up_worker,
        generator=torch.Generator().manual_seed(0),  # for base seeds, which nothing uses
    )


@dataclass
class FailureLog:
    """Counts the images of a run that could not be read, and ends the run if they are many.

    One image that is met in several epochs counts each time.
    """

    limit: float = 0.01
    """Share of the samples so far above which the run ends."""
    free: int = 20
    """Failures that are always allowed."""
    samples: int = 0
    """Samples so far."""
    failures: int = 0
    """Images so far that could not be read."""
    named: dict[str, str] = field(default_factory=dict)
    """The first few, name -> reason."""

    def add(self, failures: Sequence[ImageFailure], samples: int) -> None:
        """Count one batch of `samples` samples.

        Raises:
            RuntimeError: too many failed.
        """
        self.samples += samples
        self.failures += len(failures)
        for failure in failures:
            if len(self.named) < _NAMED and failure.name not in self.named:
                self.named[failure.name] = failure.reason
                logger.warning("%s: %s; another sample stands in", failure.name, failure.reason)
        if failures and self.failures > max(self.free, self.limit * self.samples):
            raise RuntimeError(
                f"{self.summary()}. More than {self.limit:.1%} are too many: see to the images, "
                "then resume."
            )

    def summary(self) -> str:
        """One line, empty if nothing failed."""
        if not self.failures:
            return ""
        names = ", ".join(list(self.named)[:3])
        return f"{self.failures} images of {self.samples} samples could not be read ({names})"


def _set_up_worker(_: int) -> None:
    """One thread per worker, and no warning about tokenisers that were used before the fork."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
