"""`python -m talk2dino evaluate`: models on benchmarks in one go, beside published numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.benchmarks.data.sources import check_data_root
from talk2dino.benchmarks.table import BENCHMARKS, find_benchmarks
from talk2dino.cli.entry import DONE, Command
from talk2dino.cli.evaluation import (
    add_run_flags,
    job_of,
    run_and_report,
)
from talk2dino.cli.method_flags import (
    add_method_flags,
    add_option_flags,
    given_sizes,
    options_of,
    pooling_of,
)
from talk2dino.methods.registry import MODEL_NAMES

if TYPE_CHECKING:
    from talk2dino.benchmarks.evaluate import Run
    from talk2dino.benchmarks.job import Evaluation, Job
    from talk2dino.methods.base import Method


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--model",
        required=True,
        help=f"names with commas: {', '.join(MODEL_NAMES)}; or a config, a folder of "
        "save_pretrained, owner/name",
    )
    parser.add_argument(
        "--benchmarks",
        default="all",
        help="all of a model's publication, or names and YAML files of data sets with commas: "
        "voc,mine.yaml",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W",
        help="a file, a folder or seeded:<n>; with several models <model>=<file>",
    )
    parser.add_argument(
        "--bg_thresh", type=float, help="background threshold (default: the published one)"
    )
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="score borders too: boundary IoU, and pixels that differ across windows' borders",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE.txt",
        help="words of the classes, a line for each in the benchmark's order: name; alias; alias",
    )
    add_option_flags(parser)
    add_run_flags(parser)


def run(args: argparse.Namespace, found: tuple[Job, list[Run]]) -> int:
    """Evaluate and print the table."""
    job, runs = found
    run_and_report(job, runs)
    return DONE


def check(args: argparse.Namespace) -> tuple[Job, list[Run]]:
    """Find all files and refuse what cannot work, before weights are loaded."""
    from talk2dino.benchmarks.job import prepare

    if ".y" not in args.benchmarks:  # own data may be elsewhere
        check_data_root(args.data_root)  # before a model is downloaded
    job = job_of(args, _evaluations(args), folders_per_benchmark=True)
    return job, prepare(job)


def _methods(args: argparse.Namespace) -> list[Method]:
    """The models of the flags."""
    from talk2dino.methods.registry import find_method, split_models, split_weights

    names = split_models(args.model)
    weights = split_weights(args.weights, names)
    methods, sizes = [], given_sizes(args)
    for name, chosen in options_of(args, names).items():
        if name in weights:
            chosen["weights"] = weights[name]
        methods.append(find_method(name, {**chosen, **sizes, "protocol": args.protocol}))
    return methods


def _evaluations(args: argparse.Namespace) -> list[Evaluation]:
    """Models, their benchmarks, and the threshold as published or as asked for."""
    from talk2dino.benchmarks.job import Evaluation
    from talk2dino.methods.base import UNIFIED, refuse_threshold
    from talk2dino.pictures.vocabularies import read_word_lists

    evaluations, without = [], []
    pooling = pooling_of(args, "--vocabulary", args.vocabulary)
    words = None if args.vocabulary is None else read_word_lists(args.vocabulary)
    changes = {"boundary": args.boundary, "vocabulary": words, "pooling": pooling}
    if args.protocol == UNIFIED:
        refuse_threshold(args.bg_thresh)
    for method in _methods(args):
        asked = args.benchmarks.strip()
        rows = list(method.published_on)
        if asked != "all":
            rows = find_benchmarks(asked, args.data_root)
        for row in dict.fromkeys(map(method.benchmark, rows)):
            threshold = method.threshold(row) if row.bg_thresh is None else row.bg_thresh
            if args.bg_thresh is not None and row.background:
                threshold = args.bg_thresh
            for remark in method.remarks(row):
                _warn(remark)
            if not row.background:
                without.append(row.key)
            evaluations.append(Evaluation(row, method.on(row), threshold, **changes))
    if not evaluations:
        raise ValueError(
            f"--benchmarks all: no numbers of {args.model} are published. Name the benchmarks: "
            f"--benchmarks {','.join(BENCHMARKS)}"
        )
    if args.bg_thresh is not None and without:
        keys = ", ".join(dict.fromkeys(without))
        _warn(f"--bg_thresh is unused for {keys}: no background class there")
    return evaluations


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


COMMAND = Command(
    name="evaluate",
    summary="Evaluate models on the benchmarks and compare with the papers.",
    example="python -m talk2dino evaluate --model vitb --benchmarks all --pamr --data_root data",
    add_arguments=add_arguments,
    add_more=add_method_flags,
    check=check,
    run=run,
)
main = COMMAND.main
