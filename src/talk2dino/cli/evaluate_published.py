"""The published evaluation command, `src/open_vocabulary_segmentation/main.py --eval ...`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.evaluate import NO_BACKGROUND, EvaluationCommand, warn

if TYPE_CHECKING:
    from talk2dino.benchmarks.job import Evaluation, Job, Outcome
    from talk2dino.cli.evaluate import Found
    from talk2dino.methods.talk2dino.config import EvaluateSection, SegmenterConfig

_CONFIGS = "src/open_vocabulary_segmentation/configs"


class EvaluatePublished(EvaluationCommand):
    """Evaluate as the published README says."""

    script = "-m torch.distributed.run src/open_vocabulary_segmentation/main.py"
    details = {
        "eval_base_cfg": {"flags": ("--eval_base_cfg", "--eval_base")},
        "local_rank": {"flags": ("--local_rank", "--local-rank"), "help": argparse.SUPPRESS},
    }
    example = (
        f"--eval --eval_cfg {_CONFIGS}/voc/dinotext_voc_vitb_mlp_infonce.yml "
        f"--eval_base {_CONFIGS}/voc/eval_voc_pamr.yml"
    )

    eval: bool = False
    """Evaluate; nothing else is done here."""
    eval_cfg: Path
    """YAML file of the model."""
    eval_base_cfg: Path | None = None
    """YAML file of the evaluation."""
    opts: list[str] = []
    """KEY=VALUE: override the files, such as evaluate.bg_thresh=0.52
    model.vision_weights=seeded:7."""
    wandb: bool = False
    """Log the numbers to Weights & Biases."""
    wandb_name: str | None = None
    """Name of the run there (default: the result's)."""
    precision: str = "fp32"
    """Of the vision backbone: fp32, tf32, bf16 or fp16."""
    local_rank: int | None = None
    """Not read."""
    coloured: Path | None
    truth: Path | None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = ("eval", "eval_cfg", "eval_base_cfg", "opts", "wandb", "wandb_name", "local_rank")
        cls.own_flags(parser, *own, "precision")
        cls.run_flags(parser)

    def check(self) -> Found:
        from talk2dino.methods.talk2dino.config import read_published
        from talk2dino.methods.talk2dino.method import name_of_recipe
        from talk2dino.training.job import check_logger

        if not self.eval:
            raise ValueError("this command only evaluates: pass --eval. Training is train.py.")
        if self.wandb_name and not self.wandb:
            raise ValueError("--wandb_name needs --wandb.")
        if self.wandb:
            check_logger("wandb")
        config, section, recipe = read_published(self.eval_cfg, self.eval_base_cfg, self.opts)
        coloured, truth = section.pred_qual_path, section.gt_qual_path
        self.coloured = self.coloured or (None if coloured is None else Path(coloured))
        self.truth = self.truth or (None if truth is None else Path(truth))
        config = dataclasses.replace(config, precision=self.precision)
        name = name_of_recipe(recipe) or self.eval_cfg.stem
        evaluations = evaluations_of(config, section, name)
        return self.found(evaluations, folders_per_benchmark=len(evaluations) > 1)

    def log(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        """Log the numbers to Weights & Biases, if asked to."""
        from talk2dino.training.job import open_logger

        if not self.wandb:
            return
        values = {
            f"{result['benchmark']}/{name}": result[name]
            for result in (outcome.result for outcome in outcomes)
            if result is not None
            for name in ("mIoU", "mAcc", "aAcc")
            if result[name] is not None
        }
        name = self.wandb_name or outcomes[0].run.name
        settings = {outcome.run.name: dict(outcome.run.settings) for outcome in outcomes}
        with open_logger("wandb", job.output / f"{name}.run", settings) as log:
            log(values, 0)


def evaluations_of(
    config: SegmenterConfig, section: EvaluateSection, name: str
) -> list[Evaluation]:
    """The evaluations that `read_published` found, of a model that results call `name`."""
    from talk2dino.benchmarks.job import Evaluation
    from talk2dino.benchmarks.table import find_benchmarks
    from talk2dino.methods.talk2dino.hub.find import demo_threshold
    from talk2dino.methods.talk2dino.method import Talk2DinoMethod, Talk2DinoOptions

    rows = find_benchmarks(section.task)
    without = [row.key for row in rows if not row.background]
    if section.bg_thresh is not None and without:
        warn(f"evaluate.bg_thresh is unused for {', '.join(without)}: {NO_BACKGROUND}")
    method = Talk2DinoMethod(name, Talk2DinoOptions(), config, demo_threshold(config))
    return [Evaluation(row, method, section.bg_thresh if row.background else None) for row in rows]
