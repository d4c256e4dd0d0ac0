"""`python -m talk2dino toy`: a drawn world to train and evaluate on, without any download."""

from pathlib import Path

from talk2dino.cli.command import Command, bar_of, core_share
from talk2dino.toy.world import WorldConfig, check_world, world_of_size, write_world

_FEW = 200  # pictures that are drawn before other processes have begun


class Toy(Command):
    """Draw a world of shapes: captioned pictures to train on, masks to evaluate with."""

    example = "--output world2 --world 2 --images 512"

    output: Path
    """Folder to draw it in."""
    world: int = 1
    """1, or 2 with other objects."""
    seed: int = 0
    """Of the drawing."""
    images: int = 1536
    """Pictures to train on."""
    overwrite: bool = False
    """Replace another drawn world."""

    def check(self) -> WorldConfig:
        """Refuse wrong numbers, and a folder that holds something else."""
        config = world_of_size(self.images, self.seed, self.world)
        check_world(self.output, config, self.overwrite)
        return config

    def run(self, config: WorldConfig) -> None:
        """Draw."""
        if check_world(self.output, config, self.overwrite):
            print(f"the drawn world is there already: {self.output}")
            return
        total = config.train_images + config.val_images + config.evaluation_images
        with bar_of("pictures")(total, 0) as bar:
            workers = 0 if total < _FEW else core_share()
            world = write_world(self.output, config, self.overwrite, bar.update, workers)
        print(
            f"{world.folder}: {config.train_images} pictures with captions to train on, "
            f"{config.val_images} to validate, {config.evaluation_images} with masks to evaluate"
        )
        benchmark = "toy" if config.world == 1 else world.dataset
        print(f"evaluate it with --data_root {world.folder} --benchmarks {benchmark}")
