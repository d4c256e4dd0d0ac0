"""Where weights come from: a download, a file, or names alone, so that all runs without either.

`seeded:<n>` in place of a weights file means: every tensor of the checkpoint, under its official
name and shape, is drawn from a generator seeded with n and the checksum of that name.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from talk2dino.config import reason

PRETRAINED = "pretrained"
PREFIX = "seeded:"


def default_weights(name: str) -> str:
    """`pretrained`, or `seeded:0` for a toy."""
    return f"{PREFIX}0" if name.startswith(("toy", "dino_toy")) else PRETRAINED


def check_weights(kind: str, name: str, weights: str | None) -> None:
    """Raise for weights of a model that cannot be there; `kind` is what messages call it."""
    weights = weights or default_weights(name)
    if weights == PRETRAINED:
        if default_weights(name) != PRETRAINED:
            raise ValueError(f"the toy {kind} model has no pretrained weights. Use seeded:<n>.")
    elif parse_seeded(weights) is None and not Path(weights).is_file():
        raise FileNotFoundError(
            f"no {kind} weights at {weights!r}. Give a file, 'pretrained' or 'seeded:<n>'."
        )


def require_transformers(what: str) -> None:
    """Raise ImportError, with what to do, where the library that `what` needs is missing."""
    if find_spec("transformers") is None:
        raise ImportError(f"{what} needs transformers: pip install transformers")


@contextmanager
def transformers_loading(what: str, name: str) -> Iterator[None]:
    """Raise RuntimeError for a model that transformers cannot load or download; names it."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"could not load the {what} {name!r} ({reason(error)}). "
            "Give the path of a local folder that holds it."
        ) from error


def parse_seeded(weights: str | None) -> int | None:
    """The n of `seeded:<n>`, or None if `weights` is something else.

    Raises:
        ValueError: `seeded:` is followed by something that is no non-negative integer.
    """
    if weights is None or not weights.startswith(PREFIX):
        return None
    number = weights[len(PREFIX) :]
    if not number.isdecimal():
        raise ValueError(f"{weights!r}: an integer >= 0 must follow 'seeded:', as in seeded:0")
    return int(number)


def seeded_state(seed: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors for a whole checkpoint: official name -> official shape in, name -> tensor out."""
    return {name: seeded_tensor(seed, name, shape) for name, shape in shapes.items()}


def seeded_tensor(seed: int, name: str, shape: Sequence[int]) -> Tensor:
    """One float32 tensor of a checkpoint.

    Args:
        seed: the n of `seeded:<n>`.
        name: the tensor's full key in its official checkpoint.
        shape: its official shape.
    """
    if name.split(".")[-1] == "logit_scale":
        return torch.tensor(math.log(1 / 0.07))
    generator = np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])
    values = generator.standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) >= 2:
        fan = shape[-1] if shape[0] == 1 else math.prod(shape[1:])
        values = values / np.float32(math.sqrt(fan))
    elif len(shape) == 1:
        values = values * np.float32(0.02)
        if _is_scale(name):
            values = values + np.float32(1)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _is_scale(name: str) -> bool:
    """Whether a vector multiplies (LayerScale gamma, norm weight) and so is centred at 1."""
    *parents, last = name.split(".")
    if last.startswith("gamma"):
        return True
    is_norm = any(p.startswith(("norm", "ln_")) or p.endswith("norm") for p in parents)
    return last == "weight" and is_norm
