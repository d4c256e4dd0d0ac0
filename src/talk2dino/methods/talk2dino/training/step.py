"""The loss of one batch: in one process or shared by several, and as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from talk2dino.methods.talk2dino.alignment import takes
from talk2dino.methods.talk2dino.projection import Projection
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import Batch
from talk2dino.methods.talk2dino.training.distributed import Share, shared_scores

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
        return self._train.loss_of(self._scores(batch, total, generator))

    def _scores(self, batch: Batch, total: int, generator: torch.Generator | None) -> Tensor:
        share = self.share
        if share is None:
            return scores_of(self.model, batch, generator)
        return shared_scores(self.model, batch, lambda own: share.gather(own, total), generator)

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


def scores_of(model: Projection, batch: Batch, generator: torch.Generator | None) -> Tensor:
    """(B, B) scores of a whole batch."""
    scores: Tensor = model(
        batch.visual,
        batch.text,
        **batch.extras,
        visual_is_unit=batch.visual_is_unit,
        generator=generator,
    )
    return scores


class _PlainLoss(nn.Module):
    """(visual, text) to the loss: the form that CUDA graphs want."""

    def __init__(self, model: Projection, train: TrainConfig, visual_is_unit: bool) -> None:
        super().__init__()
        self.model = model
        self._train = train
        self._visual_is_unit = visual_is_unit

    def forward(self, visual: Tensor, text: Tensor) -> Any:
        batch = Batch(visual, text, visual_is_unit=self._visual_is_unit)
        return self._train.loss_of(scores_of(self.model, batch, None))
