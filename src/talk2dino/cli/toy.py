"""`python -m talk2dino toy`: a drawn world to train and evaluate on, without any download."""

from __future__ import annotations

import argparse
from pathlib import Path

from talk2dino.cli.entry import DONE, Command, core_share
from talk2dino.toy.world import WorldConfig, check_world, world_of_size, write_world

_FEW = 200  # pictures that are drawn before other processes have begun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output", type=Path, required=True, help="folder to draw it in")
    parser.add_argument("--world", type=int, default=1, help="1, or 2 with other objects")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--images", type=int, default=1536, help="pictures to train on")
    parser.add_argument("--overwrite", action="store_true", help="replace another drawn world")


def check(args: argparse.Namespace) -> WorldConfig:
    """Refuse wrong numbers, and a folder that holds something else."""
    config = world_of_size(args.images, args.seed, args.world)
    check_world(args.output, config, args.overwrite)
    return config


def run(args: argparse.Namespace, config: WorldConfig) -> int:
    """Draw."""
    from tqdm import tqdm

    if check_world(args.output, config, args.overwrite):
        print(f"the drawn world is there already: {args.output}")
        return DONE
    total = config.train_images + config.val_images + config.evaluation_images
    with tqdm(total=total, unit=" pictures", disable=None) as bar:
        workers = 0 if total < _FEW else core_share()
        world = write_world(args.output, config, args.overwrite, bar.update, workers)
    print(
        f"{world.folder}: {config.train_images} pictures with captions to train on, "
        f"{config.val_images} to validate, {config.evaluation_images} with masks to evaluate"
    )
    benchmark = "toy" if config.world == 1 else world.dataset
    print(f"evaluate it with --data_root {world.folder} --benchmarks {benchmark}")
    return DONE


COMMAND = Command(
    name="toy",
    summary="Draw a world of shapes: captioned pictures to train on, masks to evaluate with.",
    example="python -m talk2dino toy --output world2 --world 2 --images 512",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

main = COMMAND.main
