"""`talk2dino pretrain`: OVSegmentor's pretraining, stage 1 or 2, from captions alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import (
    DONE,
    Command,
    core_share,
    step_bar,
    typed_command,
)
from talk2dino.cli.flags import add_flags, from_flags

if TYPE_CHECKING:
    from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob

LINE_SECONDS = 60.0
"""Without a terminal for the bar, time between two lines about the steps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; the recipe has what the result depends on."""
    parser.add_argument(
        *("--config", "--cfg"), required=True, metavar="YAML", help="configs/ovsegmentor_*.yaml"
    )
    parser.add_argument(
        *("--set", "--opts"),
        dest="changes",
        nargs="+",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace values of the recipe, for example data.images=cc12m/images train.seed=1",
    )
    add_flags(parser, "training.job:RunJob", "device")
    parser.add_argument(
        "--workers", type=int, default=min(8, core_share()), help="decoding processes"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: weights/<name of the recipe>"
    )
    add_flags(parser, "training.job:RunJob", "overwrite", "resume", "logger")
    add_flags(parser, "methods.ovsegmentor.pretraining.job:PretrainingJob", "checkpoint_seconds")


def check(args: argparse.Namespace) -> PretrainingJob:
    """Raise for wrong arguments; see `check_job`."""
    from talk2dino.methods.ovsegmentor.pretraining.config import load_pretraining_recipe
    from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob, check_job

    typed = typed_command(COMMAND, "-m", args, but=("resume", "overwrite"))
    job = from_flags(
        PretrainingJob,
        args,
        recipe=load_pretraining_recipe(args.config, args.changes),
        out=args.out or Path("weights") / Path(args.config).stem,
        command=typed.replace("python -m", "python -m talk2dino pretrain", 1),
    )
    check_job(job)
    return job


def run(args: argparse.Namespace, job: PretrainingJob) -> int:
    """Pretrain, and say what was written."""
    from talk2dino.methods.ovsegmentor.pretraining.job import collective_backend, pretrain
    from talk2dino.processes import is_first_process, joined_processes
    from talk2dino.training.history import Record
    from talk2dino.training.run import Hooks

    def on_epoch(record: Record) -> None:
        losses = ["loss", "matching", "entity", *(["mask"] if job.recipe.stage == 2 else [])]
        losses += [] if record["held_out"] is None else ["held_out"]
        shown = [f"{name.replace('_', ' ')} {record[name]:.4f}" for name in losses]
        place = f"epoch {record['epoch']}/{job.recipe.train.epochs}"
        print("  ".join([place, *shown]), flush=True)

    with joined_processes(collective_backend(job.device)) as processes:
        result = pretrain(job, Hooks(step_bar, step_lines(), on_epoch), processes)
    if not is_first_process():
        return DONE
    if result is None:
        print(f"{job.out} is complete: nothing to resume")
        return DONE
    if result.lost:
        print(result.lost)
    if result.best_epoch is not None:
        print(f"kept the weights of epoch {result.best_epoch}, the lowest held-out loss")
    print(f"weights: {job.out}  losses: {job.outputs.losses}, {job.outputs.plot}")
    return DONE


def step_lines(seconds: float = LINE_SECONDS) -> Callable[[Mapping[str, float], int], None] | None:
    """Says in a log file, now and then, where the run is; a terminal has the bar instead."""
    if sys.stderr.isatty():
        return None
    last = time.monotonic()

    def on_values(values: Mapping[str, float], step: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            shown = f"step {step}  loss {values['train/loss']:.4f}"
            print(f"{shown}  learning rate {values['learning_rate']:.3g}", flush=True)

    return on_values


COMMAND = Command(
    name="pretrain",
    summary="Pretrain OVSegmentor on images and captions: stage 1, then stage 2.",
    example="python -m talk2dino pretrain --config configs/ovsegmentor_stage1.yaml "
    "--set data.metafile=cc12m/train.csv data.images=cc12m/images",
    add_arguments=add_arguments,
    check=check,
    run=run,
    after_interrupt="add --resume to the same command to go on",
)

main = COMMAND.main
