"""PAMR's CUDA kernels against the literal version: interpreted, and compiled where a GPU is."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from talk2dino.refine.pamr import pamr
from tests.literal.pamr import pamr as literal_pamr

pytest.importorskip("triton")

# Batch, classes, height, width, iterations, dilations
PROBLEMS = {
    "several blocks of pixels": (1, 21, 9, 20, 2, (1, 4)),
    "neighbours beyond the image": (2, 3, 3, 5, 2, (1, 24)),
    "several blocks of classes": (1, 37, 4, 1, 1, (2,)),
    "one pixel": (1, 4, 1, 1, 1, (1,)),
}

# Triton reads the variable when a kernel is defined, so a process of its own is needed.
INTERPRETED = """
import json
import torch
from talk2dino.refine.pamr_triton import pamr_in_kernels
from tests.literal.pamr import pamr as literal_pamr
from tests.refine.test_pamr_triton import PROBLEMS, problem

found = {}
for name, (*shape, iterations, dilations) in PROBLEMS.items():
    images, masks = problem(*shape)
    ours = pamr_in_kernels(images, masks, iterations, dilations)
    difference = (ours - literal_pamr(images, masks, iterations, dilations)).abs().max().item()
    found[name] = [list(ours.shape), ours.is_contiguous(), difference]
print(json.dumps(found))
"""


def problem(batch, classes, height, width, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator) * 255
    masks = torch.rand(batch, classes, height, width, generator=generator)
    return images.to(device), masks.to(device)


@pytest.fixture(scope="module")
def interpreted(root):
    path = os.pathsep.join([str(root), str(root / "src")])
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", PROBLEMS)
def test_interpreted_kernels_equal_the_literal_version(interpreted, name):
    shape, contiguous, difference = interpreted[name]
    assert tuple(shape) == PROBLEMS[name][:4] and contiguous
    assert difference <= 2e-6


def test_kernels_are_not_compiled_again_for_other_sizes():
    from talk2dino.refine import pamr_triton

    for kernel in (pamr_triton._weigh, pamr_triton._average):
        given = {p.name: p.do_not_specialize for p in kernel.params if not p.is_constexpr}
        numbers = [name for name in given if name in pamr_triton._SIZES]
        assert len(numbers) >= 3 and all(given[name] for name in numbers)


def test_images_too_large_for_32_bit_places_are_left_to_the_plain_way():
    from talk2dino.refine.pamr_triton import fits

    assert fits(torch.empty(1, 21, 448, 448, device="meta"))
    assert not fits(torch.empty(1, 700, 2000, 2000, device="meta"))
    assert not fits(torch.empty(2**16, 1, 1, 1, device="meta"))


def test_a_device_on_which_no_kernel_runs_is_said_once(caplog, monkeypatch):
    from talk2dino.refine import pamr_triton

    def fail(*arguments):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(pamr_triton, "pamr_in_kernels", fail)
    device = torch.device("cpu")
    pamr_triton.works.cache_clear()
    with caplog.at_level(logging.INFO):
        assert not pamr_triton.works(device) and not pamr_triton.works(device)
    pamr_triton.works.cache_clear()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "no C compiler" in record.getMessage()


def test_a_full_device_is_no_reason_to_leave_the_kernels(monkeypatch):
    from talk2dino.refine import pamr_triton

    def fail(*arguments):
        raise torch.cuda.OutOfMemoryError("full")

    pamr_triton.works.cache_clear()
    with monkeypatch.context() as patch, pytest.raises(torch.cuda.OutOfMemoryError):
        patch.setattr(pamr_triton, "pamr_in_kernels", fail)
        pamr_triton.works(torch.device("cpu"))
    monkeypatch.setattr(pamr_triton, "pamr_in_kernels", lambda *arguments: None)
    assert pamr_triton.works(torch.device("cpu"))
    pamr_triton.works.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PROBLEMS)
def test_compiled_kernels_equal_the_literal_version(name):
    from talk2dino.refine import pamr_triton

    *shape, iterations, dilations = PROBLEMS[name]
    images, masks = problem(*shape, device="cuda")
    assert pamr_triton.works(masks.device)
    expected = literal_pamr(images.cpu(), masks.cpu(), iterations, dilations)
    ours = pamr(images, masks, iterations, dilations)
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=1e-5)
