"""The quickstart as a researcher would type it: which commands run on which files, in order."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.toy.scene import CLASS_NAMES
from talk2dino.toy.world import World

if TYPE_CHECKING:
    from talk2dino.methods.talk2dino.recipe import Recipe

SPLITS = ("train", "val")
EVALUATE = "-m talk2dino evaluate"
REPORT = "-m talk2dino report"
TRAINED, UNTRAINED = "trained", "untrained"
UNTRAINED_WEIGHTS = "seeded:0"


@dataclass(frozen=True)
class Files:
    """Where everything of one quickstart is."""

    folder: Path
    """Holds everything below."""

    @property
    def world(self) -> World:
        """The drawn data."""
        return World(self.folder / "data")

    @property
    def weights(self) -> Path:
        """The trained projection."""
        return self.folder / "weights" / "toy.pth"

    @property
    def recipe(self) -> Path:
        """A recipe of its own, only for another number of epochs than the shipped one."""
        return self.folder / "toy.yaml"

    @property
    def results(self) -> Path:
        """The numbers of both evaluations, as JSON."""
        return self.folder / "results.json"

    @property
    def runs(self) -> Path:
        """The results folder of the evaluations."""
        return self.folder / "results"

    def predictions(self, which: str) -> Path:
        """Class ids of `trained` or `untrained`, one PNG per picture in a folder `toy`."""
        return self.folder / "predictions" / which

    @property
    def report(self) -> Path:
        """The report of both evaluations, one HTML page."""
        return self.folder / "report.html"

    @property
    def panel(self) -> Path:
        """Pictures, ground truth and predictions."""
        return self.folder / "quickstart.png"

    @property
    def demo(self) -> Path:
        """The demo's overlay of one picture."""
        return self.folder / "demo.png"

    @property
    def record(self) -> Path:
        """What was asked for and which steps are done, as JSON."""
        return self.folder / "quickstart.json"

    def picture(self, name: str) -> Path:
        """A picture with a mask."""
        return self.world.voc / "JPEGImages" / f"{name}.jpg"

    def features(self, split: str) -> Path:
        """The feature file of `train` or `val`."""
        return self.folder / "features" / f"{split}.pth"


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    """Unique; the record's key."""
    script: str
    """The script at the top of the checkout, or `-m talk2dino <command>`."""
    words: tuple[str, ...]
    """Its arguments."""
    output: Path
    """The file it makes or completes."""

    @property
    def line(self) -> str:
        """As it would be typed."""
        return f"python {self.script} {shlex.join(self.words)}"


def training_steps(files: Files, recipe: Recipe, seed: int) -> list[Step]:
    """Extraction, text features and training."""
    steps = [_extraction(files, split, recipe) for split in SPLITS]
    steps += [_text(files, split, recipe) for split in SPLITS]
    words = ["--model", recipe.path, "--train_dataset", files.features("train")]
    words += ["--val_dataset", files.features("val"), "--out", files.weights]
    words += ["--scheduler", "cosine", "--seed", seed]
    return [*steps, Step("train", "train.py", _strings(words), files.weights)]


def evaluation_steps(files: Files, recipe: Recipe) -> list[Step]:
    """The trained projection and one that was never trained, on the pictures with masks."""
    steps = []
    for which, weights in ((TRAINED, str(files.weights)), (UNTRAINED, UNTRAINED_WEIGHTS)):
        words = ["--model", recipe.path, "--weights", weights, "--benchmarks", "toy", "--pamr"]
        words += ["--data_root", files.world.folder, "--output", files.runs]
        words += ["--save_predictions", files.predictions(which)]
        output = files.predictions(which)
        steps.append(Step(f"evaluation ({which})", EVALUATE, _strings(words), output))
    return steps


def report_step(files: Files) -> Step:
    """The page with both evaluations side by side."""
    words = _strings([files.runs, "--output", files.report])
    return Step("report", REPORT, words, files.report)


def demo_step(files: Files, recipe: Recipe, picture: Path) -> Step:
    """The demo on one picture, with every class of the world."""
    names = ",".join(name.replace(" ", "_") for name in CLASS_NAMES)
    words = ["--config", recipe.path, "--weights", files.weights, "--input", picture]
    words += ["--output", files.demo, "--textual_categories", names]
    return Step("demo", "demo.py", _strings(words), files.demo)


def _extraction(files: Files, split: str, recipe: Recipe) -> Step:
    features = recipe.features
    words = ["--ann_path", files.world.captions(split), "--data_dir", files.world.coco]
    words += ["--model", features.vision_model]
    words += ["--resize_dim", features.resize_dim, "--crop_dim", features.crop_dim]
    words += ["--extract_avg_self_attn", "--extract_disentangled_self_attn"]
    words += ["--out_path", files.features(split)]
    script = "dino_extraction_v2.py"
    return Step(f"image features ({split})", script, _strings(words), files.features(split))


def _text(files: Files, split: str, recipe: Recipe) -> Step:
    words = ["--ann_path", files.features(split), "--model", recipe.features.text_model]
    script = "text_features_extraction.py"
    return Step(f"text features ({split})", script, _strings(words), files.features(split))


def _strings(words: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(word) for word in words)
