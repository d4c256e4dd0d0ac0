"""`talk2dino pretrain`: OVSegmentor's pretraining, stage 1 or 2, from captions alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.cli.command import add_flags, core_share, from_flags
from talk2dino.cli.train import TrainingCommand

if TYPE_CHECKING:
    from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob


class Pretrain(TrainingCommand):
    """Pretrain OVSegmentor on images and captions: stage 1, then stage 2."""

    example = (
        "--config configs/ovsegmentor_stage1.yaml "
        "--set data.metafile=cc12m/train.csv data.images=cc12m/images"
    )

    config: str
    """YAML: configs/ovsegmentor_*.yaml."""
    changes: list[str] = []
    """SECTION.KEY=VALUE: replace values of the recipe, for example data.images=cc12m/images
    train.seed=1."""
    out: Path | None = None
    """Folder (default: weights/<name of the recipe>)."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the flags; the recipe has what the result depends on."""
        cls.own_flags(parser, "config=config|cfg", "changes=set|opts", "out")
        job = "methods.ovsegmentor.pretraining.job:PretrainingJob"
        run = ("overwrite", "resume", "logger", "checkpoint_seconds")
        add_flags(parser, job, "device", "workers", *run, workers=min(8, core_share()))

    def check(self) -> PretrainingJob:
        from talk2dino.methods.ovsegmentor.config import load_pretraining_recipe
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

    def findings(self, done: Any) -> Iterable[object]:
        """The images that could not be read."""
        return filter(None, [done.lost])
