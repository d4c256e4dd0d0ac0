"""What one measurement is: the same work done by several sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Step = Callable[[], Any]
"""Does the work once; returns tensors (in dicts, lists or tuples) to compare, or None."""

Prepare = Callable[[str, Path], Step]
"""Makes a step from a device ("cpu" or "cuda") and the folder of the case's inputs."""

SHIPPED, LITERAL = "shipped", "literal"


@dataclass(frozen=True)
class Case:
    """Work whose time and memory are compared."""

    title: str
    """One line for the table."""
    sides: Mapping[str, Prepare]
    """SHIPPED and mostly LITERAL; others are baselines, such as a bare backbone."""
    inputs: Callable[[Path], None] = lambda folder: None
    """Writes the files that all sides read, once, before any of them starts."""
    repeats: int = 5
    """Timed runs of each side, taken in turns; the median counts."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Side -> the ratio of its time to SHIPPED that is asked for on two CPU cores."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """What SHIPPED may take on two CPU cores: `seconds`; `resident_mb`, of the whole process beyond
    PyTorch; `peak_share`, of the extra memory that LITERAL takes."""
    cuda_rate: float = 0
    """Units per second that are asked for on an H200."""
    work: float = 0
    """Units (pairs, images, windows) in one step; 0 if no rate is wanted ..."""
    unit: str = ""
    """... and their name."""
