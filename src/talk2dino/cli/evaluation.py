"""What both evaluation commands share: flags, progress bars, and the table at the end."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.cli.entry import bar_of, core_share
from talk2dino.cli.flags import add_flags, from_flags
from talk2dino.files import write_text

if TYPE_CHECKING:
    from talk2dino.benchmarks.evaluate import Run
    from talk2dino.benchmarks.job import Evaluation, Job, Outcome

_GPU_BATCH, _CPU_BATCH = 32, 4
_SCORE_MIB = 256


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Declare where the data is, where results go, and what is evaluated now."""
    files = parser.add_argument_group("files")
    folders = {"data_root": Path("data"), "output": Path("results")}
    add_flags(files, "benchmarks.job:Job", "data_root", "reader", "output", **folders)
    kinds = ("predictions=save_predictions", "coloured=pred_qual_path", "truth=gt_qual_path")
    add_flags(files, "benchmarks.pictures:PictureFolders", *kinds)
    work = parser.add_argument_group("work")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")
    work.add_argument(
        "--batch_size", type=int, help="windows per pass (default: 32 on a GPU, else 4)"
    )
    work.add_argument(
        "--score_memory",
        type=int,
        default=_SCORE_MIB,
        metavar="MIB",
        help="for upsampled scores; more classes take more turns",
    )
    readers = min(16, max(2, core_share()))
    add_flags(work, "benchmarks.evaluate:Share", "readers", "num_jobs", "job_id", readers=readers)


def job_of(
    args: argparse.Namespace, evaluations: Sequence[Evaluation], folders_per_benchmark: bool
) -> Job:
    """The job of some evaluations, by the flags that both commands have."""
    from talk2dino.benchmarks.evaluate import Share
    from talk2dino.benchmarks.job import Job
    from talk2dino.benchmarks.pictures import PictureFolders
    from talk2dino.benchmarks.scoring import Batching
    from talk2dino.devices import resolve_device

    device = resolve_device(args.device)
    gpu = device.type == "cuda"
    size = args.batch_size if args.batch_size is not None else (_GPU_BATCH if gpu else _CPU_BATCH)
    batching = Batching(size, across_images=gpu, score_bytes=args.score_memory << 20)
    return Job(
        evaluations=evaluations,
        data_root=args.data_root,
        output=args.output,
        device=device,
        share=Share(args.job_id, args.num_jobs, batching, args.readers),
        folders=from_flags(PictureFolders, args),
        reader=args.reader,
        folders_per_benchmark=folders_per_benchmark,
    )


def run_and_report(job: Job, runs: Sequence[Run]) -> list[Outcome]:
    """Evaluate in this process or in all that were started together; rank 0 prints."""
    import dataclasses

    from talk2dino.benchmarks.job import run_job
    from talk2dino.processes import joined_processes

    with joined_processes() as processes:
        job = dataclasses.replace(job, device=processes.device(job.device))
        if processes.rank == 0:
            names = ", ".join(dict.fromkeys(run.dataset.benchmark.key for run in runs))
            models = ", ".join(job.models)
            print(f"{models} on {names}; device {job.device}; results in {job.output}")
        outcomes = run_job(job, runs, processes, bar_of("images", shown=processes.rank == 0))
        if processes.rank == 0:
            _report(job, outcomes)
    return outcomes


def _report(job: Job, outcomes: Sequence[Outcome]) -> None:
    from talk2dino.benchmarks.tables import published_sources, results_table

    complete = [outcome for outcome in outcomes if outcome.result is not None]
    for outcome in outcomes:
        if outcome.result is None:
            total = len(outcome.run.dataset.samples)
            print(
                f"{_shown(job, outcome)}: {outcome.counted} of {total} images are "
                "counted; the job that completes them writes the result"
            )
    if not complete:
        return
    results: list[dict[str, Any]] = [o.result for o in complete if o.result is not None]
    table = results_table(results)
    text = table.markdown()
    if sources := published_sources(results):
        text += f"\nPaper: {'; '.join(sources)}.\n"
    text += _changes(job, outcomes)
    path = job.output / f"{_table_name(job, complete)}.md"
    write_text(path, text)
    write_text(path.with_suffix(".csv"), table.csv())
    print(f"\n{text}")
    for outcome in complete:
        assert outcome.result is not None
        absent = [name for name, iou in outcome.result["per_class"].items() if iou is None]
        if absent:
            print(
                f"{_shown(job, outcome)}: {len(absent)} classes without any pixel (nan), "
                "left out of the mean"
            )
        if outcome.result["uniform_windows"]:
            print(
                f"{_shown(job, outcome)}: {outcome.result['uniform_windows']} windows in which all "
                "patches are alike; see docs/evaluation.md"
            )
    timings = [result["timing"] for result in results if result["timing"]]
    if timings:
        memory = max(timing["peak_memory_mib"] for timing in timings)
        print(f"peak memory {memory:.0f} MiB", end="")
        gpu = [t["peak_gpu_memory_mib"] for t in timings if t["peak_gpu_memory_mib"]]
        print(f", on the GPU {max(gpu):.0f} MiB" if gpu else "")
    print(f"written: {path} and, per benchmark, {', '.join(str(o.path.name) for o in complete)}")


def _table_name(job: Job, outcomes: Sequence[Outcome]) -> str:
    """One name per set of runs, so that tables never overwrite each other."""
    from talk2dino.benchmarks.tables import protocol_of

    names = "\n".join(outcome.run.name for outcome in outcomes)
    words = ["table", *job.models]
    if any(outcome.run.settings["segmenter"].get("pamr") for outcome in outcomes):
        words.append("pamr")
    words += [name] if (name := protocol_of(outcomes[0].run.settings)) else []
    return "_".join([*words, hashlib.sha256(names.encode()).hexdigest()[:8]])


def _changes(job: Job, outcomes: Sequence[Outcome]) -> str:
    """Lines on what the protocol is, and on what it changes; empty for methods' own."""
    from talk2dino.benchmarks.tables import protocol_of
    from talk2dino.methods.base import PROTOCOLS

    protocol = protocol_of(outcomes[0].run.settings)
    if protocol is None:
        return ""
    lines = ["", f"Protocol {protocol}: {PROTOCOLS[protocol]}. Changed:", ""]
    for evaluation, outcome in zip(job.evaluations, outcomes, strict=True):
        row, names = evaluation.benchmark, outcome.run.dataset.classes
        changes = "; ".join(evaluation.method.changes(row, names)) or "nothing"
        lines.append(f"- {evaluation.method.model}, {row.key}: {changes}")
    return "\n".join([*lines, ""])


def _shown(job: Job, outcome: Outcome) -> str:
    """What a line calls a run: its benchmark, and its model where there are several."""
    key = outcome.run.dataset.benchmark.key
    return f"{outcome.run.model}, {key}" if len(job.models) > 1 else key
