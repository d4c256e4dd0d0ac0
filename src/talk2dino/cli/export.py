"""`python -m talk2dino export`: a model as ONNX files."""

from __future__ import annotations

import argparse
from pathlib import Path

from talk2dino.cli.entry import DONE, Command
from talk2dino.files import check_replaceable

FORMATS = ("onnx",)
FILES = ("image.onnx", "text.onnx", "talk2dino.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="toy, vitb, vitl, dinov3_vitb, dinov3_vitl, a folder, a file, or owner/name",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="kind of files")
    parser.add_argument(
        "--config", metavar="YAML", help="recipe of a projection's file that does not tell it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def check(args: argparse.Namespace) -> None:
    """Raise for missing packages and an output that cannot be written; loads no model."""
    from talk2dino.methods.talk2dino.export import check_installed

    check_installed()
    check_replaceable(args.output, FILES, args.overwrite)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Load, export and compare."""
    from talk2dino.methods.talk2dino.api import Talk2DINO
    from talk2dino.methods.talk2dino.export import export_onnx

    print(f"loading {args.model}", flush=True)
    model = Talk2DINO.from_pretrained(args.model, "cpu", config=args.config)
    print("exporting", flush=True)
    errors = export_onnx(model, args.output, args.overwrite)
    for path in (Path(args.output) / name for name in FILES):
        print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
    if errors:
        worst = max(errors.values())
        print(f"onnxruntime agrees with PyTorch: relative error {worst:.1e} at most")
    else:
        print("note: not compared with PyTorch, because onnxruntime is not installed")
    return DONE


COMMAND = Command(
    name="export",
    summary="Write a model as ONNX files, for devices without PyTorch.",
    example="python -m talk2dino export --format onnx --model toy --output exported/toy",
    add_arguments=add_arguments,
    check=check,
    run=run,
    after_interrupt="complete files are kept; --overwrite makes them again",
)

main = COMMAND.main
