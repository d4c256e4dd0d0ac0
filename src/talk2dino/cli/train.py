"""`train.py`: train a projection on stored features, or straight from images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.cli.entry import (
    DONE,
    Command,
    bar_of,
    core_share,
    local_processes,
    step_bar,
    typed_command,
)
from talk2dino.cli.flags import add_flags, from_flags

if TYPE_CHECKING:
    from talk2dino.methods.talk2dino.training.job import TrainJob

_JOB = "methods.talk2dino.training.job:TrainJob"
_OF_THE_RECIPE = ("resize_dim", "crop_dim", "vision_weights", "text_weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; `--model` and `--model_config` are the same one."""
    group = parser.add_argument_group("data")
    text = "recipe of the projection: a file of configs/"
    group.add_argument("--model", "--model_config", required=True, metavar="YAML", help=text)
    datasets = ("train_dataset", "val_dataset", "test_dataset")
    add_flags(group, _JOB, *datasets, "feature_name", "text_features")
    group = parser.add_argument_group("optimisation; the recipe has the rest")
    group.add_argument(
        "--batch_size",
        type=int,
        metavar="N",
        help="captions per step, of all processes together (default: the recipe's)",
    )
    loop = ("optimizer", "weight_decay", "scheduler", "warmup", "seed")
    add_flags(group, "methods.talk2dino.training.loop:LoopSettings", *loop)
    add_flags(group, "training.job:RunJob", "device")
    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--out", type=Path, metavar="PTH", help="weights (default: weights/<recipe>[_<pedix>].pth)"
    )
    group.add_argument("--name_pedix", default="", help="ending of the default name")
    run = ("overwrite", "resume", "checkpoint_seconds", "logger")
    add_flags(group, "training.job:RunJob", *run)
    group.add_argument("--use_wandb", action="store_true", help="the same as --logger wandb")
    add_flags(group, _JOB, "save_heads=save_head_activations")
    group = parser.add_argument_group("images instead of features; the recipe has defaults")
    group.add_argument("--data_dir", default="../coco/", help="where the image files are")
    unset = dict.fromkeys(_OF_THE_RECIPE)
    add_flags(group, "methods.talk2dino.recipe:FeatureConfig", *_OF_THE_RECIPE, **unset)
    group.add_argument(
        "--cache_gb",
        type=float,
        default=_half_of_the_memory_gb(),
        help="features up to this size are kept in memory by each process; larger ones are read "
        "from their file again in every epoch (default: half of the memory, divided by the "
        "processes on it: %(default)s)",
    )
    group.add_argument(
        "--workers", type=int, default=min(8, core_share()), help="decoding processes"
    )


def _half_of_the_memory_gb() -> float:
    """For this process: those of one machine share it."""
    try:
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e9
        return round(half / local_processes(), 1)
    except (AttributeError, ValueError, OSError):  # not every system can say
        return 8.0


def check(args: argparse.Namespace) -> TrainJob:
    """Raise for wrong arguments; see `check_job`."""
    from talk2dino.methods.talk2dino.training.job import check_job

    if args.use_wandb and args.logger not in ("none", "wandb"):
        raise ValueError(f"--use_wandb contradicts --logger {args.logger}: pass one of them")
    job = _job(args)
    check_job(job)
    return job


def run(args: argparse.Namespace, job: TrainJob) -> int:
    """Train, and say what was written."""
    from talk2dino.processes import is_first_process, joined_processes
    from talk2dino.training.history import Record
    from talk2dino.training.job import carry_out
    from talk2dino.training.run import Hooks

    silent = not is_first_process()

    def on_epoch(record: Record) -> None:
        shown = f"epoch {record['epoch']}/{job.loop.train.num_epochs}"
        shown += f"  train {record['train_loss']:.6g}"
        if record["val_loss"] is not None:
            shown += f"  validation {record['val_loss']:.6g}"
        print(shown)

    encoding = bar_of("encoded images", shown=not silent)
    with joined_processes() as processes:
        done = carry_out(job, Hooks(step_bar, on_epoch=on_epoch, encoding=encoding), processes)
    if silent:
        return DONE
    if done is None:
        print(f"{job.out} is complete: nothing to resume")
        return DONE
    best = done.state.best_epoch
    if best is not None:
        print(f"kept the weights of epoch {best}, the lowest validation loss")
    if done.retrieval is not None:
        print(f"text to image: {done.retrieval.text_to_image}")
        print(f"image to text: {done.retrieval.image_to_text}")
    print(f"weights: {job.out}  losses: {job.outputs.losses}, {job.outputs.plot}")
    return DONE


def recipe_keys_of(model: str) -> list[str]:
    """What a recipe can say of the training of a model; nothing if this is no command for it."""
    from talk2dino.methods.registry import method_class
    from talk2dino.methods.talk2dino.method import Talk2DinoMethod
    from talk2dino.methods.talk2dino.recipe import recipe_keys

    return list(recipe_keys()) if method_class(model) is Talk2DinoMethod else []


def write_recipe_of(model: str, changes: Mapping[str, Any], path: Path) -> None:
    """Write the recipe of a model, by its name or file, with other values for some keys."""
    from talk2dino.methods.talk2dino.method import MODELS
    from talk2dino.methods.talk2dino.recipe import write_recipe

    write_recipe(MODELS.get(model, model), changes, path)


def _job(args: argparse.Namespace) -> TrainJob:
    from talk2dino.methods.talk2dino.recipe import load_recipe
    from talk2dino.methods.talk2dino.training.job import TrainJob, default_weights
    from talk2dino.methods.talk2dino.training.loop import LoopSettings
    from talk2dino.methods.talk2dino.training.sources import ImageOptions

    recipe = load_recipe(args.model)
    given = {key: value for key in _OF_THE_RECIPE if (value := getattr(args, key)) is not None}
    train = recipe.train
    if args.batch_size is not None:
        train = replace(train, batch_size=args.batch_size)
    features, data_dir = replace(recipe.features, **given), Path(args.data_dir)
    return from_flags(
        TrainJob,
        args,
        recipe=recipe,
        out=args.out or default_weights(args.model, args.name_pedix),
        loop=from_flags(LoopSettings, args, train=train),
        images=ImageOptions(features, data_dir, args.workers, int(args.cache_gb * 1e9)),
        logger="wandb" if args.use_wandb else args.logger,
        command=typed_command(COMMAND, "train.py", args, but=("resume", "overwrite")),
    )


COMMAND = Command(
    name="train",
    summary="Train a projection from captions to image patches.",
    example="python train.py --model configs/vitb_mlp_infonce.yaml "
    "--train_dataset ../coco2014_b14/train.pth --val_dataset ../coco2014_b14/val.pth",
    add_arguments=add_arguments,
    check=check,
    run=run,
    after_interrupt="add --resume to the same command to go on",
)

main = COMMAND.main
