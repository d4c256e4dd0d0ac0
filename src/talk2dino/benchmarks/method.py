"""What the evaluator needs of a method before, and besides, its loaded `Segmenter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from talk2dino.benchmarks.table import Benchmark
from talk2dino.segmenter import Segmenter


@dataclass(frozen=True)
class DemoRules:
    """How a method segments pictures that belong to no benchmark."""

    threshold: float
    """Of the background."""
    always_background: bool
    """Whether there is a background unless it is refused."""
    windows: bool
    """At the size and in the windows of a benchmark; else the picture as one window."""
    groups: bool
    """Whether there are group maps to show."""


class Method(Protocol):
    """A model with its weights and options chosen, but not loaded; talk2dino.methods makes them.

    Two of them that are equal score alike.
    """

    @property
    def model(self) -> str:
        """What results call it."""

    @property
    def demo(self) -> DemoRules:
        """Its rules for a user's pictures."""

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """The benchmarks that `all` means."""

    @property
    def threshold_meaning(self) -> str:
        """What a background threshold is compared with, for messages."""

    def benchmark(self, row: Benchmark) -> Benchmark:
        """The row that this method is evaluated on where `row` is asked for."""

    def on(self, row: Benchmark) -> Method:
        """The method with the options of inference that its publication uses on a benchmark."""

    def threshold(self, row: Benchmark) -> float | None:
        """Its background threshold on a benchmark; None where that has no background."""

    def class_names(self, row: Benchmark, names: Sequence[str]) -> list[str]:
        """What it calls the classes of a benchmark, in prompts.

        Args:
            row: the benchmark.
            names: MMSegmentation's names, without the background.
        """

    def check(self) -> None:
        """Raise for unknown names and missing files; loads nothing.

        Raises:
            ValueError, FileNotFoundError: what is wrong, and what to do.
        """

    def settings(self) -> dict[str, Any]:
        """All that decides its scores, as plain JSON data; weights by their content."""

    def text_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The part of what `settings` returned that decides the embeddings of classes."""

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> Segmenter:
        """Load the weights.

        Args:
            device: where to put them.
            loaded: what `load` of an equally named model returned, whose weights are used again.
        """
