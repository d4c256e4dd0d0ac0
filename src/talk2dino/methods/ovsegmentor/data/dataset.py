"""Pretraining samples: each one a function of the seed, the epoch and its number alone.

So a resumed run continues exactly, whatever the number of workers. An image that cannot be read is
never passed over in silence: its sample is replaced by another, a few times at most, and the batch
says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from talk2dino.backbones.templates import get_templates
from talk2dino.backbones.vision import IMAGENET_MEAN, IMAGENET_STD
from talk2dino.config import check_at_least
from talk2dino.methods.ovsegmentor.data.rows import Rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader
from talk2dino.methods.ovsegmentor.model import PretrainingBatch
from talk2dino.methods.ovsegmentor.text import Tokenizer, Tokens

Transform = Callable[[Image.Image], Tensor]
"""An RGB picture -> (3, size, size) float32, normalised with ImageNet's mean and deviation."""


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are changed."""

    deit: bool = True
    """DeiT's augmentation (stage 1), or only crop and flip (stage 2)."""
    smallest_crop: float = 0.08
    """Smallest share of an image's area that a crop takes: 0.08 in stage 1, 0.4 in stage 2."""
    size: int = 224
    """Side of the result in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop must lie in (0, 1], got {self.smallest_crop}")
        check_at_least(1, size=self.size)


def training_transform(config: AugmentConfig) -> Transform:
    """A random transform; it draws from the generators of Python, NumPy and torch."""
    scale = (config.smallest_crop, 1.0)
    if config.deit:
        return create_transform(
            input_size=config.size,
            is_training=True,
            scale=scale,
            ratio=(3 / 4, 4 / 3),
            interpolation="bilinear",
            hflip=0.5,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(config.size, scale),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


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


TEXT_LENGTH = 77
"""Tokens of a training text."""
ENTITY_PROMPT = "A photo of "

_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class SampleOptions:
    """How samples are made."""

    seed: int = 0
    """Of the answers' templates, the partners and the augmentation."""
    pairs: bool = False
    """Whether each sample has a second image (stage 2)."""
    attempts: int = 8
    """Images tried for one sample before the run is given up."""

    def __post_init__(self) -> None:
        check_at_least(0, seed=self.seed)
        check_at_least(1, attempts=self.attempts)


@dataclass(frozen=True)
class ImageFailure:
    """An image that could not be read."""

    row: int
    """Its row."""
    name: str
    """Its file, or its place in a tar."""
    reason: str
    """Why."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its texts."""

    row: int
    """Its row, after replacements."""
    image: Tensor
    """(3, H, W) float32 normalised RGB."""
    caption: str
    """As written."""
    question: str
    """With its entities masked."""
    answer: str
    """A prompt with the entities."""
    paired_image: Tensor | None = None
    """(3, H, W) a second one, in stage 2."""
    paired_prompt: str = ""
    """Names the entity that both images share."""
    failures: tuple[ImageFailure, ...] = ()
    """Images that were to be in this sample, and could not be read."""


class PretrainingSamples(Dataset):
    """The usable rows as samples, by (epoch, number).

    Args:
        rows: opened with pairs if the options ask for them.
        reader: makes question and answer; its mask token is the tokeniser's.
        transform: a random one, from `training_transform`.
        options: see there.
    """

    def __init__(
        self, rows: Rows, reader: CaptionReader, transform: Transform, options: SampleOptions
    ) -> None:
        self.rows, self.reader, self.transform, self.options = rows, reader, transform, options
        self._templates = get_templates("full")

    def __len__(self) -> int:
        return len(self.rows.usable)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of (epoch, number).

        Raises:
            RuntimeError: too many images in a row could not be read; all are named.
        """
        epoch, number = key
        failures: list[ImageFailure] = []
        row = int(self.rows.usable[number])
        for attempt in range(self.options.attempts):
            random = np.random.default_rng([self.options.seed, epoch, number, attempt])
            if attempt:
                row = int(random.choice(self.rows.usable))
            sample = self._make(row, random, failures)
            if sample:
                return sample
        named = "\n".join(f"  row {f.row}, {f.name}: {f.reason}" for f in failures)
        raise RuntimeError(
            f"{len(failures)} images in a row could not be read:\n{named}\n"
            "Is the folder of the images right, and reachable?"
        )

    def _make(
        self, row: int, random: np.random.Generator, failures: list[ImageFailure]
    ) -> Sample | None:
        """The sample of a row; None, and one more failure, if an image cannot be read."""
        template = self._templates[random.integers(len(self._templates))]
        image = self._read(row, failures)
        if image is None:
            return None
        pixels = self._transformed(image, random)
        second, prompt = None, ""
        if self.options.pairs:
            partner = self.rows.partner(row, random)
            image = self._read(partner.row, failures)
            if image is None:
                return None
            second, prompt = self._transformed(image, random), ENTITY_PROMPT + partner.entity
        caption = self.rows.caption(row)
        masked = self.reader.read(caption)
        answer = self.reader.answer(masked.classes, template)
        texts = (caption, masked.question, answer)
        return Sample(row, pixels, *texts, second, prompt, tuple(failures))

    def _read(self, row: int, failures: list[ImageFailure]) -> Image.Image | None:
        try:
            return self.rows.source(row).read()
        except (ValueError, OSError) as error:
            failures.append(ImageFailure(row, self.rows.name(row), str(error)))
            return None

    def _transformed(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        with seeded_globals(int(random.integers(_SEED_LIMIT))):
            return self.transform(image)


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """One process's samples of one step."""

    inputs: PretrainingBatch
    """What the model takes."""
    rows: Tensor
    """(B,) int64 rows of the samples."""
    failures: tuple[ImageFailure, ...] = ()
    """Images that could not be read; other samples are in their place."""

    def pin_memory(self) -> LoadedBatch:
        """Called by the DataLoader; makes the copy to a GPU asynchronous."""
        fields: dict[str, Any] = {n: _pinned(value) for n, value in vars(self.inputs).items()}
        return LoadedBatch(PretrainingBatch(**fields), self.rows, self.failures)


@dataclass(frozen=True)
class Collate:
    """Samples to a batch, with the texts tokenised."""

    tokenizer: Tokenizer
    """Of the model's text encoder."""
    length: int = TEXT_LENGTH
    """Every text is padded and cut to this many tokens."""

    def __call__(self, samples: Sequence[Sample]) -> LoadedBatch:
        """Collate some samples, either all with a pair or none."""
        second = [s.paired_image for s in samples if s.paired_image is not None]
        prompts = [sample.paired_prompt for sample in samples]
        inputs = PretrainingBatch(
            images=torch.stack([sample.image for sample in samples]),
            captions=self._tokens([sample.caption for sample in samples]),
            questions=self._tokens([sample.question for sample in samples]),
            answers=self._tokens([sample.answer for sample in samples]),
            paired_images=torch.stack(second) if second else None,
            paired_entities=self._tokens(prompts) if second else None,
        )
        failures = tuple(failure for sample in samples for failure in sample.failures)
        return LoadedBatch(inputs, torch.tensor([sample.row for sample in samples]), failures)

    def _tokens(self, texts: list[str]) -> Tokens:
        return self.tokenizer(texts, self.length)


def _pinned(value: Tensor | Tokens | None) -> Tensor | Tokens | None:
    if isinstance(value, Tokens):
        return Tokens(value.ids.pin_memory(), value.mask.pin_memory())
    return None if value is None else value.pin_memory()
