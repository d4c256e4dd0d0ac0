"""How the items of one split are divided over processes: contiguous ranges of whole batches.

Batches are the same ones that a single process would make, so that the numbers are the same too.
Work that a different number of processes began is divided anew from where each range stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """Positions of the processing order that one process works on."""

    start: int
    """The first."""
    stop: int
    """Behind the last."""


def divided(
    standing: Sequence[tuple[Range, int]], count: int, batch_size: int, costs: Tensor
) -> list[Range]:
    """Ranges of which at least `count` have work left, if there are so many batches.

    Args:
        standing: the ranges so far, in order, each with the position up to which it is done.
        count: processes.
        batch_size: positions per batch; new ranges begin at whole batches of the old one.
        costs: (N,) what each position takes, in any unit.

    Returns:
        Ranges of the same positions, in order. One that is divided keeps what it has done.
    """
    until = torch.cat([torch.zeros(1), costs.double().cumsum(0)])  # (N + 1,) before each position
    left = [float(until[whole.stop] - until[min(done, whole.stop)]) for whole, done in standing]
    pieces = [int(cost > 0) for cost in left]
    while 0 < sum(pieces) < count:
        shares = [cost / max(number, 1) for cost, number in zip(left, pieces, strict=True)]
        pieces[shares.index(max(shares))] += 1
    ranges = []
    for (whole, done), number in zip(standing, pieces, strict=True):
        if number < 2:
            ranges.append(whole)
            continue
        cuts = _cuts(Range(done, whole.stop), number, batch_size, until)
        bounds = sorted({whole.start, *([done] if done > whole.start else []), *cuts, whole.stop})
        ranges += [Range(*pair) for pair in itertools.pairwise(bounds)]
    return ranges


def _cuts(whole: Range, number: int, batch_size: int, until: Tensor) -> list[int]:
    """Where `whole` is cut into pieces of about equal cost; may be fewer than asked for."""
    first, last = float(until[whole.start]), float(until[whole.stop])
    wanted = [first + (last - first) * part / number for part in range(1, number)]
    positions = torch.searchsorted(until, torch.tensor(wanted, dtype=until.dtype))
    batches = [round((int(position) - whole.start) / batch_size) for position in positions]
    cuts = [whole.start + batch * batch_size for batch in batches]
    return [cut for cut in cuts if whole.start < cut < whole.stop]
