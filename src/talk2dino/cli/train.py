"""`train.py`: train a projection on stored features, or straight from images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.cli.command import (
    Command,
    add_flags,
    bar_of,
    core_share,
    from_flags,
    memory_share,
    step_bar,
)
from talk2dino.config import check_between

if TYPE_CHECKING:
    from talk2dino.methods.talk2dino.training.job import TrainJob

_JOB = "methods.talk2dino.training.job:TrainJob"
_OF_THE_RECIPE = ("resize_dim", "crop_dim", "vision_weights", "text_weights")


class TrainingCommand(Command):
    """What commands share that train: the run, and what is said of it."""

    after_interrupt = "add --resume to the same command to go on"

    def run(self, job: Any) -> None:
        """Train, and say what was written."""
        from talk2dino.processes import joined_processes
        from talk2dino.training.job import carry_out
        from talk2dino.training.run import Hooks, Record

        def on_epoch(record: Record) -> None:
            numbers = {name: value for name, value in record.items() if isinstance(value, float)}
            shown = [f"{name.replace('_', ' ')} {value:.6g}" for name, value in numbers.items()]
            print("  ".join([f"epoch {record['epoch']}", *shown]), flush=True)

        with joined_processes(job.device) as processes:
            first = processes.rank == 0
            encoding = bar_of("encoded images", shown=first)
            hooks = Hooks(step_bar, on_epoch=on_epoch, encoding=encoding)
            done = carry_out(job, hooks, processes)
        if first and done is None:
            print(f"{job.out} is complete: nothing to resume")
        elif first:
            if done.state.best_epoch is not None:
                print(
                    f"kept the weights of epoch {done.state.best_epoch}, the lowest validation loss"
                )
            for line in self.findings(done):
                print(line)
            print(f"weights: {job.out}  losses: {job.outputs.losses}, {job.outputs.plot}")

    def findings(self, done: Any) -> Iterable[object]:
        """What else is to be said of a run."""
        return ()


class Train(TrainingCommand):
    """Train a projection from captions to image patches."""

    script = "train.py"
    example = (
        "--model configs/vitb_mlp_infonce.yaml "
        "--train_dataset ../coco2014_b14/train.pth --val_dataset ../coco2014_b14/val.pth"
    )

    model: str
    """YAML: recipe of the projection, a file of configs/."""
    batch_size: int | None = None
    """Captions per step, of all processes together (default: the recipe's)."""
    out: Path | None = None
    """Weights (default: weights/<recipe>[_<pedix>].pth)."""
    name_pedix: str = ""
    """Ending of the default name."""
    use_wandb: bool = False
    """The same as --logger wandb."""
    cache_gb: float
    """Features up to this size are kept in memory by each process; larger ones are read from their
    file again in every epoch; unless given, half of the memory that is free."""
    logger: str

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the flags; `--model` and `--model_config` are the same one."""
        group = parser.add_argument_group("data")
        cls.own_flags(group, "model=model|model_config")
        datasets = ("train_dataset", "val_dataset", "test_dataset")
        add_flags(group, _JOB, *datasets, "feature_name", "text_features")
        group = parser.add_argument_group("optimisation; the recipe has the rest")
        cls.own_flags(group, "batch_size")
        loop = ("optimizer", "weight_decay", "scheduler", "warmup", "seed")
        add_flags(group, "methods.talk2dino.training.loop:LoopSettings", *loop)
        add_flags(group, _JOB, "device")
        group = parser.add_argument_group("outputs")
        cls.own_flags(group, "out", "name_pedix", "use_wandb")
        run = ("overwrite", "resume", "checkpoint_seconds", "logger")
        add_flags(group, _JOB, *run, "save_heads=save_head_activations")
        group = parser.add_argument_group("images instead of features; the recipe has defaults")
        unset = dict.fromkeys(_OF_THE_RECIPE)
        add_flags(group, "methods.talk2dino.recipe:FeatureConfig", *_OF_THE_RECIPE, **unset)
        add_flags(group, _JOB, "data_dir", "workers", workers=min(8, core_share()))
        cls.own_flags(group, "cache_gb", cache_gb=round(memory_share() / 2e9, 1))

    def check(self) -> TrainJob:
        """Raise for wrong arguments; see `check_job`."""
        from talk2dino.methods.talk2dino.recipe import load_recipe
        from talk2dino.methods.talk2dino.training.job import SUFFIX, TrainJob, check_job
        from talk2dino.methods.talk2dino.training.loop import LoopSettings

        if self.use_wandb and self.logger not in ("none", "wandb"):
            raise ValueError(f"--use_wandb contradicts --logger {self.logger}: pass one of them")
        check_between(0, 10**6, cache_gb=self.cache_gb)
        recipe = load_recipe(self.model)
        given = {key: value for key in _OF_THE_RECIPE if (value := getattr(self, key)) is not None}
        train = recipe.train
        if self.batch_size is not None:
            train = replace(train, batch_size=self.batch_size)
        ending = f"_{self.name_pedix.removeprefix('_')}" if self.name_pedix else ""
        job = from_flags(
            TrainJob,
            self,
            recipe=replace(recipe, features=replace(recipe.features, **given)),
            out=self.out or Path("weights") / f"{Path(self.model).stem}{ending}{SUFFIX}",
            loop=from_flags(LoopSettings, self, train=train),
            cache_bytes=int(self.cache_gb * 1e9),
            logger="wandb" if self.use_wandb else self.logger,
            command=self.line("--resume", "--overwrite"),
        )
        check_job(job)
        return job

    def findings(self, done: Any) -> Iterable[object]:
        """How well images and captions find each other."""
        for direction, found in done.retrieval.items():
            yield f"{direction.replace('_', ' ')}: {found}"
