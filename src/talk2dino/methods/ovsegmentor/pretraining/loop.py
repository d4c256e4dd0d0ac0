"""The pretraining loop: epochs of optimiser steps, in one process or several."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.devices import mixed_precision
from talk2dino.files import load_torch, save_torch
from talk2dino.methods.ovsegmentor.data.samples import (
    Collate,
    EpochBatches,
    FailureLog,
    LoadedBatch,
    PretrainingSamples,
    Transform,
    make_loader,
    open_rows,
    whole_image,
)
from talk2dino.methods.ovsegmentor.data.words import CaptionReader, find_lemmas, get_lemma
from talk2dino.methods.ovsegmentor.losses import infonce
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.config import PretrainingData, PretrainingRecipe
from talk2dino.methods.ovsegmentor.pretraining.step import (
    VALUES,
    PretrainingStep,
    make_schedule,
    step_seed,
)
from talk2dino.methods.ovsegmentor.text import Tokenizer
from talk2dino.processes import Processes
from talk2dino.training.history import Record
from talk2dino.training.run import Hooks, Run, RunState, StateFile, weights_on_cpu

KIND = "talk2dino unfinished OVSegmentor pretraining"
_OWN = "bridge_projector."


def open_samples(
    recipe: PretrainingRecipe,
    data: PretrainingData,
    transform: Transform,
    tokenizer: Tokenizer,
    pairs: bool = False,
) -> PretrainingSamples:
    """Some captions of a recipe with their pictures.

    Raises:
        FileNotFoundError, ValueError: see `open_rows`; also a tokeniser without a mask token.
    """
    mask = tokenizer.tokenizer.mask_token
    if mask is None:
        raise ValueError("the tokeniser has no mask token, which questions need. Use a BERT's.")
    reader = CaptionReader(get_lemma(find_lemmas(data.lemmas)), recipe.compat, mask, data.table)
    rows = open_rows(data.metafile, Path(data.images), reader, pairs)
    return PretrainingSamples(rows, reader, transform, recipe.train.seed, pairs)


class HeldOut:
    """The image-caption loss of held-out captions, which are neither trained on nor reported.

    Whole, unchanged images, and the same batches every time. Only what segmentation uses is judged;
    the entity decoder is not.

    Args:
        recipe: its selection section has a metafile.
        tokenizer: of the model's text encoder.
        processes: this process and its equals, which divide every batch.
        workers: processes that read images.

    Raises:
        ValueError: there are fewer captions than processes; see also `open_samples`.
    """

    def __init__(
        self, recipe: PretrainingRecipe, tokenizer: Tokenizer, processes: Processes, workers: int
    ) -> None:
        self.recipe, self.processes, chosen = recipe, processes, recipe.selection
        assert chosen.metafile is not None
        data = dataclasses.replace(recipe.data, metafile=chosen.metafile, images=chosen.images)
        samples = open_samples(recipe, data, whole_image(recipe.augment.size), tokenizer)
        rank, world = processes.rank, processes.count
        if len(samples) < world:
            raise ValueError(
                f"selection: metafile: {chosen.metafile} holds {len(samples)} captions that can be "
                f"used; at least {world} are needed, one for each process"
            )
        size = min(chosen.batch_size, len(samples) // world)
        self.batches = EpochBatches(len(samples), size, 0, rank, world)
        collate = Collate(tokenizer, recipe.train.text_length)
        self.loader = make_loader(samples, self.batches, collate, workers)

    @torch.no_grad()
    def loss(self, model: OVSegmentor) -> float:
        """Mean InfoNCE over the batches and processes; the model's mode is put back.

        Raises:
            RuntimeError: in every process, if an image could not be read in any of them: epochs
                could not be compared.
        """
        training = model.training
        model.eval()
        losses, failures = [], []
        self.batches.start_at(0)
        for batch in self.loader:
            failures += batch.failures
            inputs = batch.inputs.to(model.device)
            with mixed_precision(self.recipe.train.amp or "", model.device):
                images = model.encode_images(inputs.images)
                captions = model.encode_texts(inputs.captions)
            losses.append(infonce(images.embedding, captions.embedding, model.scale))
        model.train(training)
        every = self.processes.gather((torch.stack(losses).mean().item(), failures[:1]))
        for _, failed in every:
            for name, reason in failed:
                raise RuntimeError(f"a held-out image: {name}: {reason}")
        return math.fsum(loss for loss, _ in every) / self.processes.count


@dataclass
class Progress(RunState, FailureLog):
    """Where one process of a run stands, and which of its images could not be read."""

    sums: list[float] = field(default_factory=lambda: [0.0] * len(VALUES))
    """Sums of `VALUES` over the complete steps of the epoch under way."""
    lost: str = ""
    """What all processes could not read, in one line; known when the run is complete."""


def own_statistics(model: OVSegmentor) -> dict[str, Tensor]:
    """The running statistics that differ between processes: the bridge's, as published."""
    return {name: buffer.cpu() for name, buffer in model.named_buffers() if name.startswith(_OWN)}


class PretrainingRun(Run):
    """One stage of pretraining.

    Args:
        model: with its first weights, on its device, the same in every process; it is trained.
        recipe: everything else that the result depends on.
        samples: training samples, the same in every process.
        collate: makes batches of them.
        held_out: chooses the epoch; None keeps the last one.
        processes: this process and its equals, which divide every step.
        workers: processes that read images.
    """

    model: OVSegmentor
    state: Progress
    kind = KIND
    advice = "Try a lower base_lr, or float32 (amp: null)."
    losses = ("matching", "held_out")
    judged_by = "held-out"

    def __init__(
        self,
        model: OVSegmentor,
        recipe: PretrainingRecipe,
        samples: PretrainingSamples,
        collate: Collate,
        held_out: HeldOut | None = None,
        processes: Processes | None = None,
        workers: int = 0,
    ) -> None:
        self.recipe, self.held_out, self.collate = recipe, held_out, collate
        processes = processes or Processes()
        train, rank, world = recipe.train, processes.rank, processes.count
        self.order = EpochBatches(len(samples), train.batch_size, train.seed, rank, world)
        steps = self.order.steps // train.accumulate
        if not steps:
            raise ValueError(
                f"{len(samples)} samples are fewer than one step takes "
                f"({world} x {train.accumulate} x {train.batch_size})"
            )
        super().__init__(model, Progress(), train.epochs, steps, processes)
        self.look_every = self.save_every = train.log_every
        self.saves_together = world > 1
        pinned = model.device.type == "cuda"
        self.loader = make_loader(samples, self.order, collate, workers, pinned)
        self.step = PretrainingStep(model, recipe)
        self.schedule = make_schedule(train, world, steps)

    def keep(self, best: StateFile | None) -> None:
        """In a file of their own."""
        if best is not None and best.best is not None:
            save_torch(weights_on_cpu(self.model), best.best)

    def kept(self, keeper: StateFile | None) -> dict[str, Tensor]:
        """The final weights, or those of the best epoch with held-out captions."""
        if keeper is None or keeper.best is None or self.state.best_epoch is None:
            return dict(self.model.state_dict())
        best: dict[str, Tensor] = load_torch(keeper.best)
        return best

    def snapshot(self) -> dict[str, Any]:
        """The weights of the first process; of each, how far it is and what is not shared."""
        parts = self.processes.gather((asdict(self.state), own_statistics(self.model)))
        progress, own = [list(column) for column in zip(*parts, strict=True)]
        weights = dict(self.model.state_dict())
        return {"progress": progress, "weights": weights, "own": own, "step": self.step.state()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """See Run."""
        rank = self.processes.rank
        self.state = Progress(**snapshot["progress"][rank])
        self.model.load_state_dict({**snapshot["weights"], **snapshot["own"][rank]})
        self.step.restore(snapshot["step"])

    def batches(self) -> Iterator[list[LoadedBatch]]:
        """The micro-batches of each step."""
        accumulate = self.recipe.train.accumulate
        self.order.start_at(self.state.epoch, self.state.step * accumulate)
        loaded = iter(self.loader)
        while True:
            yield [self._next(loaded) for _ in range(accumulate)]

    def _next(self, loaded: Iterator[LoadedBatch]) -> LoadedBatch:
        batch = next(loaded)
        self.state.add(batch.failures, len(batch.inputs.images))
        return batch

    def take(self, batch: list[LoadedBatch], step: int) -> Tensor:
        """One optimiser step; returns `VALUES`."""
        seed, epoch, rank = self.recipe.train.seed, self.state.epoch, self.processes.rank
        inputs = [micro.inputs.to(self.model.device) for micro in batch]
        seeds = [step_seed(seed, epoch, step, i, rank) for i in range(len(inputs))]
        return self.step(inputs, seeds, self.learning_rate(step))

    def note(self, values: list[list[float]], hooks: Hooks) -> None:
        """Average the values over all processes, check, add and show them."""
        first = self.state.step - len(values)
        world = self.processes.count
        rows = [
            [math.fsum(values) / world for values in zip(*step, strict=True)]
            for step in zip(*self.processes.gather(values), strict=True)
        ]
        for number, row in enumerate(rows, start=first + 1):
            for name, value in zip(VALUES, row, strict=True):
                if not math.isfinite(value):
                    raise self.failure(f"{name.replace('_', ' ')}: {value}", number)
            self.state.sums = [a + b for a, b in zip(self.state.sums, row, strict=True)]
        if hooks.on_values:
            means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
            done = self.place(self.state.epoch, self.state.step)
            shown = self._named(means, self.learning_rate(self.state.step - 1))
            hooks.on_values({**shown, "similarity_scale": self.model.scale.item()}, done)

    def _named(self, means: list[float], rate: float) -> dict[str, float]:
        values = {f"train/{name}": value for name, value in zip(VALUES, means, strict=True)}
        if self.recipe.stage == 1:
            del values["train/mask"]
        return {**values, "learning_rate": rate}

    def judge(self) -> float | None:
        """The image-caption loss of the held-out captions."""
        return self.held_out.loss(self.model) if self.held_out else None

    def record(self, judged: float | None) -> Record:
        """Means of `VALUES` over the epoch's steps and the processes; stage 1 has a mask of 0."""
        sums, self.state.sums = self.state.sums, [0.0] * len(VALUES)
        means = {name: s / self.steps_per_epoch for name, s in zip(VALUES, sums, strict=True)}
        rate = self.learning_rate(self.steps_per_epoch - 1)
        epoch = {"epoch": self.state.epoch + 1, **means}
        return {**epoch, "held_out": judged, "learning_rate": rate}

    def learning_rate(self, step: int) -> float:
        """See Run."""
        # As published the schedule's value one step earlier; the first two updates share one.
        return self.schedule(max(self.place(self.state.epoch, step) - 1, 0))

    def logged(self, record: Record, again: bool = False) -> dict[str, float]:
        """The held-out loss; loggers were shown the others within the epoch."""
        held_out = record["held_out"]
        values = {} if held_out is None else {"held_out/matching": held_out}
        if again:
            values |= self._named([record[n] for n in VALUES], record["learning_rate"])
        return values

    def place(self, epoch: int, step: int = 0) -> int:
        """Optimiser steps of the whole run."""
        return epoch * self.steps_per_epoch + step
