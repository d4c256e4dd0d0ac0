"""Names of devices and number types, checked before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talk2dino.config import check_name

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")


def resolve_device(name: str = "auto") -> torch.device:
    """The device a user asked for.

    Args:
        name: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:<index>` or `mps`.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    check_name("device", kind, ("auto", "cpu", "cuda", "mps"))
    if index and not index.isdecimal():
        raise ValueError(f"unknown device {name!r}. Write cuda:0 for the first GPU.")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise ValueError(f"--device {name}: PyTorch sees no {kind} device here. Use --device cpu.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"--device {name}: this machine has {count} CUDA device(s), from cuda:0.")
    return torch.device(name)


def resolve_dtype(name: str) -> torch.dtype:
    """`float32`, `float16` or `bfloat16` as a torch dtype."""
    import torch

    dtype = getattr(torch, check_name("dtype", name, DTYPES))
    assert isinstance(dtype, torch.dtype)
    return dtype
