"""The training loop of a projection: frozen features, one process or several.

Of several processes each embeds its share, computes the loss of the whole batch from the gathered
embeddings, and the gradients. Their mean over the processes is the gradient that a single process
would have computed with the whole batch. On a GPU the loss is a CUDA graph.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from talk2dino.config import check_at_least, check_between, check_name
from talk2dino.methods.talk2dino.alignment import selected_heads, takes
from talk2dino.methods.talk2dino.projection import Projection
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import Batch, StoredPairs
from talk2dino.methods.talk2dino.training.retrieval import RankSummary
from talk2dino.processes import Processes, average_gradients, gather_rows, num_processes
from talk2dino.training.run import Run, epoch_order, step_seed

logger = logging.getLogger(__name__)

SCHEDULERS = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """Learning rate per optimiser step, counted from 0 over all epochs (section 6)."""

    name: str = "linear"
    """`linear`: constant after the warm-up. `cosine`: falls to 0 over the steps that remain."""
    base_lr: float = 1e-4
    """The learning rate that the warm-up ends at."""
    warmup: int = 0
    """Steps of the linear rise from base_lr / warmup; 0 starts at base_lr."""
    total_steps: int = 1
    """Steps of the whole training; only the cosine needs it."""

    def __post_init__(self) -> None:
        check_name("scheduler", self.name, SCHEDULERS)
        check_at_least(0, warmup=self.warmup)
        if self.name == "cosine" and self.warmup >= self.total_steps:
            raise ValueError(
                f"--warmup {self.warmup} leaves nothing for the cosine: "
                f"the whole training has {self.total_steps} steps"
            )

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update number `step`, the first being 0."""
        if step < self.warmup:
            return self.base_lr * (step + 1) / self.warmup
        if self.name == "linear":
            return self.base_lr
        progress = (step - self.warmup) / (self.total_steps - self.warmup)
        return self.base_lr * 0.5 * (1 + math.cos(math.pi * progress))


OPTIMIZERS = ("Adam", "AdamW")


@dataclass(frozen=True)
class LoopSettings:
    """Everything besides the data and the model that the final weights depend on."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Loss, learning rate, epochs and batches: the recipe's train section."""
    optimizer: str = "Adam"
    """AdamW with `weight_decay`, or Adam without."""
    weight_decay: float = 0.05
    """AdamW only."""
    scheduler: str = "linear"
    """linear (constant after the warm-up) or cosine (falls to 0)."""
    warmup: int = 0
    """Steps of linear warm-up."""
    seed: int = 123
    """Seeds the first weights, the order of every epoch, and sampled heads."""

    def __post_init__(self) -> None:
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        Schedule(self.scheduler, self.train.lr, self.warmup, total_steps=self.warmup + 1)
        check_between(0, 10**6, weight_decay=self.weight_decay)
        check_at_least(0, seed=self.seed)


class TrainingRun(Run):
    """The training of one projection.

    Args:
        model: the projection; trained in place, on the device of the pairs.
        pairs: training captions and images.
        validation: the same for the validation loss, or None.
        settings: see LoopSettings.
        processes: this process and its equals, which divide every batch; each has all pairs and
            the same weights.
    """

    model: Projection
    columns = ("train_loss",)
    losses = ("train_loss", "val_loss")
    advice = "Try a lower learning rate, or look for such values in the features."
    look_every = 50

    def __init__(
        self,
        model: Projection,
        pairs: StoredPairs,
        validation: StoredPairs | None,
        settings: LoopSettings,
        processes: Processes | None = None,
    ) -> None:
        train = settings.train
        steps = math.ceil(len(pairs) / train.batch_size)
        optimizer = make_optimizer(model, settings)
        super().__init__(model, optimizer, train.num_epochs, steps, processes)
        self.curves = {"train_loss": "loss/train", "val_loss": "loss/validation"}
        self.curves["learning_rate"] = "learning_rate"
        self.pairs = pairs
        self.validation = validation
        self.settings = settings
        self.keeps_best = train.save_best_model
        self.heads: Tensor | None = None
        """(M,) head chosen for each caption in the last epoch, -1 before; None: not recorded."""
        self.test: StoredPairs | None = None
        self.retrieval: dict[str, RankSummary] = {}
        """Of the final weights on the test set, once they are there."""
        self.device = self.parameters[0].device
        self.loss = BatchLoss(model, train, self.device.type == "cuda")
        schedule = Schedule(settings.scheduler, train.lr, settings.warmup, steps * self.epochs)
        self.schedule = schedule.learning_rate
        self._generator = torch.Generator(self.device)

    def own_state(self) -> dict[str, Any]:
        """The heads chosen so far, of all processes."""
        return {"heads": self.heads}

    def go_on(self, saved: Mapping[str, Any]) -> None:
        if saved["heads"] is not None:
            self.heads = saved["heads"]

    def batches(self) -> Iterator[tuple[Tensor, Batch]]:
        """The captions of each batch, and this process's share of their features."""
        state, train = self.state, self.settings.train
        order = epoch_order(len(self.pairs), self.settings.seed, state.epoch, train.shuffle)
        indices = order.split(train.batch_size)[state.step :]
        return zip(indices, self.pairs.batches(self._own(indices)), strict=True)

    def take(self, batch: tuple[Tensor, Batch], step: int) -> Tensor:
        index, own = batch
        if self.heads is not None and self.state.epoch == self.epochs - 1:
            with torch.no_grad():  # before the step's update
                heads = selected_heads(*self.model.embed(own.visual, own.text, **own.extras))
            self.heads[index] = gather_rows(heads, len(index)).cpu()
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(own, len(index), self._seeded(step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parameters)
        self.optimizer.step()
        return loss.detach().view(1)

    def judge(self) -> float | None:
        """Mean loss over the validation batches, in the order of the file."""
        if self.validation is None:
            return None
        indices = torch.arange(len(self.validation)).split(self.settings.train.batch_size)
        self.model.eval()
        with torch.no_grad():
            losses = [
                self.loss(batch, len(indices[step]), self._seeded(step))
                for step, batch in enumerate(self.validation.batches(self._own(indices)))
            ]
        self.model.train()
        return math.fsum(torch.stack(losses).tolist()) / len(losses)

    def _own(self, indices: Sequence[Tensor]) -> Sequence[Tensor]:
        """What this process embeds of each batch."""
        # Where there are fewer captions than processes, some embed one that does not count.
        parts = [i.tensor_split(self.processes.count)[self.processes.rank] for i in indices]
        return [part if len(part) else i[:1] for part, i in zip(parts, indices, strict=True)]

    def _seeded(self, step: int) -> torch.Generator:
        """The generator of one step, so that a resumed run draws what the first would have."""
        if not self.loss.draws:
            return self._generator
        return self._generator.manual_seed(step_seed(self.settings.seed, self.state.epoch, step))


def make_optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """Adam with betas (0.9, 0.999) and eps 1e-8, or AdamW: the loss is divided by B^2, so the
    gradients come close to eps and the division is part of the recipe (section 6)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # One kernel over all parameters: the same arithmetic, fewer launches.
    fused = parameters[0].device.type in ("cpu", "cuda")
    decay = {"weight_decay": settings.weight_decay} if settings.optimizer == "AdamW" else {}
    kind = getattr(torch.optim, settings.optimizer)
    return kind(parameters, lr=settings.train.lr, fused=fused, **decay)


class BatchLoss:
    """Computes the loss of batches.

    Args:
        model: the projection.
        train: which loss, with its settings.
        capture: record forward and backward of full batches as a CUDA graph and replay it, where
            that is possible: a step is then one launch instead of some sixty.
    """

    def __init__(self, model: Projection, train: TrainConfig, capture: bool = False) -> None:
        self.model = model
        self.draws = takes(model.config.alignment_strategy, "generator")
        self._train = train
        self._capture = capture and num_processes() == 1 and not self.draws
        self._captured: Callable[..., Any] | None = None

    def __call__(self, batch: Batch, total: int, generator: torch.Generator | None) -> Tensor:
        """The loss, a scalar with a gradient.

        Args:
            batch: this process's share.
            total: captions of the whole batch.
            generator: randomness of strategies that draw.
        """
        full = total == self._train.batch_size and not batch.extras.keys() - {"visual_is_unit"}
        if self._capture and full and torch.is_grad_enabled():
            if self._captured is None:
                self._captured = self._recorded(batch)
            loss: Tensor = self._captured(batch.visual, batch.text)
            return loss.clone()  # the next replay writes into the same memory
        given = {**batch.extras, "generator": generator, "total": total}
        return self._train.loss_of(self.model(batch.visual, batch.text, **given))

    def _recorded(self, batch: Batch) -> Callable[..., Any]:
        """A graph of the loss of such a batch, or what computes it plainly."""
        plain = _PlainLoss(self.model, self._train, batch.extras)
        example = (batch.visual.clone(), batch.text.clone())
        try:
            # What is launched on another GPU than the current one would not be recorded.
            with torch.cuda.device_of(batch.visual):
                graph: Callable[..., Any] = torch.cuda.make_graphed_callables(plain, example)
                return graph
        except RuntimeError as error:
            logger.warning("no CUDA graph, every step is launched op by op: %s", error)
            return plain


class _PlainLoss(nn.Module):
    """(visual, text) to the loss: the form that CUDA graphs want."""

    def __init__(self, model: Projection, train: TrainConfig, extras: dict[str, Any]) -> None:
        super().__init__()
        self.model, self._train, self._extras = model, train, extras

    def forward(self, visual: Tensor, text: Tensor) -> Any:
        return self._train.loss_of(self.model(visual, text, **self._extras))
