"""`python -m talk2dino evaluate`: any set of benchmarks in one go, beside the paper's numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.benchmarks.table import MODELS, Benchmark, find_benchmarks
from talk2dino.cli.entry import DONE, Command, run_command
from talk2dino.cli.evaluation import (
    add_run_flags,
    folders_of,
    run_and_report,
    share_of,
)
from talk2dino.config import check_name
from talk2dino.segmenter_config import find_in_checkout, read_segmenter_config

if TYPE_CHECKING:
    from talk2dino.benchmarks.evaluate import Run
    from talk2dino.benchmarks.job import Evaluation, Job
    from talk2dino.segmenter_config import SegmenterConfig

_LARGE = 1024  # width of ViT-L, whose published threshold is lower


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--model", required=True, help=f"{', '.join(MODELS)}, or the path of a config"
    )
    parser.add_argument(
        "--benchmarks", default="all", help="all, or names with commas: voc,ade20k,..."
    )
    parser.add_argument("--pamr", action="store_true", help="refine the masks with PAMR")
    parser.add_argument("--weights", help="of the projection: a file or seeded:<n>")
    parser.add_argument("--vision_weights", help="pretrained, a file, or seeded:<n>")
    parser.add_argument("--text_weights", help="pretrained, a file, or seeded:<n>")
    parser.add_argument("--template", help="prompt set (default: the config's)")
    parser.add_argument(
        "--bg_thresh", type=float, help="background threshold (default: the published one)"
    )
    add_run_flags(parser)


def check(args: argparse.Namespace) -> None:
    """Find all files and refuse what cannot work, before weights are loaded."""
    prepared(args)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    job, runs = prepared(args)
    run_and_report(job, runs)
    return DONE


def prepared(args: argparse.Namespace) -> tuple[Job, list[Run]]:
    """The job of the flags and its runs; made once."""
    from talk2dino.benchmarks.job import Job, prepare
    from talk2dino.devices import resolve_device

    if getattr(args, "prepared", None) is None:
        benchmarks = find_benchmarks(args.benchmarks)
        config, model = _model(args)
        device = resolve_device(args.device)
        job = Job(
            evaluations=_evaluations(args, benchmarks, config),
            model=model,
            data_root=args.data_root,
            output=args.output,
            device=device,
            share=share_of(args, device),
            folders=folders_of(args),
            folders_per_benchmark=True,
        )
        args.prepared = (job, prepare(job))
    result: tuple[Job, list[Run]] = args.prepared
    return result


def _model(args: argparse.Namespace) -> tuple[SegmenterConfig, str]:
    """The configuration and its short name."""
    path = Path(args.model)
    if path.suffix.lower() in (".yaml", ".yml"):
        recipes = {find_in_checkout(recipe).resolve(): name for name, recipe in MODELS.items()}
        model = recipes.get(path.resolve(), path.stem)
    else:
        model = check_name("model", args.model, MODELS)
        path = find_in_checkout(MODELS[model])
    changes: dict[str, Any] = {
        "projection_weights": args.weights,
        "vision_weights": args.vision_weights,
        "text_weights": args.text_weights,
        "template": args.template,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    config = read_segmenter_config(path, pamr=args.pamr, precision=args.precision, **given)
    return config, model


def _evaluations(
    args: argparse.Namespace, benchmarks: list[Benchmark], config: SegmenterConfig
) -> list[Evaluation]:
    """Cleaning and threshold per benchmark, as published or as asked for."""
    import dataclasses

    from talk2dino.benchmarks.job import Evaluation

    large = config.projection.dino_embed_dim >= _LARGE
    evaluations = []
    for row in benchmarks:
        threshold = row.threshold(large)
        if args.bg_thresh is not None and row.background:
            threshold = args.bg_thresh
        cleaned = dataclasses.replace(config, clean_background=row.clean_background)
        evaluations.append(Evaluation(row, cleaned, threshold))
    without = [row.key for row in benchmarks if not row.background]
    if args.bg_thresh is not None and without:
        print(
            f"warning: --bg_thresh is unused for {', '.join(without)}: no background class there",
            file=sys.stderr,
        )
    return evaluations


COMMAND = Command(
    name="evaluate",
    summary="Evaluate a model on the benchmarks and compare with the paper.",
    example="python -m talk2dino evaluate --model vitb --benchmarks all --pamr --data_root data",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

if __name__ == "__main__":
    sys.exit(main())
