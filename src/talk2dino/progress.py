"""What a long stage tells the command that runs it; the command owns the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from tqdm import tqdm


class Bar(Protocol):
    """The part of a tqdm bar that stages use."""

    def update(self, n: float | None = 1, /) -> object:
        """`n` more items are done."""


Progress = Callable[[int, int], AbstractContextManager[Bar]]
"""(total, done already) -> a bar to be used in a `with` block."""


def silent(total: int, done: int) -> AbstractContextManager[Bar]:
    """No bar."""
    return tqdm(total=total, initial=done, disable=True)
