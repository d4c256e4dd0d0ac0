"""What a long stage tells the command that runs it; the command owns the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Progress = Callable[[int, int], "tqdm[Any]"]
"""(total, done already) -> a bar to be used in a `with` block."""


def silent(total: int, done: int) -> tqdm[Any]:
    """No bar."""
    return tqdm(total=total, initial=done, disable=True)
