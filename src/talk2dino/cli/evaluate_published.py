"""The published evaluation command, `src/open_vocabulary_segmentation/main.py --eval ...`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command
from talk2dino.cli.evaluation import (
    add_run_flags,
    job_of,
    run_and_report,
)

if TYPE_CHECKING:
    from talk2dino.benchmarks.evaluate import Run
    from talk2dino.benchmarks.job import Evaluation, Job, Outcome
    from talk2dino.methods.talk2dino.published_yaml import PublishedEvaluation

_CONFIGS = "src/open_vocabulary_segmentation/configs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the published flags and the common ones."""
    parser.add_argument("--eval", action="store_true", help="evaluate; nothing else is done here")
    parser.add_argument("--eval_cfg", type=Path, required=True, help="YAML file of the model")
    parser.add_argument(
        "--eval_base_cfg",
        "--eval_base",
        dest="eval_base_cfg",
        type=Path,
        help="YAML file of the evaluation",
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override the files, such as evaluate.bg_thresh=0.52 model.vision_weights=seeded:7",
    )
    parser.add_argument("--wandb", action="store_true", help="log the numbers to Weights & Biases")
    parser.add_argument("--wandb_name", help="name of the run there (default: the result's)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    add_run_flags(parser)
    parser.add_argument(
        "--precision", default="fp32", help="of the vision backbone: fp32, tf32, bf16 or fp16"
    )


def check(args: argparse.Namespace) -> tuple[Job, list[Run]]:
    """Read the files, find all data, and refuse what cannot work, before weights are loaded."""
    from talk2dino.benchmarks.job import prepare
    from talk2dino.methods.talk2dino.published_yaml import read_published
    from talk2dino.training.history import check_logger

    if not args.eval:
        raise ValueError("this command only evaluates: pass --eval. Training is train.py.")
    if args.wandb_name and not args.wandb:
        raise ValueError("--wandb_name needs --wandb.")
    if args.wandb:
        check_logger("wandb")
    read = read_published(args.eval_cfg, args.eval_base_cfg, args.opts)
    for flag, in_file in (
        ("coloured", read.evaluate.pred_qual_path),
        ("truth", read.evaluate.gt_qual_path),
    ):
        if getattr(args, flag) is None and in_file is not None:
            setattr(args, flag, Path(in_file))
    evaluations = evaluations_of(read, args.precision)
    job = job_of(args, evaluations, folders_per_benchmark=len(read.benchmarks) > 1)
    return job, prepare(job)


def run(args: argparse.Namespace, found: tuple[Job, list[Run]]) -> int:
    """Evaluate and print the table."""
    job, runs = found
    outcomes = run_and_report(job, runs)
    if args.wandb:
        from talk2dino.processes import is_first_process

        if is_first_process():
            _log(args, job, outcomes)
    return DONE


def evaluations_of(read: PublishedEvaluation, precision: str = "fp32") -> list[Evaluation]:
    """The evaluations that the published files describe."""
    from talk2dino.benchmarks.job import Evaluation
    from talk2dino.methods.talk2dino.method import (
        Talk2DinoMethod,
        Talk2DinoOptions,
        name_of_recipe,
    )

    section = read.evaluate
    config = dataclasses.replace(
        read.config, pamr=section.pamr, template=section.template, precision=precision
    )
    without = [row.key for row in read.benchmarks if not row.background]
    if section.bg_thresh is not None and without:
        print(
            f"warning: evaluate.bg_thresh is unused for {', '.join(without)}: "
            "no background class there",
            file=sys.stderr,
        )
    name = name_of_recipe(read.recipe) or read.model_file
    method = Talk2DinoMethod(name, Talk2DinoOptions(), config)
    return [
        Evaluation(row, method, section.bg_thresh if row.background else None)
        for row in read.benchmarks
    ]


def _log(args: argparse.Namespace, job: Job, outcomes: Sequence[Outcome]) -> None:
    from talk2dino.training.history import open_logger

    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    values = {
        f"{result['benchmark']}/{name}": result[name]
        for result in results
        for name in ("mIoU", "mAcc", "aAcc")
        if result[name] is not None
    }
    name = args.wandb_name or outcomes[0].run.name
    settings = {outcome.run.name: dict(outcome.run.settings) for outcome in outcomes}
    wandb = open_logger("wandb", job.output / f"{name}.run", settings)
    wandb.log(values, 0)
    wandb.close()


COMMAND = Command(
    name="evaluate-published",
    summary="Evaluate as the published README says.",
    example=(
        "python -m torch.distributed.run src/open_vocabulary_segmentation/main.py --eval "
        f"--eval_cfg {_CONFIGS}/voc/dinotext_voc_vitb_mlp_infonce.yml "
        f"--eval_base {_CONFIGS}/voc/eval_voc_pamr.yml"
    ),
    add_arguments=add_arguments,
    check=check,
    run=run,
)
main = partial(COMMAND.main, prog="main.py")
