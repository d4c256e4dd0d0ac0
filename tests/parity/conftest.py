"""Recorded outputs of the published implementation, with deterministic weights."""

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from talk2dino.inference import resize_picture
from talk2dino.sizes import Protocol

CARRIED = Path(__file__).parent / "data"
FULL = Path(__file__).parents[2].parent / "shared" / "parity"

TENSOR_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
MASK_TOLERANCE = 2e-5


class Recorded(dict):
    """Arrays by name; asking for one that only the full recording holds skips the test."""

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.name = name

    def __missing__(self, key: str) -> np.ndarray:
        pytest.skip(f"{key!r} is only in the full recording ../shared/parity/{self.name}")


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Recorded]:
    """Read a recording by its path below parity/: the full one if it is there, else the carried."""

    def read(name: str) -> Recorded:
        for root in (FULL, CARRIED):
            if (root / name).is_file():
                with np.load(root / name, allow_pickle=False) as arrays:
                    return Recorded(name, {key: arrays[key] for key in arrays.files})
        pytest.skip(f"the recording ../shared/parity/{name} is not here")

    return read


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """A file below ../shared/parity that is too large to carry; the test is skipped without it."""

    def find(name: str) -> Path:
        if not (FULL / name).exists():
            pytest.skip(f"../shared/parity/{name} is not here")
        return FULL / name

    return find


@pytest.fixture(scope="session")
def relative_error() -> Callable[..., float]:
    """Norm of the difference over the norm of the recorded tensor."""

    def measure(ours, recorded) -> float:
        ours = torch.as_tensor(ours).detach().double()
        recorded = torch.as_tensor(recorded).double()
        assert ours.shape == recorded.shape, (ours.shape, recorded.shape)
        return float((ours - recorded).norm() / recorded.norm())

    return measure


@pytest.fixture(scope="session")
def photograph(shared_file):
    """A photograph by its file name, (3, H, W) RGB."""

    def read(name):
        bgr = cv2.imread(str(shared_file(f"images/{name}")))
        return torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1).float()

    return read


@pytest.fixture(scope="session")
def resized(photograph):
    """The same at the size at which it is scored."""

    def read(name, short_side=336):
        picture = photograph(name)
        size_hw = Protocol(short_side=short_side).scored_size(*picture.shape[-2:])
        return resize_picture(picture, size_hw).float()

    return read
