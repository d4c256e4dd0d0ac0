"""What all tests share: no network, few threads, and the photographs."""

import multiprocessing
import os
from pathlib import Path

import talk2dino.cli  # noqa: F401  before torch: threads wait as they do in the commands

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download fails at once instead
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

ROOT = Path(__file__).parents[1]
PRELOADED = [
    *(
        "pytest",
        "torch.distributed",
        "talk2dino.cli.train",
        "talk2dino.methods.talk2dino.training.job",
    ),
    *("talk2dino.cli.extract", "talk2dino.cli.extract_text"),
    *("talk2dino.features.extract", "talk2dino.features.text"),
    *("talk2dino.cli.pretrain", "talk2dino.methods.ovsegmentor.pretraining.job"),
    *("talk2dino.cli.evaluate_published", "talk2dino.benchmarks.evaluate", "mmseg.datasets"),
]


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def fork_server():
    """Starts processes that have everything imported, so that one costs milliseconds.

    There is one such server per test process: what it has imported is decided here, once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def photos(root: Path) -> Path:
    """A folder with astronaut.png, coffee.png and chelsea.png."""
    return root / "assets"
