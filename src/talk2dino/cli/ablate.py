"""`python -m talk2dino ablate`: what each option changes, alone and together with others."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.cli import evaluate
from talk2dino.cli.entry import DONE, Command
from talk2dino.files import atomic_path

if TYPE_CHECKING:
    from talk2dino.benchmarks.evaluate import Run
    from talk2dino.benchmarks.job import Job

DEFAULT = "default"
OPTIONS = (
    *("smoothing", "propagation", "propagation+propagation_graph=image", "pamr"),
    *("short_side=560", "short_side=560+stitch=hann"),  # hann needs several windows
    *("smoothing+propagation", "propagation+pamr"),
)
"""What is tried unless it is said: every option alone, then chosen combinations."""
_NO_OPTIONS = ("weights", "vision_weights", "text_weights")

Plan = list[tuple[Path, "Job", dict[str, list["Run"]]]]
"""Per data root: one job for everything, and the runs of each variant."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--model", default="toy", help="one name of `evaluate --model`")
    parser.add_argument(
        "--options",
        nargs="+",
        default=list(OPTIONS),
        metavar="O",
        help="flags of evaluate without dashes; + combines: propagation short_side=560+stitch=hann",
    )
    parser.add_argument(
        "--benchmarks", default="toy", help="all of the model's publication, or names with commas"
    )
    parser.add_argument(
        "--data_root", nargs="+", type=Path, default=[Path("data")], help="folders of data"
    )
    parser.add_argument(
        "--weights", nargs="+", metavar="W", help="of the model: one, or one per --data_root"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/ablation"), help="folder of results and table"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")


def check(args: argparse.Namespace) -> Plan:
    """Find all data, and refuse unknown options, before weights are loaded."""
    given = args.weights or [None]
    weights = given * len(args.data_root) if len(given) == 1 else given
    if len(weights) != len(args.data_root):
        raise ValueError(
            f"--weights names {len(weights)} files for {len(args.data_root)} folders of "
            "--data_root. Give one, or one for each."
        )
    variants = {DEFAULT: [], **{v: _flags(v, args.model) for v in args.options}}
    plan: Plan = []
    for place, (root, own) in enumerate(zip(args.data_root, weights, strict=True), start=1):
        shared = ["--model", args.model, "--device", args.device, "--data_root", str(root)]
        shared += ["--benchmarks", args.benchmarks]
        shared += ["--output", str(args.output / str(place) if place > 1 else args.output)]
        shared += [] if own is None else ["--weights", own]
        found = {name: _prepared(name, [*shared, *flags]) for name, flags in variants.items()}
        evaluations = [entry for job, _ in found.values() for entry in job.evaluations]
        job = dataclasses.replace(found[DEFAULT][0], evaluations=evaluations, one_by_one=True)
        plan.append((root, job, {name: runs for name, (_, runs) in found.items()}))
    return plan


def run(args: argparse.Namespace, plan: Plan) -> int:
    """Evaluate what is missing, compare, and write the table."""
    from talk2dino.benchmarks.job import run_job
    from talk2dino.cli.entry import bar_of

    rows = []
    for root, job, variants in plan:
        runs = [run for group in variants.values() for run in group]
        print(f"{len(runs)} runs of {args.model} in {root}; results in {job.output}", flush=True)
        run_job(job, runs, progress=bar_of("images"))
        rows += [{"data_root": str(root), **row} for row in _compared(job.output, variants)]
    content = {"model": args.model, "rows": rows}
    table = _markdown(rows, [str(root) for root in args.data_root])
    path = args.output / "ablation.md"
    numbers = path.with_suffix(".json")
    for file, text in ((numbers, json.dumps(content, indent=1) + "\n"), (path, table)):
        with atomic_path(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{table}\nwritten: {path}, {numbers}")
    return DONE


def _flags(variant: str, model: str) -> list[str]:
    """The flags of evaluate that a variant stands for.

    Raises:
        ValueError: an unknown model, or an option that it does not have.
    """
    from talk2dino.config import check_name
    from talk2dino.methods.registry import method_class, option_names, owners_of
    from talk2dino.sizes import Sizes

    known = [*option_names(method_class(model)), *(f.name for f in dataclasses.fields(Sizes))]
    known = [name for name in known if name not in _NO_OPTIONS]
    words = [word.strip() for word in variant.split("+")]
    for name in (word.partition("=")[0] for word in words):
        try:
            check_name(f"option of {model}", name, known)
        except ValueError as error:
            raise ValueError(f"{error} {owners_of(name)}") from None
    return [f"--{word}" for word in words]


def _prepared(variant: str, argv: Sequence[str]) -> tuple[Job, list[Run]]:
    """What the evaluator makes of a command line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser = evaluate.COMMAND.parser(argv=argv)
            args = parser.parse_args(argv, argparse.Namespace(typed=argv))
    except SystemExit:
        complaint = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"--options {variant}: {complaint}") from None
    return evaluate.check(args)


def _compared(folder: Path, variants: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Per benchmark and variant: score, paired difference to the default, time and memory."""
    from talk2dino.report.compare import compare_runs
    from talk2dino.report.runs import find_runs

    paths = {run.name: folder / f"{run.name}.json" for group in variants.values() for run in group}
    found = {run.path: run for run in find_runs(list(paths.values()))[0]}
    rows = []
    for place in range(len(variants[DEFAULT])):
        runs = [found[paths[group[place].name].resolve()] for group in variants.values()]
        compared = [None, *compare_runs(runs[0], runs[1:])]
        for variant, one, difference in zip(variants, runs, compared, strict=True):
            row: dict[str, Any] = {"benchmark": one.benchmark, "options": variant}
            row |= {"file": str(one.path), "images": one.result["num_images"]}
            row |= {"mIoU": one.result["mIoU"], "timing": one.result["timing"]}
            if difference is not None:
                row |= {"difference": difference.difference, "interval": difference.interval}
                row["better"] = difference.better
            rows.append(row)
    return rows


def _markdown(rows: Sequence[dict[str, Any]], roots: Sequence[str]) -> str:
    """A table per benchmark: a line per variant, a column with its interval per data root."""
    lines = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == benchmark]
        heads = ["options", "mIoU", *(f"difference in {root}" for root in roots)]
        heads += ["ms per image", "peak MiB"]
        lines += [f"{benchmark}, {own[0]['images']} images", "", "| " + " | ".join(heads) + " |"]
        lines.append("| --- |" + " ---: |" * (len(heads) - 1))
        for variant in dict.fromkeys(row["options"] for row in own):
            group = [row for row in own if row["options"] == variant]
            cells = [variant, f"{sum(row['mIoU'] for row in group) / len(group):.2f}"]
            cells += [_difference(row) for row in group]
            timings = [row["timing"] for row in group if row["timing"]]
            images, seconds = (sum(t[name] for t in timings) for name in ("images", "seconds"))
            cells.append(f"{1000 * seconds / images:.1f}" if timings else "-")
            peaks = [t["peak_gpu_memory_mib"] or t["peak_memory_mib"] for t in timings]
            cells.append(f"{max(peaks):.0f}" if peaks else "-")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _difference(row: dict[str, Any]) -> str:
    """Points of mIoU and their 95 % paired bootstrap interval."""
    if "difference" not in row:
        return "-"
    low, high = row["interval"]
    return f"{row['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


COMMAND = Command(
    name="ablate",
    summary="Measure what options change: paired differences, time and memory, in one table.",
    example="python -m talk2dino ablate --model vitb --benchmarks all --data_root data",
    add_arguments=add_arguments,
    check=check,
    run=run,
)
main = COMMAND.main
