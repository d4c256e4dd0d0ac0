"""`talk2dino pretrain`: OVSegmentor's pretraining, stage 1 or 2, from captions alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command, core_share, step_bar
from talk2dino.cli.flags import add_flags, from_flags

if TYPE_CHECKING:
    from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob


_RUN = "training.job:RunJob"


class Pretrain(Command):
    """Pretrain OVSegmentor on images and captions: stage 1, then stage 2."""

    example = (
        "--config configs/ovsegmentor_stage1.yaml "
        "--set data.metafile=cc12m/train.csv data.images=cc12m/images"
    )
    after_interrupt = "add --resume to the same command to go on"

    config: str
    """YAML: configs/ovsegmentor_*.yaml."""
    changes: list[str] = []
    """SECTION.KEY=VALUE: replace values of the recipe, for example data.images=cc12m/images
    train.seed=1."""
    workers: int
    """Decoding processes."""
    out: Path | None = None
    """Folder (default: weights/<name of the recipe>)."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the flags; the recipe has what the result depends on."""
        cls.own_flags(parser, "config=config|cfg", "changes=set|opts")
        add_flags(parser, _RUN, "device")
        cls.own_flags(parser, "workers", "out", workers=min(8, core_share()))
        add_flags(parser, _RUN, "overwrite", "resume", "logger")
        job = "methods.ovsegmentor.pretraining.job:PretrainingJob"
        add_flags(parser, job, "checkpoint_seconds")

    def check(self) -> PretrainingJob:
        """Raise for wrong arguments; see `check_job`."""
        from talk2dino.methods.ovsegmentor.pretraining.config import load_pretraining_recipe
        from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob, check_job

        job = from_flags(
            PretrainingJob,
            self,
            recipe=load_pretraining_recipe(self.config, self.changes),
            out=self.out or Path("weights") / Path(self.config).stem,
            command=self.line("--resume", "--overwrite"),
        )
        check_job(job)
        return job

    def run(self, job: PretrainingJob) -> int:
        """Pretrain, and say what was written."""
        from talk2dino.methods.ovsegmentor.pretraining.job import collective_backend, pretrain
        from talk2dino.processes import is_first_process, joined_processes
        from talk2dino.training.history import Record
        from talk2dino.training.run import Hooks

        def on_epoch(record: Record) -> None:
            losses = ["loss", "matching", "entity", *(["mask"] if job.recipe.stage == 2 else [])]
            losses += [] if record["held_out"] is None else ["held_out"]
            shown = [f"{name.replace('_', ' ')} {record[name]:.4f}" for name in losses]
            place = f"epoch {record['epoch']}/{job.recipe.train.epochs}"
            print("  ".join([place, *shown]), flush=True)

        with joined_processes(collective_backend(job.device)) as processes:
            result = pretrain(job, Hooks(step_bar, on_epoch=on_epoch), processes)
        if not is_first_process():
            return DONE
        if result is None:
            print(f"{job.out} is complete: nothing to resume")
            return DONE
        if result.lost:
            print(result.lost)
        if result.best_epoch is not None:
            print(f"kept the weights of epoch {result.best_epoch}, the lowest held-out loss")
        print(f"weights: {job.out}  losses: {job.outputs.losses}, {job.outputs.plot}")
        return DONE


main = Pretrain.main
