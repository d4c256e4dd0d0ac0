"""`python -m talk2dino quickstart`: the whole pipeline on a drawn world, without any download."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.__main__ import find_command
from talk2dino.cli.command import DONE, Command
from talk2dino.config import check_at_least, differences
from talk2dino.files import check_folder_writable, find_in_checkout, remove_folder, write_text
from talk2dino.textfiles import read_json, read_yaml
from talk2dino.toy.world import check_world, world_of_size

if TYPE_CHECKING:
    from talk2dino.benchmarks.tables import Table

RECIPE = "configs/toy.yaml"
RECORD = "quickstart.json"
"""In its folder: what the quickstart was begun with. A folder without it is somebody else's."""

_EXTRACT = (
    "extract --ann_path {data}/coco/captions_%s.json --data_dir {data}/coco "
    "--model toy --resize_dim 224 --crop_dim 224 --extract_avg_self_attn "
    "--extract_disentangled_self_attn --out_path {out}/features/%s_images.pth"
)
_TEXT = (
    "extract-text --ann_path {out}/features/%s_images.pth --model toy "
    "--out_path {out}/features/%s.pth"
)
_EVALUATE = (
    "evaluate --model {recipe} --weights %s --benchmarks toy "
    "--data_root {data} --output {out}/results --save_predictions {out}/predictions/%s"
)
STEPS = (
    "toy --output {data} --images {images} --seed {seed}",
    *(step % (split, split) for step in (_EXTRACT, _TEXT) for split in ("train", "val")),
    "train --model {recipe} --train_dataset {out}/features/train.pth --val_dataset "
    "{out}/features/val.pth --out {out}/weights/toy.pth --scheduler cosine --seed {seed} --resume",
    _EVALUATE % ("{out}/weights/toy.pth", "trained") + " --pamr",
    _EVALUATE % ("seeded:0", "untrained"),
    "report {out}/results --output {out}/report.html --overwrite",
    "report {out}/results --figure {out}/quickstart.png --images {shown} --overwrite",
    "segment --config {recipe} --weights {out}/weights/toy.pth --input {picture} "
    "--output {out}/demo.png --vocab drawn_world --overwrite",
)
"""The commands, one after the other; each goes on where it was, or makes its result again."""

PANEL_ROWS = 6


class Quickstart(Command):
    """Draw a small world, run the whole pipeline on it, and show what came out."""

    example = "--output small --images 300"
    gone = {"--epochs": "`train.py --model` takes a recipe with other num_epochs"}

    output: Path = Path("quickstart")
    """Folder."""
    images: int = 1536
    """Training pictures to draw."""
    seed: int = 0
    """Of the drawing and the training."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""
    overwrite: bool = False
    """Start again, replacing what is there."""

    def check(self) -> None:
        """Refuse wrong arguments before anything is drawn."""
        from talk2dino.devices import resolve_device

        check_at_least(1, **{"--images": self.images})
        check_at_least(0, **{"--seed": self.seed})
        resolve_device(self.device)
        read_yaml(find_in_checkout(RECIPE))
        check_folder_writable(self.output)
        self._check_record()
        check_world(self.output / "data", world_of_size(self.images, self.seed), self.overwrite)

    def run(self, found: None) -> int:
        """Draw, extract, train, evaluate and show; every command goes on where it was."""
        started = time.perf_counter()
        out: Path = self.output
        if self.overwrite and out.is_dir():
            remove_folder(out)  # `check` has seen that it is a quickstart
        write_text(out / RECORD, json.dumps(self._settings()) + "\n")
        places = {
            **{"out": out, "data": out / "data", "images": self.images, "seed": self.seed},
            "recipe": find_in_checkout(RECIPE),
        }
        for line in STEPS:
            if "{shown}" in line:  # of the evaluation's pictures, those with the most in them first
                pictures = _richest_first(out / "results")
                places["shown"] = ",".join(Path(name).stem for name in pictures[:PANEL_ROWS])
                places["picture"] = out / "data" / pictures[0]
            command, *words = [word.format(**places) for word in line.split()]
            if self.device != "auto" and command not in ("toy", "report"):
                words += ["--device", self.device]
            if code := _run_step(command, words):
                return code
        print(f"\nIoU in percent\n\n{_class_table(out / 'results').markdown()}")
        print(f"pictures: {out / 'quickstart.png'} and {out / 'demo.png'}")
        print(f"report: {out / 'report.html'}")
        print(f"everything took {time.perf_counter() - started:.0f} s")
        return DONE

    def _settings(self) -> dict[str, int]:
        """What the record says; earlier versions had more, and features in other files."""
        return {"images": self.images, "seed": self.seed}

    def _check_record(self) -> None:
        """Raise for a folder that holds something else, or a quickstart with other settings.

        Raises:
            FileExistsError: the folder is not this quickstart's.
            ValueError: the record is damaged.
        """
        path = self.output / RECORD
        if not path.exists() and self.output.is_dir() and any(self.output.iterdir()):
            raise FileExistsError(  # whatever it is, not even `--overwrite` replaces it
                f"{self.output} holds other files and no quickstart. Choose another --output."
            )
        if path.exists() and not self.overwrite:
            found = read_json(path, "Delete it, or pass --overwrite.")
            found = found if isinstance(found, dict) else {"record": found}
            if differing := differences(found, self._settings()):
                raise FileExistsError(
                    f"{self.output} holds a quickstart with other settings ({differing:.200}). "
                    "Choose another folder with --output, or pass --overwrite to start again."
                )


def _run_step(name: str, words: list[str]) -> int:
    """Print a command as it would be typed, and run it in this process unless it is done."""
    from talk2dino.features.job import is_complete

    command = find_command(name)
    print(f"\n$ python {command.script} {shlex.join(words)}", flush=True)
    made = words[words.index("--out_path") + 1] if "--out_path" in words else ""
    # Extractions refuse to make it again, but for one that was killed before it had tidied up.
    if made and is_complete(Path(made)):
        print("  done already")
        return DONE
    started = time.perf_counter()
    step = command.parse(words)
    code = step.run(step.check())
    print(f"  {time.perf_counter() - started:.1f} s")
    return code or DONE


def _richest_first(results: Path) -> list[str]:
    """The evaluated pictures, below the data root, by the number of their classes."""
    from talk2dino.benchmarks.results import read_counts

    counts = read_counts(next(results.glob("toy_*.npz")))
    present = (counts["label_area"] > 0).sum(axis=1)
    names: list[str] = counts["images"][(-present).argsort(kind="stable")].tolist()
    return names


def _class_table(results: Path) -> Table:
    """IoU per class and their mean, beside those of the untrained projection."""
    from talk2dino.benchmarks.results import read_result
    from talk2dino.benchmarks.tables import Table

    columns = {}
    for path in results.glob("toy_*.json"):
        result = read_result(path)
        weights = result["settings"]["segmenter"]["projection_weights"]
        columns[weights == "seeded:0"] = {**result["per_class"], "mIoU": result["mIoU"]}
    rows = [[name, iou, columns[True][name]] for name, iou in columns[False].items()]
    return Table(["class", "trained", "untrained"], rows)
