"""Pretraining samples and their batches: functions of the seed, the epoch and a number alone.

So a resumed run continues exactly, whatever the number of workers. An image that cannot be read is
never passed over in silence: its sample is replaced by another, a few times at most, and the batch
says so.
"""

import itertools
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from talk2dino.backbones.templates import get_templates
from talk2dino.backbones.vision import IMAGENET_MEAN, IMAGENET_STD
from talk2dino.features.tars import is_tar_input
from talk2dino.methods.ovsegmentor.config import PretrainingRecipe
from talk2dino.methods.ovsegmentor.data.rows import CocoRows, Rows, TableRows, TarRows
from talk2dino.methods.ovsegmentor.data.table import open_table
from talk2dino.methods.ovsegmentor.data.words import LEMMA_SOURCES, CaptionReader, find_lemmas
from talk2dino.methods.ovsegmentor.model import PretrainingBatch
from talk2dino.methods.ovsegmentor.text import Tokenizer
from talk2dino.processes import Processes
from talk2dino.training.run import epoch_order

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]
"""An RGB picture -> (3, size, size) float32, normalised with ImageNet's mean and deviation."""

ATTEMPTS = 8
"""Images tried for one sample before the run is given up."""
LOST = 0.01
"""Share of the samples so far above which images that cannot be read end a run."""
LOST_FREELY = 20
"""Images that may be lost in any case."""
_NAMED = 20


def deit_transform(size: int, smallest_crop: float) -> Transform:
    """DeiT's augmentation, of stage 1; it draws from the generators of Python, NumPy and torch."""
    return create_transform(
        input_size=size,
        is_training=True,
        scale=(smallest_crop, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        hflip=0.5,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
    )


def crop_and_flip(size: int, smallest_crop: float) -> Transform:
    """The augmentation of stage 2; it draws from torch's generator."""
    return _normalised(
        transforms.RandomResizedCrop(size, (smallest_crop, 1.0)),
        transforms.RandomHorizontalFlip(),
    )


def whole_image(size: int) -> Transform:
    """The short side to 8/7 of `size`, and of that the central square."""
    return _normalised(transforms.Resize(size * 256 // 224), transforms.CenterCrop(size))


def _normalised(*steps: Callable[[Image.Image], Image.Image]) -> Transform:
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    transform: Transform = transforms.Compose([*steps, transforms.ToTensor(), normalise])
    return transform


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """The global generators of Python, NumPy and torch (CPU) start from `seed`, and are put back.

    Args:
        seed: below 2**32.
    """
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)


def open_rows(
    path: str | Path, images: str | Path, reader: CaptionReader, pairs: bool = False
) -> Rows:
    """Open a metafile, COCO captions, or web tars.

    Captions without an entity are left out, except under the reader's `compat`.

    Args:
        path: a csv or tsv, a JSON of COCO captions, or a tar, a folder or a pattern of tars.
        images: the folder of the images that a metafile names; not used for tars.
        reader: tells which captions can be used.
        pairs: whether partners will be asked for (stage 2); a csv has to list them.

    Raises:
        FileNotFoundError: no such file, or none of the images exists.
        ValueError: columns are missing, a row is damaged, pairs are out of range, or nothing can
            be used.
    """
    if is_tar_input(path):
        return TarRows(path, reader, pairs)
    if Path(path).name.lower().endswith((".json", ".json.gz")):
        return CocoRows(Path(path), Path(images), reader, pairs)
    return TableRows(open_table(path), Path(images), reader, pairs)


Failure = tuple[str, str]
"""An image that could not be read, its file or its place in a tar; and why."""


class _Unreadable(Exception):
    """A `Failure`."""


class LoadedBatch(NamedTuple):
    """One process's samples of one step."""

    inputs: PretrainingBatch
    """What the model takes."""
    failures: tuple[Failure, ...] = ()
    """Images that could not be read; other samples are in their place."""


class Sample(NamedTuple):
    """One image with its texts; see `PretrainingBatch`."""

    row: int
    """Its row, after replacements."""
    image: Tensor
    """(3, size, size)."""
    caption: str
    question: str
    answer: str
    paired_image: Tensor | None = None
    """(3, size, size) another image that shares an entity."""
    paired_prompt: str = ""
    """A prompt with that entity."""
    failures: tuple[Failure, ...] = ()
    """Images that this sample stands in for."""


class PretrainingSamples(Dataset[LoadedBatch]):
    """Batches of samples by (epoch, number), which are functions of these and the recipe's seed.

    Args:
        recipe: has the captions, the images and what is done to them.
        tokenizer: of the model's text encoder.
        held_out: take the captions of the selection section, with whole, unchanged images and
            without pairs.

    Raises:
        FileNotFoundError, ValueError: see `open_rows`; also a tokeniser without a mask token.
    """

    def __init__(
        self, recipe: PretrainingRecipe, tokenizer: Tokenizer, held_out: bool = False
    ) -> None:
        data, augment, size = recipe.data, recipe.augment, recipe.config.vision.image_size
        self.tokenizer, self.length = tokenizer, recipe.train.text_length
        self.seed = recipe.train.seed
        self.pairs = recipe.stage == 2 and not held_out
        mask = tokenizer.tokenizer.mask_token
        if mask is None:
            raise ValueError("the tokeniser has no mask token, which questions need. Use a BERT's.")
        lemma = LEMMA_SOURCES[find_lemmas(data.lemmas)]
        self.reader = CaptionReader(lemma, recipe.compat, mask, data.table)
        if held_out:
            self.transform = whole_image(size)
        else:
            changed = deit_transform if augment.deit else crop_and_flip
            self.transform = changed(size, augment.smallest_crop)
        chosen = recipe.selection if held_out else data
        self.rows = open_rows(str(chosen.metafile), chosen.images, self.reader, self.pairs)
        self._templates = get_templates("full")

    def __len__(self) -> int:
        return len(self.rows.usable)

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> LoadedBatch:
        """The samples of these (epoch, number); texts have the recipe's `text_length` tokens."""
        samples = (self.sample(*key) for key in keys)
        _, images, *texts, second, prompts, failures = zip(*samples, strict=True)
        parts: list[Any] = [torch.stack(images)]
        parts += (self.tokenizer(some, self.length) for some in texts)
        if self.pairs:
            parts += [torch.stack(second), self.tokenizer(prompts, self.length)]
        return LoadedBatch(PretrainingBatch(*parts), tuple(itertools.chain(*failures)))

    def sample(self, epoch: int, number: int) -> Sample:
        """One sample.

        Raises:
            RuntimeError: too many images in a row could not be read; all are named.
        """
        failures: list[Failure] = []
        row = int(self.rows.usable[number])
        for attempt in range(ATTEMPTS):
            random = np.random.default_rng([self.seed, epoch, number, attempt])
            if attempt:
                row = int(random.choice(self.rows.usable))
            try:
                return self._make(row, random)._replace(failures=tuple(failures))
            except _Unreadable as error:
                failures.append(error.args)
        named = "\n".join(f"  {name}: {reason}" for name, reason in failures)
        raise RuntimeError(
            f"{len(failures)} images in a row could not be read:\n{named}\n"
            "Is the folder of the images right, and reachable?"
        )

    def _make(self, row: int, random: np.random.Generator) -> Sample:
        template = self._templates[random.integers(len(self._templates))]
        pixels, second, prompt = self._pixels(row, random), None, ""
        if self.pairs:
            partner, entity = self.rows.partner(row, random)
            second, prompt = self._pixels(partner, random), f"A photo of {entity}"
        caption = self.rows.caption(row)
        question, classes = self.reader.read(caption)
        answer = self.reader.answer(classes, template)
        return Sample(row, pixels, caption, question, answer, second, prompt)

    def _pixels(self, row: int, random: np.random.Generator) -> Tensor:
        name, source = self.rows.image(row)
        try:
            image = source.read()
        except (ValueError, OSError) as error:
            raise _Unreadable(name, str(error)) from error
        with seeded_globals(int(random.integers(2**32))):
            return self.transform(image)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one process, by their keys: every epoch another order, the last few left out.

    All processes shuffle alike; of each step's samples, process r takes the r-th part. So W
    processes with batches of B see in every step what one process with batches of W * B sees.
    Nothing is drawn from the global generators.

    Args:
        samples: what the keys are of.
        batch_size: samples per process and step.
        seed: of the orders.
        processes: this process and its equals.
        workers: processes that read images.
        pin_memory: put what is loaded where a GPU can fetch it.
    """

    def __init__(
        self,
        samples: PretrainingSamples,
        batch_size: int,
        seed: int = 0,
        processes: Processes | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.size, self.batch_size, self.seed = len(samples), batch_size, seed
        self.processes = processes or Processes()
        self.epoch = self.step = 0
        self._loader = DataLoader(
            samples,
            batch_size=None,  # they are batches already
            sampler=self,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_set_up_worker,
            generator=torch.Generator().manual_seed(0),  # for base seeds, which nothing uses
        )

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.size // (self.batch_size * self.processes.count)

    def loaded(self, epoch: int, step: int = 0) -> Iterator[LoadedBatch]:
        """The rest of `epoch` (from 0) from `step` (from 0) on."""
        self.epoch, self.step = epoch, step
        return iter(self._loader)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, processes = self.epoch, self.processes
        order = epoch_order(self.size, self.seed, epoch)
        for step in range(self.step, self.steps):
            start = (step * processes.count + processes.rank) * self.batch_size
            numbers = order[start : start + self.batch_size].tolist()
            yield [(epoch, number) for number in numbers]


def _set_up_worker(_: int) -> None:
    """No warning about tokenisers that were used before the fork."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@dataclass
class FailureLog:
    """Counts the images of a run that could not be read, and ends the run if they are many.

    One image that is met in several epochs counts each time.
    """

    samples: int = 0
    """Samples so far."""
    failures: int = 0
    """Images so far that could not be read."""
    named: list[str] = field(default_factory=list)
    """The names of the first few."""

    def add(self, failures: Sequence[Failure], samples: int) -> None:
        """Count one batch of `samples` samples.

        Raises:
            RuntimeError: too many failed.
        """
        self.samples += samples
        self.failures += len(failures)
        for name, reason in failures:
            if len(self.named) < _NAMED and name not in self.named:
                self.named.append(name)
                logger.warning("%s: %s; another sample stands in", name, reason)
        if failures and self.failures > max(LOST_FREELY, LOST * self.samples):
            raise RuntimeError(
                f"{self.summary()}. More than {LOST:.1%} are too many: see to the images, "
                "then resume."
            )

    def summary(self) -> str:
        """One line, empty if nothing failed."""
        if not self.failures:
            return ""
        names = ", ".join(self.named[:3])
        return f"{self.failures} images of {self.samples} samples could not be read ({names})"
