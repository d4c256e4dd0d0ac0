"""`text_features_extraction.py`: captions in, the same file with text features out."""

from __future__ import annotations

import argparse
from pathlib import Path

from talk2dino.cli.entry import DONE, Command
from talk2dino.cli.extraction import (
    add_output_arguments,
    add_precision_argument,
    run_job,
    take_over_job,
)


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
    group.add_argument("--model", default="ViT-B/16", help="text encoder; a BERT by its name")
    group.add_argument("--text_weights", help="pretrained, a file, or seeded:<n>")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<n> or mps")
    group.add_argument(
        "--batch_size",
        type=int,
        default=256,
        help="captions per forward pass (on a CPU fewer)",
    )
    add_precision_argument(group)
    group = parser.add_argument_group("features (the caption's vector is always stored)")
    group.add_argument("--extract_dense_out", action="store_true", help="every token position")
    group.add_argument(
        "--extract_second_last_dense_out",
        action="store_true",
        help="the second-to-last block's output at every position",
    )
    add_output_arguments(parser, n_shards=10)


def check(args: argparse.Namespace) -> None:
    """Refuse wrong arguments; take over unfinished work."""
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.text import Encoder, TextSettings

    settings = TextSettings(
        model=args.model,
        weights=args.text_weights,
        dense=args.extract_dense_out,
        second_last=args.extract_second_last_dense_out,
        dtype=args.dtype,
        device=args.device,
        batch_size=args.batch_size,
        amp=args.amp,
    )
    args.encoder = Encoder(settings)
    args.data = CaptionInput(args.ann_path, need_images=False)
    args.job = take_over_job(args, args.encoder, command="extract_text")


def run(args: argparse.Namespace, _: None = None) -> int:
    """Encode split after split."""
    from talk2dino.features.text import extract_text_split

    run_job(args, args.encoder, "captions", extract_text_split)
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
