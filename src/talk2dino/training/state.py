"""The state of an unfinished run on disk: enough to reach the same weights after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
