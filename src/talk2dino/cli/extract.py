"""`dino_extraction_v2.py`: images and captions in, a file of image features out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, FAILED, Command, core_share
from talk2dino.cli.extraction import (
    add_output_arguments,
    add_precision_argument,
    make_job,
    run_job,
)
from talk2dino.cli.flags import add_flags, from_flags
from talk2dino.features.keys import IMAGE_KEYS

if TYPE_CHECKING:
    from talk2dino.features.job import Job

_SETTINGS = "features.extract:ImageSettings"


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
    names = ["model", "weights=vision_weights", "resize_dim", "crop_dim", "resize", "blip_model"]
    defaults = {"resize": "exact", "workers": default_workers()}
    names += ["compile", "device", "batch_size", "workers"]
    add_flags(group, _SETTINGS, *names, **defaults)
    add_precision_argument(group)
    group = parser.add_argument_group("features (without any of these: --extract_cls)")
    for key, flag in IMAGE_KEYS.items():
        group.add_argument(flag, dest="keys", action="append_const", const=key, help=f"store {key}")
    add_output_arguments(parser, n_shards=25)
    parser.add_argument(
        "--max_failures",
        type=int,
        default=0,
        help="with more unreadable images than this the exit code is 1 (the rest is written)",
    )


def check(args: argparse.Namespace) -> Job:
    """Refuse wrong arguments; take over unfinished work."""
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.extract import ImageExtraction, ImageSettings

    chosen = args.keys or ["dino_features"]
    keys = tuple(key for key in IMAGE_KEYS if key in chosen)
    extraction = ImageExtraction(from_flags(ImageSettings, args, keys=keys))
    return make_job(args, CaptionInput(args.ann_path, args.data_dir), extraction, args.max_failures)


def run(args: argparse.Namespace, job: Job) -> int:
    """Extract split after split; 1 if more images failed than allowed.

    Only the first of several processes says so: when one exits with 1, `torch.distributed.run`
    ends the others at once, and the first has its report to write.
    """
    path = job.path
    if args.job_id is not None:  # the other jobs have lists of their own
        path = path.with_name(f"{path.stem}_{args.job_id + args.out_offset}{path.suffix}")
    failures = run_job(job, path.with_name(f"{path.name}.failed.txt"))
    if not job.leads or len(failures) <= args.max_failures:
        return DONE
    print(
        f"error: {len(failures)} failures are more than --max_failures {args.max_failures}; "
        "everything else is written",
        file=sys.stderr,
    )
    return FAILED


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

main = COMMAND.main
