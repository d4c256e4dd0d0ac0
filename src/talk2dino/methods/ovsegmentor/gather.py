"""Collectives that gradients pass through, so that several processes train like one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (B, D) of every process in rank order, (W B, D); B must be equal everywhere.

    The gradient of a row is the sum of its gradients in all processes. Averaged over processes,
    as DistributedDataParallel does, parameters get the gradient of one process with all rows.
    """
    return _Gather.apply(rows) if num_processes() > 1 else rows


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; gradients are summed likewise."""
    return _Sum.apply(value) if num_processes() > 1 else value


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(num_processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # gloo has no reduce-scatter: sum all, keep the own part.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(num_processes())[process_rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total
