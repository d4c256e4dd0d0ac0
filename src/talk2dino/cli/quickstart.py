"""`python -m talk2dino quickstart`: the whole pipeline on a drawn world, without any download."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from talk2dino.cli.entry import DONE, INTERRUPTED, Command
from talk2dino.files import (
    check_folder_writable,
    content_digest,
    find_in_checkout,
    write_text,
)
from talk2dino.textfiles import read_json, read_yaml
from talk2dino.toy.world import World, check_world, world_of_size

RECIPE = "configs/toy.yaml"
MAINS = {
    "-m talk2dino toy": "talk2dino.cli.toy",
    "dino_extraction_v2.py": "talk2dino.cli.extract",
    "text_features_extraction.py": "talk2dino.cli.extract_text",
    "train.py": "talk2dino.cli.train",
    "-m talk2dino evaluate": "talk2dino.cli.evaluate",
    "-m talk2dino report": "talk2dino.cli.report",
    "demo.py": "talk2dino.cli.segment",
}
"""The modules behind the scripts: called here, so that torch is imported only once."""

_EXTRACT = (
    "dino_extraction_v2.py --ann_path {data}/coco/captions_%s.json --data_dir {data}/coco "
    "--model toy --resize_dim 224 --crop_dim 224 --extract_avg_self_attn "
    "--extract_disentangled_self_attn --out_path {out}/features/%s.pth"
)
_EVALUATE = (
    "-m talk2dino evaluate --model {recipe} --weights %s --benchmarks toy "
    "--data_root {data} --output {out}/results --save_predictions {out}/predictions/%s"
)
_TEXT = "text_features_extraction.py --ann_path {out}/features/%s.pth --model toy"
STEPS = {
    "world": ("data", "-m talk2dino toy --output {data} --images {images} --seed {seed}"),
    "image features (train)": ("features/train.pth", _EXTRACT % ("train", "train")),
    "image features (val)": ("features/val.pth", _EXTRACT % ("val", "val")),
    "text features (train)": ("features/train.pth", _TEXT % "train"),
    "text features (val)": ("features/val.pth", _TEXT % "val"),
    "train": (
        "weights/toy.pth",
        "train.py --model {recipe} --train_dataset {out}/features/train.pth --val_dataset "
        "{out}/features/val.pth --out {out}/weights/toy.pth --scheduler cosine --seed {seed}",
    ),
    "evaluation (trained)": (
        "predictions/trained",
        _EVALUATE % ("{out}/weights/toy.pth", "trained") + " --pamr",
    ),
    "evaluation (untrained)": ("predictions/untrained", _EVALUATE % ("seeded:0", "untrained")),
    "report": ("report.html", "-m talk2dino report {out}/results --output {out}/report.html"),
    "panel": (
        "quickstart.png",
        "-m talk2dino report {out}/results --figure {out}/quickstart.png --images {shown}",
    ),
    "demo": (
        "demo.png",
        "demo.py --config {recipe} --weights {out}/weights/toy.pth --input {picture} "
        "--output {out}/demo.png --vocab drawn_world",
    ),
}
"""Name of a step -> what it makes or completes, and its command, one after the other."""

PANEL_ROWS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder")
    parser.add_argument("--images", type=int, default=1536, help="training pictures to draw")
    parser.add_argument("--epochs", type=int, help=f"of the training (default: as in {RECIPE})")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing and the training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")
    parser.add_argument(
        "--overwrite", action="store_true", help="start again, replacing what is there"
    )


def check(args: argparse.Namespace) -> list[str]:
    """Refuse wrong arguments before anything is drawn; returns the steps that are done."""
    from talk2dino.devices import resolve_device

    for flag, least in (("images", 1), ("epochs", 1), ("seed", 0)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise ValueError(f"--{flag} must be at least {least}, got {value}")
    resolve_device(args.device)
    read_yaml(find_in_checkout(RECIPE))
    check_folder_writable(args.output)
    done = _done_steps(args)
    known = (args.output / "quickstart.json").exists()
    if not known and args.output.is_dir() and any(args.output.iterdir()):
        # Whatever it is, it is not ours to replace.
        raise FileExistsError(
            f"{args.output} holds other files and no quickstart. Choose another --output."
        )
    check_world(args.output / "data", world_of_size(args.images, args.seed), args.overwrite)
    return done


def run(args: argparse.Namespace, done: list[str]) -> int:
    """Draw, extract, train, evaluate and show; steps that are done are skipped."""
    started = time.perf_counter()
    from talk2dino.toy.examples import read_examples

    out: Path = args.output
    if args.overwrite:
        _remove_results(out)
    _write_json(out / "quickstart.json", {"settings": _settings(args), "done": done})
    places = {
        **{"out": out, "data": out / "data", "images": args.images, "seed": args.seed},
        "recipe": _recipe(args),
    }
    for name, (made, line) in STEPS.items():
        if name == "panel":  # of the evaluation's pictures, those with the most in them first
            voc = World(out / "data").voc
            examples = sorted(read_examples(voc), key=lambda e: -len(e.mask.unique()))
            shown = ",".join(example.path.stem for example in examples[:PANEL_ROWS])
            places |= {"shown": shown, "picture": examples[0].path}
        words = [word.format(**places) for word in line.split()]
        if args.device != "auto" and not {"toy", "report"} & set(words[:3]):
            words += ["--device", args.device]
        if name in done and (out / made).exists():
            print(f"\n$ python {shlex.join(words)}\n  done already: {out / made}")
            continue
        code = _run_step(words, out / made)
        if code != DONE:
            return code
        done.append(name)
        _write_json(out / "quickstart.json", {"settings": _settings(args), "done": done})
    _print_table(_write_results(out))
    print(f"\npictures: {out / 'quickstart.png'} and {out / 'demo.png'}; ", end="")
    print(f"numbers: {out / 'results.json'}\nreport: {out / 'report.html'}")
    print(f"everything took {time.perf_counter() - started:.0f} s")
    return DONE


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the results."""
    recipe = content_digest(find_in_checkout(RECIPE))
    return {"images": args.images, "epochs": args.epochs, "seed": args.seed, "recipe": recipe}


def _done_steps(args: argparse.Namespace) -> list[str]:
    """The steps that an earlier run with the same settings has noted.

    Raises:
        FileExistsError: the folder belongs to other settings.
        ValueError: the record is damaged.
    """
    path = args.output / "quickstart.json"
    if args.overwrite or not path.exists():
        return []
    content = read_json(path, "Delete it, or pass --overwrite.")
    if not isinstance(content, dict) or not {"settings", "done"} <= content.keys():
        raise ValueError(f"{path} is no record of a quickstart. Choose another --output.")
    known, wanted = content["settings"], _settings(args)
    differing = [
        f"another {RECIPE}" if key == "recipe" else f"{key} {known.get(key)} (asked for: {value})"
        for key, value in wanted.items()
        if known.get(key) != value
    ]
    if differing:
        raise FileExistsError(
            f"{path.parent} holds a quickstart with {', '.join(differing)}. Choose another "
            "folder with --output, or pass --overwrite to start again."
        )
    return list(content["done"])


def _remove_results(out: Path) -> None:
    """Remove what an earlier quickstart made; `check` has seen that it is one."""
    drawn = ("quickstart_files", "report_plots")
    for name in ("data", "features", "weights", "results", "predictions", *drawn):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("toy.yaml", "results.json", "quickstart.png", "demo.png", "report.html"):
        (out / name).unlink(missing_ok=True)


def _recipe(args: argparse.Namespace) -> Path:
    """The shipped recipe, or a copy of it with another number of epochs."""
    shipped = find_in_checkout(RECIPE)
    if args.epochs is None or args.epochs == read_yaml(shipped)["train"]["num_epochs"]:
        return shipped
    from talk2dino.methods.talk2dino.recipe import write_recipe

    write_recipe(RECIPE, {"num_epochs": args.epochs}, args.output / "toy.yaml")
    return args.output / "toy.yaml"


def _run_step(words: list[str], made: Path) -> int:
    """Run one command in this process, and print it as it would be typed."""
    script = next(name for name in MAINS if words[: len(name.split())] == name.split())
    words += _going_on(script, made)
    print(f"\n$ python {shlex.join(words)}", flush=True)
    with _timed(made):
        code: int = import_module(MAINS[script]).main(words[len(script.split()) :])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != DONE:
        print(f"error: {script} ended with exit code {code}", file=sys.stderr)
    return code


def _going_on(script: str, made: Path) -> list[str]:
    """The flag that a command needs after an interruption that left its output unrecorded."""
    from talk2dino.features.store import read_features

    if script.endswith(("toy", "evaluate")):
        return []  # they go on where they were
    if script == "train.py":
        begun = made.exists() or made.with_suffix(".resume.pth").exists()
        return ["--resume"] if begun else []
    begun = made.exists()
    if script == "text_features_extraction.py":  # it completes a file that is there
        begun = "ann_feats" in read_features(made).caption_features
    return ["--overwrite"] if begun else []


def _write_results(out: Path) -> dict[str, Any]:
    """The numbers of the trained projection beside those of the untrained one."""
    from talk2dino.benchmarks.results import read_result

    content: dict[str, Any] = {}
    for path in sorted((out / "results").glob("toy_*.json")):
        result = read_result(path)
        weights = result["settings"]["segmenter"]["projection_weights"]
        content["num_images"] = result["num_images"]
        content["untrained" if weights == "seeded:0" else "trained"] = {
            "mIoU": round(result["mIoU"], 2),
            "aAcc": round(result["aAcc"], 2),
            "per_class": {
                name: None if iou is None else round(iou, 2)
                for name, iou in result["per_class"].items()
            },
        }
    _write_json(out / "results.json", content)
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _print_table(results: dict[str, Any]) -> None:
    """IoU per class and their mean, in percent, beside those of the untrained projection."""
    trained, untrained = results["trained"], results["untrained"]
    rows = {name: (iou, untrained["per_class"][name]) for name, iou in trained["per_class"].items()}
    rows["mIoU"] = (trained["mIoU"], untrained["mIoU"])
    print(f"\n{'class':<12}{'IoU':>7}{'untrained':>11}")
    for name, pair in rows.items():
        shown = ["-" if value is None else f"{value:.1f}" for value in pair]
        print(f"{name:<12}{shown[0]:>7}{shown[1]:>11}")


@contextmanager
def _timed(output: Path) -> Iterator[None]:
    """Print how long the block took and how large its output is."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    parts = output.rglob("*") if output.is_dir() else [output]
    size = sum(path.stat().st_size for path in parts if path.is_file())
    print(f"  {seconds:.1f} s, {size / 1e6:.1f} MB in {output}")


COMMAND = Command(
    name="quickstart",
    summary="Draw a small world, run the whole pipeline on it, and show what came out.",
    example="python -m talk2dino quickstart",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

main = COMMAND.main
