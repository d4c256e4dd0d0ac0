"""`python -m talk2dino evaluate`: models on benchmarks in one go, beside published numbers."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.benchmarks.table import BENCHMARKS, check_data_root, find_benchmarks
from talk2dino.cli.command import Command, add_flags, bar_of, core_share, from_flags
from talk2dino.cli.method_flags import MethodCommand
from talk2dino.files import write_text
from talk2dino.methods.registry import MODEL_NAMES  # noqa: F401  for the help

if TYPE_CHECKING:
    from talk2dino.benchmarks.job import Evaluation, Job, Outcome, Run

    Found = tuple[Job, list[Run]]


_JOB = "benchmarks.job:Job"


class EvaluationCommand(Command):
    """What both evaluation commands share: flags, the run, and the table at the end."""

    data_root: Path
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""
    batch_size: int | None = None
    """Windows per pass (default: 32 on a GPU, else 4)."""
    score_memory: int = 256
    """MiB for upsampled scores; more classes take more turns."""

    @classmethod
    def run_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Declare where the data is, where results go, and what is evaluated now."""
        files = parser.add_argument_group("files")
        where = {"data_root": Path("data"), "output": Path("results")}
        add_flags(files, _JOB, "data_root", "output", "reader", **where)
        kinds = ("predictions=save_predictions", "coloured=pred_qual_path", "truth=gt_qual_path")
        add_flags(files, "benchmarks.results:PictureFolders", *kinds)
        work = parser.add_argument_group("work")
        cls.own_flags(work, "device", "batch_size", "score_memory")
        readers = min(16, max(2, core_share()))
        add_flags(work, _JOB, "readers", "num_jobs", "job_id", readers=readers)

    def found(self, evaluations: Sequence[Evaluation], folders_per_benchmark: bool) -> Found:
        """The job of some evaluations, and their runs; all data is looked for."""
        from talk2dino.benchmarks.job import Job, prepare
        from talk2dino.benchmarks.results import PictureFolders
        from talk2dino.benchmarks.scoring import Batching
        from talk2dino.devices import resolve_device

        device = resolve_device(self.device)
        gpu = device.type == "cuda"
        size = self.batch_size if self.batch_size is not None else (32 if gpu else 4)
        batching = Batching(size, across_images=gpu, score_bytes=self.score_memory << 20)
        job = from_flags(
            Job,
            self,
            device=device,
            batching=batching,
            folders=from_flags(PictureFolders, self),
            folders_per_benchmark=folders_per_benchmark,
        )
        return job, prepare(job, evaluations)

    def run(self, found: Found) -> None:
        """Evaluate in this process or in all that were started together; rank 0 prints."""
        from talk2dino.benchmarks.job import run_job
        from talk2dino.processes import joined_processes

        job, runs = found
        with joined_processes() as processes:
            job = dataclasses.replace(job, device=processes.device(job.device))
            first = processes.rank == 0
            if first:
                names = ", ".join(dict.fromkeys(run.dataset.benchmark.key for run in runs))
                models = ", ".join(dict.fromkeys(run.model for run in runs))
                print(f"{models} on {names}; device {job.device}; results in {job.output}")
            outcomes = run_job(job, runs, processes, bar_of("images", shown=first))
            if first:
                _report(job.output, outcomes)
                self.log(job, outcomes)

    def log(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        """Tell others of the results."""


class Evaluate(EvaluationCommand, MethodCommand):
    """Evaluate models on the benchmarks and compare with the papers."""

    example = "--model vitb --benchmarks all --pamr --data_root data"

    model: str
    """Names with commas: {MODEL_NAMES}; or a config, a folder of save_pretrained, owner/name."""
    benchmarks: str = "all"
    """All of a model's publication, or names and YAML files of data sets with commas:
    voc,mine.yaml."""
    weights: list[str] | None = None
    """A file, a folder or seeded:<n>; with several models <model>=<file>."""
    bg_thresh: float | None = None
    """Background threshold (default: the published one)."""
    boundary: bool = False
    """Score borders too: boundary IoU, and pixels that differ across windows' borders."""
    vocabulary: Path | None = None
    """Text file with words of the classes, a line for each in the benchmark's order: name; alias;
    alias."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = ("model", "benchmarks", "weights", "bg_thresh", "boundary", "vocabulary")
        cls.own_flags(parser, *own)
        cls.option_flags(parser)
        cls.run_flags(parser)

    def check(self) -> Found:
        """Models, their benchmarks, and the threshold as published or as asked for."""
        from talk2dino.benchmarks.job import Evaluation
        from talk2dino.methods.registry import find_method, split_models, split_weights
        from talk2dino.pictures.vocabularies import read_word_lists

        if ".y" not in self.benchmarks:  # own data may be elsewhere
            check_data_root(self.data_root)  # before a model is downloaded
        names = split_models(self.model)
        weights = split_weights(self.weights, names)
        pooling = self.pooled("--vocabulary", self.vocabulary)
        words = None if self.vocabulary is None else read_word_lists(self.vocabulary)
        more = (self.boundary, words, pooling)
        asked = self.benchmarks.strip()
        evaluations, without = [], []
        for name, settings in self.settings_of(names).items():
            chosen = {"weights": weights[name]} if name in weights else {}
            method = find_method(name, settings | chosen)
            method.words().check_background(self.bg_thresh)
            rows = list(method.published_on)
            if asked != "all":
                rows = find_benchmarks(asked, self.data_root)
            for row in dict.fromkeys(map(method.benchmark, rows)):
                threshold = method.threshold(row) if row.bg_thresh is None else row.bg_thresh
                if self.bg_thresh is not None and row.background:
                    threshold = self.bg_thresh
                for remark in method.remarks(row):
                    warn(remark)
                if not row.background:
                    without.append(row.key)
                evaluations.append(Evaluation(row, method.on(row), threshold, *more))
        if not evaluations:
            raise ValueError(
                f"--benchmarks all: no numbers of {self.model} are published. Name the "
                f"benchmarks: --benchmarks {','.join(BENCHMARKS)}"
            )
        if self.bg_thresh is not None and without:
            warn(f"--bg_thresh is unused for {', '.join(dict.fromkeys(without))}: {NO_BACKGROUND}")
        return self.found(evaluations, folders_per_benchmark=True)


NO_BACKGROUND = "no background class there"


def warn(text: str) -> None:
    """Say on stderr what a user may not expect."""
    print(f"warning: {text}", file=sys.stderr)


def _report(output: Path, outcomes: Sequence[Outcome]) -> None:
    """Print the table of what is complete and what is worth saying, and write the table."""
    from talk2dino.benchmarks.tables import published_sources, results_table

    models = list(dict.fromkeys(outcome.run.model for outcome in outcomes))

    def say(run: Run, text: str) -> None:
        key = run.dataset.benchmark.key
        print(f"{f'{run.model}, {key}' if len(models) > 1 else key}: {text}")

    complete, results = [], []
    for run, result, counted in ((o.run, o.result, o.counted) for o in outcomes):
        if result is not None:
            complete.append(run)
            results.append(result)
            continue
        counts = f"{counted} of {len(run.dataset.samples)} images are counted"
        say(run, f"{counts}; the job that completes them writes the result")
    if not complete:
        return
    table = results_table(results)
    text = table.markdown()
    if sources := published_sources(results):
        text += f"\nPaper: {'; '.join(sources)}.\n"
    text += _changes([outcome.run for outcome in outcomes])
    names = "\n".join(run.name for run in complete)  # other runs, another table
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    path = output / f"{'_'.join(['table', *models, digest])}.md"
    write_text(path, text)
    write_text(path.with_suffix(".csv"), table.csv())
    print(f"\n{text}")
    for run, result in zip(complete, results, strict=True):
        if absent := sum(iou is None for iou in result["per_class"].values()):
            classes = "1 class" if absent == 1 else f"{absent} classes"
            say(run, f"{classes} without any pixel (nan), left out of the mean")
        if uniform := result["uniform_windows"]:
            alike = "windows in which all patches are alike; see docs/evaluation.md"
            say(run, f"{uniform} {alike}")
    if timings := [result["timing"] for result in results if result["timing"]]:
        memory = max(timing["peak_memory_mib"] for timing in timings)
        print(f"peak memory {memory:.0f} MiB", end="")
        gpu = [t["peak_gpu_memory_mib"] for t in timings if t["peak_gpu_memory_mib"]]
        print(f", on the GPU {max(gpu):.0f} MiB" if gpu else "")
    print(f"written: {path} and, per benchmark, {', '.join(f'{r.name}.json' for r in complete)}")


def _changes(runs: Sequence[Run]) -> str:
    """Lines on what the protocol is, and on what it changes; empty for methods' own."""
    from talk2dino.benchmarks.tables import protocol_of
    from talk2dino.methods.base import PROTOCOLS

    protocol = protocol_of(runs[0].settings)
    if protocol is None:
        return ""
    lines = ["", f"Protocol {protocol}: {PROTOCOLS[protocol]}. Changed:", ""]
    for run in runs:
        row = run.evaluation.benchmark
        changes = "; ".join(run.evaluation.method.changes(row, run.dataset.classes)) or "nothing"
        lines.append(f"- {run.model}, {row.key}: {changes}")
    return "\n".join([*lines, ""])
