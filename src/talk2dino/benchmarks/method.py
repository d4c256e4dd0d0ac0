"""What the evaluator needs of a method; methods/base.py has all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from talk2dino.benchmarks.table import Benchmark
from talk2dino.segmenter import ClassWords, Segmenter


class Method(Protocol):
    """A model with its options, not loaded. See `talk2dino.methods.base.Method`."""

    @property
    def model(self) -> str: ...

    @property
    def threshold_meaning(self) -> str: ...

    def words(self, row: Benchmark | None = None) -> ClassWords: ...

    def changes(self, row: Benchmark, names: Sequence[str]) -> list[str]: ...

    def published_miou(self, row: Benchmark) -> float | None: ...

    def published_source(self, row: Benchmark) -> str | None: ...

    def check(self) -> None: ...

    def settings(self) -> dict[str, Any]: ...

    def text_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]: ...

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> Segmenter: ...
