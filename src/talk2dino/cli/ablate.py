"""`python -m talk2dino ablate`: what each option changes, alone and together with others."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from talk2dino.cli.command import Command, bar_of
from talk2dino.cli.evaluate import Evaluate
from talk2dino.cli.train import Train
from talk2dino.files import write_text
from talk2dino.textfiles import parse_yaml

if TYPE_CHECKING:
    from talk2dino.benchmarks.job import Run

DEFAULT = "default"
OPTIONS = (
    *("smoothing", "propagation", "propagation+propagation_graph=image", "pamr"),
    *("short_side=560", "short_side=560+stitch=hann"),  # hann needs several windows
    *("smoothing+propagation", "propagation+pamr"),
)
"""What is tried unless it is said: every option alone, then chosen combinations."""

Changes = dict[str, str]
"""Keys of a recipe with other values, as they are written in YAML."""
Variants = dict[str, tuple[Changes, list[str]]]
"""Per variant: what it is trained with, and its flags of evaluate."""


class Ablate(Command):
    """Measure what options change: paired differences, time and memory, in one table."""

    example = "--model vitb --benchmarks all --data_root data"

    model: str = "toy"
    """One name of `evaluate --model`."""
    options: list[str] = list(OPTIONS)
    """Flags of evaluate without dashes, keys of a recipe with --train_dataset; + combines:
    propagation short_side=560+stitch=hann alignment_strategy=soft_routing."""
    benchmarks: str = "toy"
    """All of the model's publication, or names with commas."""
    data_root: list[Path] = [Path("data")]
    """Folders of data."""
    weights: list[str] | None = None
    """Of the model: one, or one per --data_root."""
    train_dataset: list[str] | None = None
    """Feature files, one or one per --data_root: the default and every variant with keys of a
    recipe are trained first, with the seeds 0, 1, ... in the order of --data_root."""
    val_dataset: list[str] | None = None
    """The same, for the validation loss."""
    scheduler: str = "linear"
    """Of the trainings: see train --help."""
    output: Path = Path("results/ablation")
    """Folder of results and table."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""

    def check(self) -> Variants:
        for flag in ("weights", "train_dataset", "val_dataset"):
            given = getattr(self, flag)
            if given is not None and len(given) not in (1, len(self.data_root)):
                raise ValueError(
                    f"--{flag} names {len(given)} files for {len(self.data_root)} folders of "
                    "--data_root. Give one, or one for each."
                )
        if self.weights and self.train_dataset:
            raise ValueError("--train_dataset makes the weights: leave --weights out")
        variants = {DEFAULT: ({}, []), **{v: self._parts(v) for v in self.options}}
        with TemporaryDirectory() as folder:
            for place in range(len(self.data_root)):
                for variant, parts in variants.items():
                    for command in self._commands(place, variant, *parts, Path(folder)):
                        command.check()
        return variants

    def run(self, variants: Variants) -> None:
        from talk2dino.benchmarks.job import run_job

        rows = []
        for place, root in enumerate(self.data_root):
            trained = set()
            for variant, parts in variants.items():
                *training, _ = self._commands(place, variant, *parts, self.output)
                if training and (slug := _slug(parts[0])) not in trained:
                    trained.add(slug)
                    found = training[0].check()
                    print(f"training for {variant} in {root}: {found.out}", flush=True)
                    training[0].run(found)
            checked = {
                variant: self._commands(place, variant, *parts, self.output)[-1].check()
                for variant, parts in variants.items()
            }
            job = dataclasses.replace(checked[DEFAULT][0], one_by_one=True)
            groups = {variant: runs for variant, (_, runs) in checked.items()}
            runs = [run for group in groups.values() for run in group]
            print(
                f"{len(runs)} runs of {self.model} in {root}; results in {job.output}", flush=True
            )
            run_job(job, runs, progress=bar_of("images"))
            rows += [{"data_root": str(root), **row} for row in _compared(job.output, groups)]
        table = _markdown(rows, [str(root) for root in self.data_root])
        numbers, path = self.output / "ablation.json", self.output / "ablation.md"
        write_text(numbers, json.dumps({"model": self.model, "rows": rows}, indent=1) + "\n")
        write_text(path, table)
        print(f"\n{table}\nwritten: {path}, {numbers}")

    def _parts(self, variant: str) -> tuple[Changes, list[str]]:
        """The keys of a recipe and the flags of evaluate that a variant stands for.

        Raises:
            ValueError: an unknown model, or nothing to train on.
        """
        from talk2dino.methods.registry import method_class
        from talk2dino.methods.talk2dino.method import Talk2DinoMethod
        from talk2dino.methods.talk2dino.recipe import recipe_keys

        keys = recipe_keys() if method_class(self.model) is Talk2DinoMethod else {}
        if self.train_dataset and not keys:
            raise ValueError(f"--train_dataset: {self.model} is no Talk2DINO, which this trains")
        changes: Changes = {}
        flags = []
        for word in map(str.strip, variant.split("+")):
            name, _, value = word.partition("=")
            if name not in keys:
                flags.append(f"--{word}")
            elif self.train_dataset is None:
                raise ValueError(
                    f"--options {variant}: {name} needs a training: add --train_dataset"
                )
            else:
                changes[name] = value
        return changes, flags

    def _commands(
        self, place: int, variant: str, changes: Changes, flags: list[str], folder: Path
    ) -> list[Any]:
        """A resumed training, if one is needed, whose recipe is written to `folder`; an evaluation.

        The latter is one of seeded weights as long as nothing is trained.
        """
        from talk2dino.methods.talk2dino.method import MODELS
        from talk2dino.methods.talk2dino.recipe import write_recipe

        common = ["--device", self.device]
        results = self.output / str(place + 1) if place else self.output
        recipe = folder / "trained" / f"{_slug(changes)}.yaml"
        weights = results / "trained" / f"{_slug(changes)}.pth"
        words = ["--model", str(recipe) if changes else self.model, *flags, *common]
        words += ["--data_root", str(self.data_root[place])]
        words += ["--benchmarks", self.benchmarks, "--output", str(results)]
        commands: list[Any] = []
        if self.train_dataset:
            where = f"--options {variant}"
            values = {key: parse_yaml(value, where) for key, value in changes.items()}
            write_recipe(MODELS.get(self.model, self.model), values, recipe)
            training = ["--model", str(recipe), "--out", str(weights), "--resume", *common]
            training += ["--seed", str(place), "--scheduler", self.scheduler]
            for flag in ("train_dataset", "val_dataset"):
                if given := getattr(self, flag):
                    training += [f"--{flag}", given[place % len(given)]]
            commands.append(Train.parse(training, where))
            words += ["--weights", str(weights) if weights.exists() else "seeded:0"]
        elif self.weights:
            words += ["--weights", self.weights[place % len(self.weights)]]
        return [*commands, Evaluate.parse(words, f"--options {variant}")]


def _slug(changes: Changes) -> str:
    """What the recipe and the weights of a training are called."""
    return re.sub(r"[^\w.]", "-", "_".join("=".join(pair) for pair in changes.items())) or DEFAULT


def _compared(folder: Path, variants: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Per benchmark and variant: score, paired difference to the default, time and memory."""
    from talk2dino.report.runs import compare_runs, find_runs

    paths = {run.name: folder / f"{run.name}.json" for group in variants.values() for run in group}
    found = {run.path: run for run in find_runs(list(paths.values()))[0]}
    rows = []
    for place in range(len(variants[DEFAULT])):
        runs = [found[paths[group[place].name].resolve()] for group in variants.values()]
        compared = [None, *(d for d in compare_runs(runs[0], runs[1:]) if not d.measure)]
        for variant, one, difference in zip(variants, runs, compared, strict=True):
            row: dict[str, Any] = {"benchmark": one.benchmark, "options": variant}
            row |= {"file": str(one.path), "images": one.result["num_images"]}
            row |= {"mIoU": one.result["mIoU"], "timing": one.result["timing"]}
            if difference is not None:
                numbers = difference.as_json()
                row |= {name: numbers[name] for name in ("difference", "interval", "better")}
            rows.append(row)
    return rows


def _markdown(rows: Sequence[dict[str, Any]], roots: Sequence[str]) -> str:
    """A table per benchmark: a line per variant, per data root a column of points of mIoU.

    Beside them stands their 95 % paired bootstrap interval.
    """
    from talk2dino.benchmarks.tables import Table

    parts = []
    columns = ["options", "mIoU", *(f"difference in {root}" for root in roots)]
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == benchmark]
        lines: list[list[Any]] = []
        for variant in dict.fromkeys(row["options"] for row in own):
            group = [row for row in own if row["options"] == variant]
            line = [variant, sum(row["mIoU"] for row in group) / len(group)]
            for row in group:
                low, high = row.get("interval", (None, None))
                line.append(
                    None if low is None else f"{row['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
                )
            timings = [row["timing"] for row in group if row["timing"]]
            images, seconds = (sum(t[name] for t in timings) for name in ("images", "seconds"))
            peaks = [t["peak_gpu_memory_mib"] or t["peak_memory_mib"] for t in timings]
            line += [1000 * seconds / images, round(max(peaks))] if timings else [None, None]
            lines.append(line)
        table = Table([*columns, "ms per image", "peak MiB"], lines)
        parts.append(f"{benchmark}, {own[0]['images']} images\n\n{table.markdown()}")
    return "\n".join(parts)
