"""`dino_extraction_v2.py`: images and captions in, a file of image features out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, FAILED, Command, core_share, run_command
from talk2dino.cli.extraction import (
    add_output_arguments,
    add_precision_argument,
    run_job,
    take_over_job,
)
from talk2dino.features.keys import IMAGE_KEYS

if TYPE_CHECKING:
    from talk2dino.features.extract import ImageSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the published flags and ours."""
    parser.add_argument(
        "--ann_path",
        type=Path,
        required=True,
        help="COCO captions JSON, feature file (.pth), or folder or pattern of tars",
    )
    parser.add_argument("--data_dir", type=Path, default=Path("../coco/"), help="image folder")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="dinov2_vitl14_reg", help="vision backbone")
    group.add_argument("--vision_weights", help="pretrained, a file, or seeded:<n>")
    group.add_argument("--resize_dim", type=int, default=518, help="short side, in pixels")
    group.add_argument("--crop_dim", type=int, default=518, help="central square, in pixels")
    group.add_argument(
        "--resize", default="exact", help="exact (PIL), or fast: PyTorch's, close to it"
    )
    group.add_argument("--blip_model", help="BLIP model that writes new captions")
    add_precision_argument(group)
    group.add_argument(
        "--compile", action="store_true", help="compile the backbone: slow start, then faster"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<n> or mps")
    group.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="images per forward pass (on a CPU fewer)",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=default_workers(),
        help="processes that read images",
    )
    group = parser.add_argument_group("features (without any of these: --extract_cls)")
    for key, flag in IMAGE_KEYS.items():
        group.add_argument(flag, dest=key, action="store_true", help=f"store {key}")
    add_output_arguments(parser, n_shards=25)
    parser.add_argument(
        "--max_failures",
        type=int,
        default=0,
        help="with more unreadable images than this the exit code is 1 (the rest is written)",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse wrong arguments; take over unfinished work."""
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.extract import Models
    from talk2dino.features.recaption import check_installed

    settings = _settings(args)
    if args.blip_model:
        check_installed()
    args.models = Models(settings)
    args.data = CaptionInput(args.ann_path, args.data_dir)
    args.job = take_over_job(args, args.models, command="extract", blip_model=args.blip_model)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Extract split after split; 1 if more images failed than allowed.

    Only the first of several processes says so: when one exits with 1, `torch.distributed.run`
    ends the others at once, and the first has its report to write.
    """
    from talk2dino.features.extract import extract_split

    extract = partial(extract_split, max_failures=args.max_failures)
    path = args.out_path
    if args.job_id is not None:  # the other jobs have lists of their own
        path = path.with_name(f"{path.stem}_{args.job_id + args.out_offset}{path.suffix}")
    failed = path.with_name(f"{path.name}.failed.txt")
    failures = run_job(args, args.models, "images", extract, failed)
    if not args.job.leads or len(failures) <= args.max_failures:
        return DONE
    print(
        f"error: {len(failures)} failures are more than --max_failures {args.max_failures}; "
        "everything else is written",
        file=sys.stderr,
    )
    return FAILED


def _settings(args: argparse.Namespace) -> ImageSettings:
    from talk2dino.features.extract import ImageSettings

    keys = tuple(key for key in IMAGE_KEYS if getattr(args, key))
    return ImageSettings(
        model=args.model,
        weights=args.vision_weights,
        resize_dim=args.resize_dim,
        crop_dim=args.crop_dim,
        resize=args.resize,
        keys=keys or ("dino_features",),
        dtype=args.dtype,
        amp=args.amp,
        compile=args.compile,
        blip_model=args.blip_model,
        device=args.device,
        batch_size=args.batch_size,
        workers=args.workers,
    )


def default_workers() -> int:
    """Processes that read images: one per core that this one has, but for its own."""
    return max(1, min(16, core_share() - 1))


COMMAND = Command(
    name="extract",
    summary="Extract image features with a frozen vision backbone.",
    example=(
        "python dino_extraction_v2.py --ann_path ../coco/captions_val2014.json "
        "--out_path ../coco2014_b14/val.pth --model dinov2_vitb14_reg --resize_dim 448 "
        "--crop_dim 448 --extract_avg_self_attn --extract_disentangled_self_attn"
    ),
    add_arguments=add_arguments,
    check=check,
    run=run,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)
