"""`text_features_extraction.py`: captions in, the same file with text features out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from talk2dino.cli.entry import DONE, Command, run_command
from talk2dino.cli.extraction import (
    add_output_arguments,
    add_precision_argument,
    division,
    output_path,
    progress_bar,
    report_written,
)
from talk2dino.files import check_not_inputs, content_digest


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
    from talk2dino.features.job import Job, plan_outputs
    from talk2dino.features.text import Encoder, TextSettings
    from talk2dino.processes import is_first_process

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
    division_ = division(args)
    args.out_path = output_path(args)
    outputs = plan_outputs(args.out_path, division_, args.layout)
    decisive = {
        "command": "extract_text",
        "ann_path": str(args.ann_path.resolve()),
        **settings.recorded(),
        "weights_digest": content_digest(settings.weights),
        "keys": sorted(settings.keys),
        "device": args.encoder.device.type,
        "batch_size": args.encoder.batch_size,
        "layout": args.layout,
        **vars(division_),
    }
    written = [path for output in outputs for path in output.files]
    check_not_inputs(written, [settings.weights, *args.data.tars])
    in_place = args.data.path.resolve() == outputs[0].files[0].resolve()
    args.job = Job(outputs, decisive, args.overwrite, in_place, leads=is_first_process())


def run(args: argparse.Namespace, found: None = None) -> int:
    """Encode split after split."""
    from talk2dino.features.text import extract_text_split
    from talk2dino.processes import joined_processes

    with joined_processes() as processes, args.job as job:
        job.join(processes)
        args.encoder.device = processes.device(args.encoder.device)
        for output in job.pending():
            features = extract_text_split(
                args.data, job, output, args.encoder, progress_bar("captions", job)
            )
            if features is not None:
                report_written(features, output.files, args.encoder.settings.keys)
        job.failures()
    return DONE


COMMAND = Command(
    name="extract-text",
    summary="Extract text features of the captions with a frozen text encoder.",
    example="python text_features_extraction.py --ann_path ../coco2014_b14/val.pth",
    add_arguments=add_arguments,
    check=check,
    run=run,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)
