"""Flags, output names and reports that the two extraction commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import bar_of
from talk2dino.cli.flags import add_flags, from_flags
from talk2dino.devices import AMP_TYPES, DTYPES
from talk2dino.features.keys import LAYOUTS
from talk2dino.files import write_text

if TYPE_CHECKING:
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.chunks import Extraction
    from talk2dino.features.job import Job
    from talk2dino.features.store import FeatureFile

SHOWN_FAILURES = 10


def add_precision_argument(group: argparse._ArgumentGroup) -> None:
    """`--amp`, alone or with a number type."""
    group.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        default="",
        choices=AMP_TYPES,
        help="mixed precision: bfloat16, or the type named (stored is --dtype in any case)",
    )


def add_output_arguments(parser: argparse.ArgumentParser, n_shards: int) -> None:
    """Where the features go, and how the input is divided."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out_path",
        type=Path,
        help="the .pth file, or the folder of the shards (default: the annotation path with .pth)",
    )
    group.add_argument("--layout", choices=LAYOUTS, help="of a .pth: ours or the published one")
    group.add_argument("--write_as_wds", action="store_true", help="write webdataset shards")
    names = ("n_in_splits=num_jobs|n_in_splits|n_in_split", "job_id", "in_batch_offset")
    division = ("n_shards", *names, "out_offset")
    add_flags(group, "features.job:Division", *division, n_shards=n_shards)
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored tensors")
    group.add_argument("--overwrite", action="store_true", help="replace what is there")


def make_job(
    args: argparse.Namespace,
    data: CaptionInput,
    extraction: Extraction,
    max_failures: int = 0,
) -> Job:
    """Take over the job of a run.

    Args:
        args: the flags of `add_output_arguments`.
        data: what is read.
        extraction: what makes the features.
        max_failures: most images that a file completed in place may lose.
    """
    from talk2dino.features.job import Division, Job

    if args.write_as_wds and args.n_shards < 1:
        raise ValueError(f"--n_shards must be at least 1, got {args.n_shards}")
    if args.write_as_wds and args.layout:
        raise ValueError("--layout is for .pth files; leave it out with --write_as_wds")
    division = from_flags(Division, args, n_shards=args.n_shards if args.write_as_wds else 0)
    path = output_path(args)
    return Job(data, extraction, path, division, args.layout, args.overwrite, max_failures)


def run_job(job: Job, failed: Path | None = None) -> list[str]:
    """Extract split after split.

    Args:
        job: what is to be done.
        failed: where the failures are listed.

    Returns:
        The failures.
    """
    from talk2dino.processes import joined_processes

    with joined_processes() as processes, job:
        job.join(processes)
        unit = job.extraction.unit
        if processes.count > 1:  # the first one shows its own share
            unit = f"{unit} of the first of {processes.count} processes"
        for split in job.pending():
            features = job.make(split, bar_of(unit, job.leads))
            if features is not None:
                report_written(features, job.outputs[split], job.extraction.settings.keys)
        failures = job.failures()
        if job.leads and failed:  # before the job is over: a kill must not lose the list
            report_failures(failures, failed)
    return failures


def output_path(args: argparse.Namespace) -> Path:
    """`--out_path`, or the annotation path with `.pth`; for shards a folder.

    Raises:
        ValueError: a pattern of tars has no natural output name, or the path is of the wrong kind.
    """
    from talk2dino.features.tars import is_tar_input

    path = args.out_path
    if path is None:
        if is_tar_input(args.ann_path) and not args.ann_path.is_dir():
            raise ValueError("--out_path is needed when --ann_path names tars")
        source = args.ann_path
        path = source.with_name(f"{source.name if source.is_dir() else source.stem}.pth")
    if args.write_as_wds:
        path = path.with_suffix("") if path.suffix in (".pth", ".tar") else path
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out_path {path} is a file; shards need a folder")
        source = args.ann_path if args.ann_path.is_dir() else args.ann_path.parent
        if is_tar_input(args.ann_path) and path.resolve() == source.resolve():
            raise ValueError(
                f"the shards would be written among the tars of the input in {source}. "
                "Give another folder with --out_path."
            )
    elif path.is_dir():
        raise ValueError(f"--out_path {path} is a folder; name a .pth file or add --write_as_wds")
    elif path.suffix not in (".pth", ".pt"):
        raise ValueError(f"--out_path {path} must end in .pth (or add --write_as_wds)")
    return path


def report_written(features: FeatureFile, files: Sequence[Path], keys: Sequence[str]) -> None:
    """Say what was written where."""
    where = str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}"
    images = features.num_images
    if files[0].suffix == ".tar":  # one member per caption
        images = len(features.caption_rows.unique())
    print(f"{where}: {images} images, {len(features.caption_rows)} captions")
    if images < features.num_images:
        lone = features.num_images - images
        print(f"  {lone} images without captions have no place in shards")
    columns = {**features.image_features, **features.caption_features}
    for key in keys:
        if key in columns:
            dtype = str(columns[key].dtype).removeprefix("torch.")
            print(f"  {key} {tuple(columns[key].shape)} {dtype}")


def report_failures(failures: Sequence[str], path: Path) -> None:
    """Name the failed images on stderr, and all of them in a text file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = "".join(f"{line}\n" for line in failures)
    write_text(path, text, errors="backslashreplace")
    print(f"{len(failures)} images failed and were left out:", file=sys.stderr)
    for line in failures[:SHOWN_FAILURES]:
        print(f"  {line}", file=sys.stderr)
    if len(failures) > SHOWN_FAILURES:
        print(f"  ... and {len(failures) - SHOWN_FAILURES} more", file=sys.stderr)
    print(f"All of them: {path}", file=sys.stderr)
