"""What all tests share: no network, few threads, and the photographs."""

import os
from pathlib import Path

import talk2dino.cli  # noqa: F401  before torch: threads wait as they do in the commands

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download fails at once instead
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def photos(root: Path) -> Path:
    """A folder with astronaut.png, coffee.png and chelsea.png."""
    return root / "assets"
