"""`python -m talk2dino ablate`: what each option changes, alone and together with others."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from talk2dino.cli import evaluate, train
from talk2dino.cli.entry import DONE, Command, bar_of
from talk2dino.files import write_text
from talk2dino.textfiles import parse_yaml

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

Changes = dict[str, str]
"""Keys of a recipe with other values, as they are written in YAML."""
Variants = dict[str, tuple[Changes, list[str]]]
"""Per variant: what it is trained with, and its flags of evaluate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--model", default="toy", help="one name of `evaluate --model`")
    parser.add_argument(
        "--options",
        nargs="+",
        default=list(OPTIONS),
        metavar="O",
        help="flags of evaluate without dashes, keys of a recipe with --train_dataset; + combines: "
        "propagation short_side=560+stitch=hann alignment_strategy=soft_routing",
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
        "--train_dataset",
        nargs="+",
        metavar="F",
        help="feature files, one or one per --data_root: the default and every variant with keys "
        "of a recipe are trained first, with the seeds 0, 1, ... in the order of --data_root",
    )
    parser.add_argument(
        "--val_dataset", nargs="+", metavar="F", help="the same, for the validation loss"
    )
    parser.add_argument("--scheduler", default="linear", help="of the trainings: see train --help")
    parser.add_argument(
        "--output", type=Path, default=Path("results/ablation"), help="folder of results and table"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")


def check(args: argparse.Namespace) -> Variants:
    """Find all data, and refuse unknown options, before weights are loaded."""
    for flag in ("weights", "train_dataset", "val_dataset"):
        given = getattr(args, flag)
        if given is not None and len(given) not in (1, len(args.data_root)):
            raise ValueError(
                f"--{flag} names {len(given)} files for {len(args.data_root)} folders of "
                "--data_root. Give one, or one for each."
            )
    if args.weights and args.train_dataset:
        raise ValueError("--train_dataset makes the weights: leave --weights out")
    variants = {DEFAULT: ({}, []), **{v: _parts(v, args) for v in args.options}}
    with TemporaryDirectory() as folder:
        for place in range(len(args.data_root)):
            for variant in _trained(args, variants):
                _training(args, place, variant, variants[variant][0], Path(folder))
            _evaluation(args, place, variants, Path(folder), trained=False)
    return variants


def run(args: argparse.Namespace, variants: Variants) -> int:
    """Train and evaluate what is missing, compare, and write the table."""
    from talk2dino.benchmarks.job import run_job

    rows = []
    for place, root in enumerate(args.data_root):
        for variant in _trained(args, variants):
            typed, training = _training(args, place, variant, variants[variant][0], args.output)
            print(f"training for {variant} in {root}: {training.out}", flush=True)
            if code := train.run(typed, training):
                return code
        job, found = _evaluation(args, place, variants, args.output)
        runs = [run for group in found.values() for run in group]
        print(f"{len(runs)} runs of {args.model} in {root}; results in {job.output}", flush=True)
        run_job(job, runs, progress=bar_of("images"))
        rows += [{"data_root": str(root), **row} for row in _compared(job.output, found)]
    content = {"model": args.model, "rows": rows}
    table = _markdown(rows, [str(root) for root in args.data_root])
    path = args.output / "ablation.md"
    numbers = path.with_suffix(".json")
    for file, text in ((numbers, json.dumps(content, indent=1) + "\n"), (path, table)):
        write_text(file, text)
    print(f"\n{table}\nwritten: {path}, {numbers}")
    return DONE


def _parts(variant: str, args: argparse.Namespace) -> tuple[Changes, list[str]]:
    """The keys of a recipe and the flags of evaluate that a variant stands for.

    Raises:
        ValueError: an unknown model, an option that it does not have, or nothing to train on.
    """
    from talk2dino.config import check_name
    from talk2dino.methods.registry import method_class, option_names, owners_of
    from talk2dino.sizes import Sizes

    method = method_class(args.model)
    known = [*option_names(method), *(f.name for f in dataclasses.fields(Sizes))]
    known = [name for name in known if name not in _NO_OPTIONS]
    keys = train.recipe_keys_of(args.model)
    changes, flags = {}, []
    for word in (word.strip() for word in variant.split("+")):
        name, _, value = word.partition("=")
        if name not in keys:
            try:
                check_name(f"option of {args.model}", name, known)
            except ValueError as error:
                raise ValueError(f"{error} {owners_of(name)}") from None
            flags.append(f"--{word}")
            continue
        if args.train_dataset is None:
            raise ValueError(f"--options {variant}: {name} needs a training: add --train_dataset")
        changes[name] = value
    return changes, flags


def _trained(args: argparse.Namespace, variants: Variants) -> list[str]:
    """The variants that have a training, the first of those with the same one."""
    if args.train_dataset is None:
        return []
    first: dict[str, str] = {}
    for variant, (changes, _) in variants.items():
        first.setdefault(_slug(changes), variant)
    return list(first.values())


def _slug(changes: Changes) -> str:
    """What the recipe and the weights of a training are called."""
    return re.sub(r"[^\w.]", "-", "_".join("=".join(pair) for pair in changes.items())) or DEFAULT


def _training(
    args: argparse.Namespace, place: int, variant: str, changes: Changes, folder: Path
) -> tuple[argparse.Namespace, Any]:
    """The flags of `train`, with `--resume`, and its job; the recipe is written to `folder`."""
    values = {key: parse_yaml(value, f"--options {variant}") for key, value in changes.items()}
    recipe = folder / "trained" / f"{_slug(changes)}.yaml"
    train.write_recipe_of(args.model, values, recipe)
    words = ["--model", str(recipe), "--out", str(_weights(args, place, changes)), "--resume"]
    words += ["--seed", str(place), "--scheduler", args.scheduler, "--device", args.device]
    words += ["--train_dataset", _of(args.train_dataset, place)]
    words += ["--val_dataset", _of(args.val_dataset, place)] if args.val_dataset else []
    typed = _typed(train.COMMAND, variant, words)
    return typed, train.check(typed)


def _weights(args: argparse.Namespace, place: int, changes: Changes) -> Path:
    return _results(args, place) / "trained" / f"{_slug(changes)}.pth"


def _results(args: argparse.Namespace, place: int) -> Path:
    """The folder of the results of one data root."""
    output: Path = args.output
    return output / str(place + 1) if place else output


def _of(given: Sequence[str], place: int) -> str:
    return given[0] if len(given) == 1 else given[place]


def _evaluation(
    args: argparse.Namespace, place: int, variants: Variants, folder: Path, trained: bool = True
) -> tuple[Job, dict[str, list[Run]]]:
    """One job for all variants in a data root, and the runs of each."""
    shared = ["--device", args.device, "--data_root", str(args.data_root[place])]
    shared += ["--benchmarks", args.benchmarks, "--output", str(_results(args, place))]
    found = {}
    for variant, (changes, flags) in variants.items():
        recipe = folder / "trained" / f"{_slug(changes)}.yaml" if changes else args.model
        words = ["--model", str(recipe), *shared, *flags]
        if args.train_dataset:
            words += ["--weights", str(_weights(args, place, changes)) if trained else "seeded:0"]
        elif args.weights:
            words += ["--weights", _of(args.weights, place)]
        found[variant] = evaluate.check(_typed(evaluate.COMMAND, variant, words))
    evaluations = [entry for job, _ in found.values() for entry in job.evaluations]
    job = dataclasses.replace(found[DEFAULT][0], evaluations=evaluations, one_by_one=True)
    return job, {variant: runs for variant, (_, runs) in found.items()}


def _typed(command: Command, variant: str, argv: Sequence[str]) -> argparse.Namespace:
    """The flags of another command; what it says of wrong ones is said of the variant."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return command.parser(argv=argv).parse_args(argv, argparse.Namespace(typed=argv))
    except SystemExit:
        complaint = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"--options {variant}: {complaint}") from None


def _compared(folder: Path, variants: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Per benchmark and variant: score, paired difference to the default, time and memory."""
    from talk2dino.report.runs import compare_runs, find_runs

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
