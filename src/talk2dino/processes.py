"""Several processes on one job: `torch.distributed.run` started them, gloo connects them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from talk2dino.config import environment_number
from talk2dino.devices import resolve_device

# A rank waits for the slowest one; an evaluation or an extraction takes hours.
_PATIENCE = timedelta(days=7)
# NCCL does not see that another process died; between two steps nobody needs so long.
_PATIENCE_OF_A_STEP = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process among its equals."""

    rank: int = 0
    """Number of this one; 0 writes what all have made."""
    count: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number on this machine, which chooses the GPU."""

    group: Any = None
    """What connects them."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of process 0, in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: on CUDA machines, each has its own GPU."""
        if str(device) == "cuda" and self.count > 1:
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device


@contextmanager
def joined_processes(device: str = "cpu") -> Iterator[Processes]:
    """Join the group that `torch.distributed.run` describes, if it started this process.

    Args:
        device: as `resolve_device` takes it: where the tensors are that the processes send. They go
            by NCCL if every process has a GPU of its own, else by gloo; objects always do.
    """
    count, local = environment_number("WORLD_SIZE", 1, least=1), environment_number("LOCAL_RANK", 0)
    if count == 1:
        yield Processes()
        return
    environment_number("MASTER_PORT", 0)
    unset = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if unset or environment_number("RANK", 0) >= count:  # else torch would wait, for half an hour
        what = f"{unset[0]} is not set" if unset else f"RANK is {os.environ['RANK']}"
        raise ValueError(
            f"the environment variable WORLD_SIZE is {count}, but {what}. Unset WORLD_SIZE, or "
            "start with python -m torch.distributed.run."
        )
    own = resolve_device(device) == torch.device("cuda")
    own = own and environment_number("LOCAL_WORLD_SIZE", 1) <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if own and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE_OF_A_STEP)
    try:
        rank = dist.get_rank()
        group = dist.new_group(timeout=_PATIENCE, backend="gloo")
        yield Processes(rank, dist.get_world_size(), local, group)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(
            f"another process of this job ended and says why. Here: {said}"
        ) from error
    finally:
        dist.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process is the one that prints, before or after it joined the others."""
    return environment_number("RANK", 0) == 0


def num_processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def gather_rows(rows: Tensor, total: int | None = None) -> Tensor:
    """The rows (b, ...) of every process in rank order: (total, ...), divided as by `tensor_split`.

    By default b is equal everywhere. Rows beyond this process's part do not count. The gradient of
    a row is the sum of its gradients in all processes; see `average_gradients`.
    """
    world, rank = num_processes(), process_rank()
    if world == 1:
        return rows
    total = world * len(rows) if total is None else total
    sizes = [len(part) for part in torch.empty(total).tensor_split(world)]
    before, own = sum(sizes[:rank]), rows[: sizes[rank]]
    around = (*(0, 0) * (rows.ndim - 1), before, total - before - len(own))
    return sum_over_processes(F.pad(own, around))


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; gradients are summed likewise."""
    return _Sum.apply(value) if num_processes() > 1 else value


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes: with the same loss of `gather_rows` in
    each, what one process with all rows would have.

    A parameter without a gradient has none in any process: they compute the same losses.
    """
    world = num_processes()
    for parameter in parameters if world > 1 else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
