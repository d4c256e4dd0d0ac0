"""Devices and number types by name, and what is to be known of them."""

from __future__ import annotations

import functools
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

from talk2dino.config import check_name

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")
AMP_TYPES = ("auto", "bfloat16", "float16", "tf32")
"""Number types of mixed precision; `auto` is bfloat16, on MPS float16. `tf32` is float32 whose
products NVIDIA's GPUs take of numbers with 10 bits behind the point; elsewhere it is float32."""

COMPILER = "inductor"
"""PyTorch's name of what `compile_blocks` compiles with."""

_Method = TypeVar("_Method", bound=Callable[..., Any])
T = TypeVar("T")


def resolve_device(name: str = "auto") -> torch.device:
    """The device a user asked for; on CUDA, float32 then means float32 (see `use_tf32`).

    Args:
        name: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:<index>` or `mps`.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    check_name("device", kind, ("auto", "cpu", "cuda", "mps"))
    if index and not index.isdecimal():
        raise ValueError(f"unknown device {name!r}. Write cuda:0 for the first GPU.")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise ValueError(f"device {name}: PyTorch sees no {kind} device here. Use cpu.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device {name}: this machine has {count} CUDA device(s), from cuda:0.")
    if kind == "cuda":
        use_tf32(False)
    return torch.device(name)


def use_tf32(wanted: bool) -> None:
    """Whether CUDA's matrix products and convolutions of float32 may be taken in TF32.

    PyTorch's own default is no for products and yes for convolutions.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted


@contextmanager
def _tf32() -> Iterator[None]:
    use_tf32(True)
    try:
        yield
    finally:
        use_tf32(False)


def resolve_dtype(name: str) -> torch.dtype:
    """`float32`, `float16` or `bfloat16` as a torch dtype."""
    import torch

    dtype = getattr(torch, check_name("dtype", name, DTYPES))
    assert isinstance(dtype, torch.dtype)
    return dtype


def mixed_precision(amp: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to a name of `AMP_TYPES`; without one, float32 throughout, whatever is around it.

    Matrix products and attention run in that type; norms, softmax and sums stay in float32.
    """
    import torch

    if amp == "tf32":
        return _tf32()
    if not amp:
        around = torch.is_autocast_enabled(device.type)
        return torch.autocast(device.type, enabled=False) if around else nullcontext()
    automatic = "float16" if device.type == "mps" else "bfloat16"
    dtype = resolve_dtype(automatic if amp == "auto" else check_name("amp", amp, AMP_TYPES))
    return torch.autocast(device.type, dtype=dtype)


def in_float32(method: _Method) -> _Method:
    """A method without gradients, and without its caller's autocast; needs `self.device`."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **settings: Any) -> Any:
        import torch

        with torch.no_grad(), mixed_precision("", self.device):
            return method(self, *args, **settings)

    return cast(_Method, run)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 in here, also for a caller of `torch.set_default_dtype`."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def keep_float32(
    self: Any, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> Any:
    """As `_apply` of a module: it can be moved, but half(), double(), type() and to() refuse."""
    import torch

    if (dtype := fn(torch.zeros(1, dtype=torch.float32)).dtype) is not torch.float32:
        raise ValueError(f"dtype={dtype} is not supported: weights are float32.")
    return torch.nn.Module._apply(self, fn, recurse)


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where PyTorch cannot compile for a device; compiles nothing."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    found = {
        "cpu": any(map(shutil.which, filter(None, names))),
        "cuda": find_spec("triton") is not None,
    }
    if not found.get(device.type):
        raise ValueError(
            f"--compile on {device} needs a C++ compiler (g++) on a CPU, or the package triton on "
            "an NVIDIA GPU. Leave it out."
        )


def compile_blocks(blocks: Iterable[torch.nn.Module]) -> None:
    """Compile each block of a backbone when it runs first; they share one program per shape."""
    for block in blocks:
        block.compile(backend=COMPILER)


class Fetched:
    """Tensors on their way to main memory: begun at once, waited for when they are read.

    Args:
        tensors: of one device. A GPU copies them when it has done what it was given before.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        if not tensors or tensors[0].device.type != "cuda":
            self._copies = [tensor.cpu() for tensor in tensors]
            return
        import torch

        # To pinned memory, whose blocks PyTorch uses again.
        blocks = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors
        ]
        pairs = zip(blocks, tensors, strict=True)
        self._copies = [block.copy_(tensor, non_blocking=True) for block, tensor in pairs]
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def read(self) -> list[torch.Tensor]:
        """The copies, in order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies


def one_behind(begun: Iterable[Callable[[], T]], device: torch.device) -> Iterator[T]:
    """The ends of what was begun, in order; on CUDA each when the next has been begun, too.

    So the GPU has work while what it did before is waited for and stored.
    """
    waiting: deque[Callable[[], T]] = deque()
    for end in begun:
        waiting.append(end)
        if len(waiting) > (device.type == "cuda"):
            yield waiting.popleft()()
    for end in waiting:
        yield end()
