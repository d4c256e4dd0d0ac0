"""The projectors into the space where images and texts meet.

Their batches are those of all processes: gradients pass through the collectives, so that several
processes train like one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


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
    world, before = num_processes(), process_rank() * len(rows)
    behind = world * len(rows) - before - len(rows)
    return sum_over_processes(F.pad(rows, (0, 0, before, behind))) if world > 1 else rows


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
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of all processes together.

    It computes what `torch.nn.SyncBatchNorm` does, which only runs on accelerators, on any device.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, T) over B, T and the processes."""
        if not self.training or num_processes() == 1:
            return super().forward(input)
        x = input.float()
        own = torch.stack([x.new_tensor(x.shape[0] * x.shape[2])]).expand(1)
        sums = sum_over_processes(torch.cat([x.sum(dim=(0, 2)), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean[:, None]
        variance = sum_over_processes(centred.square().sum(dim=(0, 2))) / count
        self._track(mean.detach(), variance.detach(), count)
        normalised = centred * (variance + self.eps).rsqrt()[:, None]
        return (normalised * self.weight[:, None] + self.bias[:, None]).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; the running variance is the unbiased one."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)


class Projector(nn.Module):
    """Linear, batch norm, ReLU, linear; nothing is normalised to unit length here.

    The linear layers are stored as convolutions of width 1, as published.

    Args:
        width: of the input.
        hidden: of the layer between.
        out: of the joint space.
        shared: take batch statistics over all processes; the bridge's are per process.
    """

    def __init__(self, width: int, hidden: int, out: int, shared: bool = True) -> None:
        super().__init__()
        norm = SharedBatchNorm(hidden) if shared else nn.BatchNorm1d(hidden)
        self.linear_hidden = nn.Sequential(nn.Conv1d(width, hidden, 1), norm, nn.ReLU())
        self.linear_out = nn.Conv1d(hidden, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, D), or (B, T, C) to (B, T, D); statistics are over B, or B and T."""
        columns = x[:, :, None] if x.ndim == 2 else x.transpose(1, 2)  # (B, C, T)
        projected = self.linear_out(self.linear_hidden(columns))
        return projected[:, :, 0] if x.ndim == 2 else projected.transpose(1, 2)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1, in float32."""
    return F.normalize(x.float(), dim=-1)
