"""The state of an unfinished run on disk: enough to reach the same weights after a kill."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from talk2dino.files import load_torch, save_torch

S = TypeVar("S", bound="RunState")


@dataclass
class RunState:
    """Where a run stands. Randomness is no part: it is a function of (seed, epoch, step)."""

    epoch: int = 0
    """Complete epochs."""
    step: int = 0
    """Complete optimiser steps of the epoch under way."""
    records: list[Any] = field(default_factory=list)
    """One per complete epoch."""
    best_epoch: int | None = None
    """Epoch with the lowest validation loss so far, from 1."""

    @classmethod
    def read(cls: type[S], values: Mapping[str, Any], record: type) -> S:
        """The state from its fields, as `asdict` gives them; `record` is the type of its rows."""
        return cls(**{**values, "records": [record(**row) for row in values["records"]]})


@dataclass
class StateFile:
    """Keeps a run's state on disk."""

    path: Path
    """The file."""
    settings: dict[str, Any]
    """What a run must share with the interrupted one to continue it."""
    seconds: float = 60.0
    """Time between two saves within an epoch; every epoch's end is saved anyway."""
    best: Path | None = None
    """Weights of the best epoch so far, where a run keeps them in a file of their own."""
    saved_at: float = field(default_factory=time.monotonic)
    """When it was saved last."""

    def is_due(self) -> bool:
        """Whether the last save lies back far enough."""
        return time.monotonic() - self.saved_at >= self.seconds

    def save(self, snapshot: Mapping[str, Any]) -> None:
        """Write the file whole or not at all; a kill in between leaves the previous one."""
        save_torch({**snapshot, "settings": self.settings}, self.path)
        self.saved_at = time.monotonic()


def load_state(path: Path, kind: str) -> dict[str, Any]:
    """Read such a file of one kind: the snapshot and the `settings`.

    Raises:
        FileNotFoundError, ValueError: absent, damaged, or another kind of file.
    """
    content = load_torch(path)
    if not isinstance(content, dict) or content.get("kind") != kind:
        what = kind.removeprefix("talk2dino ")
        raise ValueError(f"{path} is not the state of an {what}; delete or move it")
    return content


def check_same_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError naming every setting that differs from the interrupted run."""
    differences = [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise ValueError(
            f"{path} was made with other settings: {'; '.join(differences)}. "
            "Resume with the same settings, or start again with --overwrite or another --out."
        )
