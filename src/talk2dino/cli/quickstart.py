"""`python -m talk2dino quickstart`: the whole pipeline on a drawn world, without any download."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.cli.entry import DONE, INTERRUPTED, Command, run_command
from talk2dino.cli.quickstart_plan import (
    EVALUATE,
    REPORT,
    TRAINED,
    UNTRAINED,
    UNTRAINED_WEIGHTS,
    Files,
    Step,
    demo_step,
    evaluation_steps,
    report_step,
    training_steps,
)
from talk2dino.files import (
    atomic_path,
    check_folder_writable,
    content_digest,
    find_in_checkout,
)
from talk2dino.textfiles import read_json, read_names
from talk2dino.toy.world import check_world, differences, world_of_size, write_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from PIL import Image

    from talk2dino.methods.talk2dino.recipe import Recipe

RECIPE = "configs/toy.yaml"
MAINS = {
    "dino_extraction_v2.py": "talk2dino.cli.extract",
    "text_features_extraction.py": "talk2dino.cli.extract_text",
    "train.py": "talk2dino.cli.train",
    EVALUATE: "talk2dino.cli.evaluate",
    REPORT: "talk2dino.cli.report",
    "demo.py": "talk2dino.cli.segment",
}
"""The modules behind the scripts: called here, so that torch is imported only once."""

PANEL_COLUMNS = 6
_GAP, _FONT_SIZE = 6, 17


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)


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


def check(args: argparse.Namespace) -> None:
    """Refuse wrong arguments before anything is drawn."""
    from talk2dino.devices import resolve_device

    for flag, value, least in (
        ("--images", args.images, 1),
        ("--epochs", args.epochs, 1),
        ("--seed", args.seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{flag} must be at least {least}, got {value}")
    resolve_device(args.device)

    from talk2dino.methods.talk2dino.recipe import load_recipe

    load_recipe(RECIPE)
    files = Files(args.output)
    check_folder_writable(files.folder)
    _Record(args)
    others = files.folder.is_dir() and any(files.folder.iterdir()) and not files.record.exists()
    if others:  # whatever it is, it is not ours to replace
        raise FileExistsError(
            f"{files.folder} holds other files and no quickstart. Choose another --output."
        )
    check_world(files.world.folder, world_of_size(args.images, args.seed), args.overwrite)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Draw, extract, train, evaluate and show; steps that are done are skipped."""
    started = time.perf_counter()
    files, record = Files(args.output), _Record(args)
    if args.overwrite:
        _remove_results(files)
    record.write()
    recipe = _recipe(files, args.epochs)
    _draw(args, files)
    for step in [
        *training_steps(files, recipe, args.seed),
        *evaluation_steps(files, recipe),
        report_step(files),
    ]:
        code = _run_step(step, record, args.device)
        if code != DONE:
            return code
    if not (files.results.exists() and files.panel.exists()):
        _summarise(files)
    code = _run_step(demo_step(files, recipe, _demo_picture(files)), record, args.device)
    if code != DONE:
        return code
    _print_table(read_json(files.results))
    print(f"\npictures: {files.panel} and {files.demo}; numbers: {files.results}")
    print(f"report: {files.report}")
    print(f"everything took {time.perf_counter() - started:.0f} s")
    return DONE


class _Record:
    """What the quickstart of a folder was asked for and how far it came, in a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = Files(args.output).record
        self.settings = {name: getattr(args, name) for name in ("images", "epochs", "seed")}
        self.settings["recipe"] = content_digest(find_in_checkout(RECIPE))
        self.done: list[str] = []
        if args.overwrite or not self.path.exists():
            return
        known = read_json(self.path, "Delete it, or pass --overwrite.")
        if not isinstance(known, dict) or not {"settings", "done"} <= known.keys():
            raise ValueError(f"{self.path} is no record of a quickstart. Choose another --output.")
        if other := differences(known["settings"], self.settings):
            raise FileExistsError(
                f"{args.output} holds a quickstart with {other}. Choose another folder with "
                "--output, or pass --overwrite to start again."
            )
        self.done = known["done"]

    def write(self, *done: str) -> None:
        """Write the file, atomically, with the names of steps that are done now."""
        self.done += done
        content = {"settings": self.settings, "done": self.done}
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _remove_results(files: Files) -> None:
    """Remove what an earlier quickstart made; `check` has seen that it is one."""
    folders = [files.world.folder, files.features("train").parent, files.weights.parent]
    folders += [files.runs, files.predictions(TRAINED).parent]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for path in (files.recipe, files.results, files.panel, files.report, files.demo):
        path.unlink(missing_ok=True)


def _recipe(files: Files, epochs: int | None) -> Recipe:
    """The shipped recipe, or a copy of it with another number of epochs."""
    from talk2dino.methods.talk2dino.recipe import load_recipe, write_recipe

    recipe = load_recipe(RECIPE)
    if epochs is None or epochs == recipe.train.num_epochs:
        return recipe
    return write_recipe(RECIPE, {"num_epochs": epochs}, files.recipe)


def _draw(args: argparse.Namespace, files: Files) -> None:
    from tqdm import tqdm

    config, folder = world_of_size(args.images, args.seed), files.world.folder
    if check_world(folder, config, args.overwrite):
        print(f"the drawn world is there already: {folder}")
        return
    total = config.train_images + config.val_images + config.evaluation_images
    print(f"drawing a world of {total} pictures in {folder}")
    with _timed(folder), tqdm(total=total, unit=" pictures", disable=None) as bar:
        write_world(folder, config, args.overwrite, on_picture=bar.update)
    print(
        f"  {config.train_images} pictures with {config.captions} captions each to train on, "
        f"{config.val_images} to validate, {config.evaluation_images} with masks to evaluate"
    )


def _run_step(step: Step, record: _Record, device: str) -> int:
    """Run one command in this process, and print it as it would be typed."""
    if step.name in record.done and step.output.exists():
        print(f"\n$ {step.line}\n  done already: {step.output}")
        return DONE
    if device != "auto" and step.script != REPORT:
        step = _with(step, "--device", device)
    step = _continued(step)
    print(f"\n$ {step.line}", flush=True)
    with _timed(step.output):
        code: int = import_module(MAINS[step.script]).main(list(step.words))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    if code != DONE:
        print(f"error: {step.script} ended with exit code {code}", file=sys.stderr)
        return code
    record.write(step.name)
    return DONE


def _continued(step: Step) -> Step:
    """The step with the flag it needs after an interruption that left its output unrecorded."""
    from talk2dino.features.store import read_features
    from talk2dino.methods.talk2dino.training.job import projection_outputs

    if step.script == EVALUATE:
        return step  # it goes on where it was
    if step.script == "train.py":
        unfinished = projection_outputs(step.output).unfinished.exists() or step.output.exists()
        return _with(step, "--resume") if unfinished else step
    if step.script == "text_features_extraction.py":  # it completes a file that is there
        unrecorded = "ann_feats" in read_features(step.output).caption_features
    else:
        unrecorded = step.output.exists()
    return _with(step, "--overwrite") if unrecorded else step


def _with(step: Step, *words: str) -> Step:
    return dataclasses.replace(step, words=(*step.words, *words))


def _summarise(files: Files) -> None:
    """Write the numbers of both evaluations into one file, and draw the panel."""
    import numpy as np
    from PIL import Image

    from talk2dino.pictures.images import read_rgb
    from talk2dino.toy.scene import CLASS_NAMES, class_palette

    _write_results(files)
    masks, colours = _masks(files), class_palette()
    # The first pictures with several things in them, whatever came out for them.
    shown = sorted(masks, key=lambda name: len(np.unique(masks[name])) < 3)[:PANEL_COLUMNS]
    rows = {"picture": [np.asarray(read_rgb(files.picture(name))) for name in shown]}
    rows["ground truth"] = [colours[masks[name]] for name in shown]
    for title, which in (("prediction", TRAINED), ("untrained", UNTRAINED)):
        folder = files.predictions(which) / "toy"
        found = [np.asarray(Image.open(folder / f"{name}.png")) for name in shown]
        rows[title] = [colours[labels] for labels in found]
    panel = draw_panel(rows, CLASS_NAMES, colours)
    with atomic_path(files.panel) as temporary:
        panel.save(temporary, format="PNG")


def draw_panel(
    rows: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], colours: np.ndarray
) -> Image.Image:
    """Rows of pictures with titles on the left and a legend of the classes below.

    Args:
        rows: title -> (H, W, 3) uint8 RGB, all of one size; as many in each row.
        names: of every class, by id.
        colours: (C, 3) uint8 RGB, one per name.
    """
    from PIL import Image, ImageDraw

    from talk2dino.pictures.drawing import draw_legend, legend_font

    height, width = rows["picture"][0].shape[:2]
    font = legend_font(_FONT_SIZE)
    left = round(max(font.getlength(title) for title in rows)) + 3 * _GAP
    total = left + len(rows["picture"]) * (width + _GAP)
    legend = draw_legend(list(names), colours, total - left, _FONT_SIZE)
    below = len(rows) * (height + _GAP) + _GAP
    canvas = Image.new("RGB", (max(total, left + legend.width), below + legend.height), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (title, pictures) in enumerate(rows.items()):
        top = _GAP + row * (height + _GAP)
        place = (left - 2 * _GAP, top + height // 2)
        pen.text(place, title, fill=(20, 20, 20), font=font, anchor="rm")
        for column, pixels in enumerate(pictures):
            canvas.paste(Image.fromarray(pixels), (left + column * (width + _GAP), top))
    canvas.paste(legend, (left, below))
    return canvas


def _masks(files: Files) -> dict[str, np.ndarray]:
    """Name of every picture to evaluate -> its class ids (H, W)."""
    import numpy as np
    from PIL import Image

    voc = files.world.voc
    names = read_names(voc / "ImageSets" / "Segmentation" / "val.txt")
    folder = voc / "SegmentationClass"
    return {name: np.asarray(Image.open(folder / f"{name}.png")) for name in names}


def _write_results(files: Files) -> None:
    """The numbers of the trained projection beside those of the untrained one."""
    from talk2dino.benchmarks.results import read_result

    content: dict[str, Any] = {}
    for path in sorted(files.runs.glob("toy_*.json")):
        result = read_result(path)
        weights = result["settings"]["segmenter"]["projection_weights"]
        content["num_images"] = result["num_images"]
        content[UNTRAINED if weights == UNTRAINED_WEIGHTS else TRAINED] = {
            "mIoU": round(result["mIoU"], 2),
            "aAcc": round(result["aAcc"], 2),
            "per_class": {
                name: None if iou is None else round(iou, 2)
                for name, iou in result["per_class"].items()
            },
        }
    with atomic_path(files.results) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _demo_picture(files: Files) -> Path:
    """The first evaluation picture with the most classes in it."""
    masks = _masks(files)
    return files.picture(max(masks, key=lambda name: len(set(masks[name].flat))))


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

if __name__ == "__main__":
    sys.exit(main())
