"""What training samples come from: captions with their images, by row."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from talk2dino.features.sources import ImageSource

logger = logging.getLogger(__name__)

SHOWN = 5
"""Captions left out that are named."""
NO_FILE = (
    "{} is an address, not a file. Download the images; tars as img2dataset writes them can be "
    "used directly"
)


@dataclass(frozen=True)
class Partner:
    """An image that shares an entity with another."""

    row: int
    """Its row."""
    entity: str
    """The shared word, as the caption's entity list has it."""


@dataclass
class Refused:
    """Captions that were left out."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Why -> how many."""
    examples: list[str] = field(default_factory=list)
    """The first few, by name."""

    def add(self, name: str, reason: str) -> None:
        """Count one."""
        self.reasons[reason] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(f"{name} is {reason}")


class Rows(ABC):
    """Captions with their images, by row. It can be pickled, and forks share its arrays."""

    usable: np.ndarray
    """(N,) int64 rows whose caption can be used, ascending."""
    refused: Refused
    """The others."""

    @abstractmethod
    def caption(self, row: int) -> str:
        """The caption of a row."""

    @abstractmethod
    def source(self, row: int) -> ImageSource:
        """The image of a row, not yet read."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What messages call the image of a row."""

    @abstractmethod
    def partner(self, row: int, random: np.random.Generator) -> Partner:
        """One of the row's partners, drawn uniformly. Only for rows opened with pairs."""

    def finish(self, usable: array[int], what: str) -> None:
        """Set `usable`, and say what was refused.

        Raises:
            ValueError: nothing is left.
        """
        self.usable = np.asarray(usable, np.int64)
        reasons = "; ".join(f"{count} {why}" for why, count in self.refused.reasons.items())
        if not len(self.usable):
            raise ValueError(f"{what} holds no caption that can be used ({reasons or 'no rows'})")
        if reasons:
            logger.warning(
                "%s: left out %d captions: %s. The first: %s",
                what,
                self.refused.reasons.total(),
                reasons,
                "; ".join(self.refused.examples),
            )
