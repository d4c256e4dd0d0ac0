"""`python -m talk2dino convert`: published weights of other methods to safetensors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from talk2dino.cli.entry import DONE, Command
from talk2dino.files import check_writable

METHODS = ("ovsegmentor", "freeda")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("method", choices=METHODS, help="whose weights they are")
    parser.add_argument(
        "checkpoint", type=Path, help="the published .pth file; the folder of FreeDA's bank"
    )
    parser.add_argument(
        "out", type=Path, help="folder for model.safetensors and config.json; FreeDA's file"
    )
    parser.add_argument(
        "--num_heads",
        type=int,
        help="attention heads of the image encoder, if not the known 8; no file says them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    from talk2dino.methods.ovsegmentor.checkpoints import check_folder

    if args.method == "freeda":
        _check_bank(args)
        return
    if not args.checkpoint.is_file():
        raise FileNotFoundError(f"{args.checkpoint}: no such checkpoint file")
    if args.num_heads is not None and args.num_heads < 1:
        raise ValueError(f"--num_heads must be at least 1, got {args.num_heads}")
    check_folder(args.out, args.overwrite, args.checkpoint)


def _check_bank(args: argparse.Namespace) -> None:
    from talk2dino.methods.freeda.bank import check_bank

    if args.num_heads is not None:
        raise ValueError("--num_heads means nothing for freeda. Leave it out.")
    check_bank(str(args.checkpoint), "freeda")
    if not args.checkpoint.is_dir():
        raise ValueError(f"{args.checkpoint}: the published bank is a folder, and this is a file.")
    if args.out.suffix != ".safetensors":
        raise ValueError(f"{args.out}: a bank becomes one file; name it <name>.safetensors")
    check_writable(args.out, args.overwrite)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Convert."""
    if args.method == "freeda":
        from talk2dino.methods.freeda.bank import convert_bank

        bank = convert_bank(args.checkpoint, args.out)
        print(f"{len(bank.keys)} prototypes ({bank.metric}) in {args.out}")
        return DONE
    from talk2dino.methods.ovsegmentor.checkpoints import convert_checkpoint, stage_of

    checkpoint, unexpected = convert_checkpoint(
        args.checkpoint, args.out, args.overwrite, args.num_heads
    )
    stage = stage_of(checkpoint.state)
    print(f"{checkpoint.config.name}, {stage}: {len(checkpoint.state)} tensors in {args.out}")
    if unexpected:
        print(
            f"warning: {len(unexpected)} tensors that no {checkpoint.config.name} has were "
            f"left out: {', '.join(unexpected[:8])}",
            file=sys.stderr,
        )
    return DONE


COMMAND = Command(
    name="convert",
    summary="Convert another method's published weights to safetensors.",
    example="python -m talk2dino convert ovsegmentor best_miou.pth weights/ovsegmentor_vitb",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

main = COMMAND.main
