"""The loss of one batch: in one process or shared by several, and as one CUDA graph.

Of several processes each embeds its share, computes the loss of the whole batch from the gathered
embeddings, and from it the gradients that go through its own share. Their sum over the processes is
the gradient that a single process would have computed with the whole batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from talk2dino.methods.talk2dino.alignment import takes
from talk2dino.methods.talk2dino.projection import Projection
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import Batch
from talk2dino.processes import Processes


class Share:
    """The part of every batch that is this process's.

    Args:
        processes: this process and its equals.
        device: of the embeddings and gradients.
    """

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self.count, self.rank = processes.count, processes.rank
        self._group = processes.tensor_group(device)

    def own(self, index: Tensor) -> Tensor:
        """This process's part of the captions of a batch, of which there may be any number.

        Where there are fewer captions than processes, some embed the first one and do not count.
        """
        part = index.tensor_split(self.count)[self.rank]
        return part if len(part) else index[:1]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """(b, ...) of this process to (total, ...) of all in order; gradients go to its own."""
        sizes = [len(part) for part in torch.empty(total).tensor_split(self.count)]
        gathered: Tensor = _Gather.apply(own, sizes, self.rank, self._group)  # type: ignore[no-untyped-call]
        return gathered

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes."""
        found = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in found])
        dist.all_reduce(flat, group=self._group)
        for gradient, total in zip(found, flat.split([g.numel() for g in found]), strict=True):
            gradient.copy_(total.view_as(gradient))


class _Gather(torch.autograd.Function):
    """The rows of all processes; the gradient is the part of this process, not summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], rank: int, group: Any) -> Tensor:
        """(b, ...) to (sum of sizes, ...); rows of `own` beyond its size do not count."""
        ctx.rows, ctx.size = len(own), sizes[rank]
        ctx.start = sum(sizes[:rank])
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: ctx.size] = own[: ctx.size]
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """The rows of this process."""
        own = gradient.new_zeros((ctx.rows, *gradient.shape[1:]))
        own[: ctx.size] = gradient[ctx.start : ctx.start + ctx.size]
        return own, None, None, None


logger = logging.getLogger(__name__)


class BatchLoss:
    """Computes the loss of batches.

    Args:
        model: the projection.
        train: which loss, with its settings.
        share: this process's part of every batch; None if it is the only one.
        capture: record forward and backward of full batches as a CUDA graph and replay it, where
            that is possible: a step is then one launch instead of some sixty.
    """

    def __init__(
        self,
        model: Projection,
        train: TrainConfig,
        share: Share | None = None,
        capture: bool = False,
    ) -> None:
        self.model = model
        self.share = share
        self.draws = takes(model.config.alignment_strategy, "generator")
        self._train = train
        self._capture = capture and share is None and not self.draws
        self._captured: Callable[..., Any] | None = None

    def __call__(self, batch: Batch, total: int, generator: torch.Generator | None) -> Tensor:
        """The loss, a scalar with a gradient.

        Args:
            batch: this process's share.
            total: captions of the whole batch.
            generator: randomness of strategies that draw.
        """
        if self._capture and torch.is_grad_enabled() and total == self._train.batch_size:
            loss = self._replayed(batch)
            if loss is not None:
                return loss
        gather = None
        if (share := self.share) is not None:
            gather = partial(share.gather, total=total)
        scores = self.model(
            batch.visual,
            batch.text,
            **batch.extras,
            visual_is_unit=batch.visual_is_unit,
            generator=generator,
            gather=gather,
        )
        return self._train.loss_of(scores)

    def _replayed(self, batch: Batch) -> Tensor | None:
        """The loss by the graph, recorded when first needed; None if it cannot be."""
        if batch.extras:
            return None
        if self._captured is None:
            plain = _PlainLoss(self.model, self._train, batch.visual_is_unit)
            example = (batch.visual.clone(), batch.text.clone())
            try:
                # What is launched on another GPU than the current one would not be recorded.
                with torch.cuda.device_of(batch.visual):
                    captured: Any = torch.cuda.make_graphed_callables(plain, example)
                self._captured = captured
            except RuntimeError as error:
                logger.warning("no CUDA graph, every step is launched op by op: %s", error)
                self._capture = False
                return None
        assert self._captured is not None
        loss: Tensor = self._captured(batch.visual, batch.text)
        return loss.clone()  # the next replay writes into the same memory


class _PlainLoss(nn.Module):
    """(visual, text) to the loss: the form that CUDA graphs want."""

    def __init__(self, model: Projection, train: TrainConfig, visual_is_unit: bool) -> None:
        super().__init__()
        self.model, self._train, self._visual_is_unit = model, train, visual_is_unit

    def forward(self, visual: Tensor, text: Tensor) -> Any:
        scores = self.model(visual, text, visual_is_unit=self._visual_is_unit)
        return self._train.loss_of(scores)
