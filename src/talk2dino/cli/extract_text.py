"""`text_features_extraction.py`: captions in, the same file with text features out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command
from talk2dino.cli.extraction import (
    add_output_arguments,
    add_precision_argument,
    make_job,
    run_job,
)
from talk2dino.cli.flags import add_flags, from_flags

if TYPE_CHECKING:
    from talk2dino.features.job import Job

_SETTINGS = "features.text:TextSettings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the published flags and ours."""
    parser.add_argument(
        "--ann_path",
        type=Path,
        required=True,
        help="feature file (.pth; completed in place without --out_path), COCO captions JSON, or "
        "folder or pattern of tars",
    )
    group = parser.add_argument_group("model")
    add_flags(group, _SETTINGS, "model", "weights=text_weights", "device", "batch_size")
    add_precision_argument(group)
    group = parser.add_argument_group("features (the caption's vector is always stored)")
    dense = ("dense=extract_dense_out", "second_last=extract_second_last_dense_out")
    add_flags(group, _SETTINGS, *dense)
    add_output_arguments(parser, n_shards=10)


def check(args: argparse.Namespace) -> Job:
    """Refuse wrong arguments; take over unfinished work."""
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.text import TextExtraction, TextSettings

    extraction = TextExtraction(from_flags(TextSettings, args))
    return make_job(args, CaptionInput(args.ann_path, need_images=False), extraction)


def run(args: argparse.Namespace, job: Job) -> int:
    """Encode split after split."""
    run_job(job)
    return DONE


COMMAND = Command(
    name="extract-text",
    summary="Extract text features of the captions with a frozen text encoder.",
    example="python text_features_extraction.py --ann_path ../coco2014_b14/val.pth",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

main = COMMAND.main
