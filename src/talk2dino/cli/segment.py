"""`demo.py`: segment photographs into classes named on the command line."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talk2dino.cli.command import DONE, FAILED, USER_ERRORS
from talk2dino.cli.method_flags import MethodCommand
from talk2dino.config import check_at_least, check_between, check_name, split_names
from talk2dino.methods.registry import DEFAULT_MODEL, MODEL_NAMES, RESUMED_MODEL  # noqa: F401
from talk2dino.pictures.drawing import BACKGROUND_COLOUR, MAX_INDEXED, class_colours
from talk2dino.pictures.export import KINDS
from talk2dino.pictures.vocabularies import (
    BACKGROUND,
    VOCABULARIES,  # noqa: F401
    Vocabulary,
    class_names,
    find_vocabulary,
)

if TYPE_CHECKING:
    from talk2dino.cli.segment_job import Outputs, SegmentJob
    from talk2dino.methods.base import Method

MODES = {
    "input": ".jpg",
    "pred": ".png",
    "input_pred": ".jpg",
    "input_pred_label": ".jpg",
    "mask": ".png",
    "all_groups": "_layer0.jpg",  # and more, one per stage of grouping
    "first_group": ".jpg",
    "final_group": ".jpg",
}
"""What --vis can draw, with what its files end with."""
DEFAULT_MODES = ("input_pred_label",)
_PUBLISHED = {"evaluate.seg.template": "template", "test_cfg.bg_thresh": "bg_thresh"}
"""Key of --opts -> the project's own flag."""


class Segment(MethodCommand):
    """Segment pictures into classes that you name."""

    script = "demo.py"
    details = {
        "input": {"flags": ("--input", "--image_folder")},
        "save_mask": {"nargs": "?", "const": ""},
        "save_scores": {"nargs": "?", "const": ""},
        "export": {"choices": KINDS},
        "opts": {"nargs": "*"},
        "local_rank": {"flags": ("--local_rank", "--local-rank"), "help": argparse.SUPPRESS},
    }
    example = (
        "--input assets/coffee.png --output coffee_seg.png --with_background "
        "--textual_categories cup,table,spoon"
    )
    after_interrupt = "finished pictures are kept; --overwrite makes them again"

    input: list[Path]
    """Pictures, or folders of them."""
    output: str | None = None
    """Overlay with legend (.png, .jpg, .webp; .png if left out); a folder for several."""
    textual_categories: str | None = None
    """Class names between commas; underscores mean spaces (for commas in names: --vocab)."""
    vocab: list[str] | None = None
    """In their place {VOCABULARIES}, a .txt file with `name; alias; alias` on each line, or class
    names as they are, in quotes where they hold spaces."""

    model: str | None = None
    """{MODEL_NAMES}; a recipe of configs/, the model YAML of an evaluation, a file with a whole
    model, a folder of save_pretrained, or owner/name on the Hub (default: {DEFAULT_MODEL})."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""

    with_background: bool = False
    """Pixels where no class exceeds the threshold become background."""
    no_background: bool = False
    """For models that always have one: without it."""
    bg_thresh: float | None = None
    """Threshold of the background, 0 to 1; lower finds more (default: the model's own)."""
    max_side: int | None = None
    """Score larger pictures at this long side in pixels, to save time and memory (default: 4096
    beyond 16 megapixels if refined, else never)."""

    opacity: float = 0.5
    """Of the class colours, 0 to 1."""
    save_mask: str | None = None
    """Indexed PNG of class numbers (default name: <output>_mask.png; several: a folder)."""
    save_scores: str | None = None
    """NPZ: scores (C, H, W) float32, classes (C,) names, settings as JSON (default name:
    <output>_scores.npz; several: a folder)."""
    export: str | None = None
    """Also write the classes of all pictures for annotation tools, beside --output."""
    overwrite: bool = False
    """Replace existing output files."""

    output_folder: str | None = None
    """Gets a folder per mode of --vis."""
    vis: list[str] | None = None
    """{MODES} (default: {DEFAULT_MODES})."""
    resume: str | None = None
    """The same as --weights; alone, of {RESUMED_MODEL}."""
    cfg: str | None = None
    """Not read: the weights say what they are."""
    opts: list[str] | None = None
    """KEY=VALUE, of {_PUBLISHED}."""
    local_rank: int | None = None
    """Not read."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        cls.own_flags(parser, "input", "output", "textual_categories", "vocab")
        group = parser.add_argument_group("model")
        cls.own_flags(group, "model=model|config", "device")
        group = parser.add_argument_group("segmentation")
        cls.own_flags(group, "with_background", "no_background", "bg_thresh", "max_side")
        group = parser.add_argument_group("output")
        cls.own_flags(group, "opacity", "save_mask", "save_scores", "export", "overwrite")
        group = parser.add_argument_group("flags of the published demo with --vis")
        published = ("output_folder", "vis", "resume", "cfg", "opts", "local_rank")
        cls.own_flags(group, *published)
        cls.option_flags(parser)

    def check(self) -> tuple[SegmentJob, dict[Path, Outputs]]:
        from talk2dino.cli.segment_job import SegmentJob, plan_export, plan_outputs
        from talk2dino.devices import resolve_device
        from talk2dino.pictures.images import read_rgb

        method, vocabulary, background = self.read_model()
        check_between(0, 1, opacity=self.opacity)
        if self.max_side is not None:
            check_at_least(1, max_side=self.max_side)
        modes: dict[str, str] = {}
        if self.vis is not None or self.output_folder is not None:
            asked = self.vis or DEFAULT_MODES
            modes = {word: MODES[check_name("vis mode", word, MODES)] for word in asked}
            without = [mode for mode in modes if "group" in mode and not method.demo.groups]
            if without:
                here = ", ".join(mode for mode in MODES if "group" not in mode)
                raise ValueError(
                    f"--vis {without[0]}: {method.model} has no groups, so there are no group "
                    f"maps of it. They exist for methods with group tokens. Here: {here}."
                )
        planned = plan_outputs(self, modes)
        export = plan_export(self, planned)
        words = vocabulary.class_words(method.words(), self.pooled("--vocab", vocabulary.words))
        names = list(vocabulary.names)
        colours = vocabulary.colours if self.vocab else class_colours(len(names))  # as in Python
        if background is not None:
            names = [BACKGROUND, *names]
            colours = np.concatenate([np.array([BACKGROUND_COLOUR], np.uint8), colours])
        first, *others = planned
        masks = {"save_mask": "--save_mask", "mask": "--vis mask", "pred": "--vis pred"}
        flag = next((flag for kind, flag in masks.items() if kind in planned[first]), None)
        if flag and len(names) > MAX_INDEXED:
            raise ValueError(
                f"{flag}: an indexed PNG holds at most {MAX_INDEXED} classes, there are "
                f"{len(names)}. Use fewer classes, or --save_scores with --output."
            )
        device = resolve_device(self.device)
        method.check()
        job = SegmentJob(self, method, names, colours, device, background, words, export)
        if not others:  # of several, one that fails does not stop the others
            job.check(first)
            read_rgb(first)
        return job, planned

    def run(self, found: tuple[SegmentJob, dict[Path, Outputs]]) -> int:
        """Segment every picture; one that fails is named and does not stop the others."""
        job, planned = found
        if self.cfg is not None:
            print("note: --cfg is not read: the weights say what they are")
        models, notes = job.method.describe()
        print(f"loading {models}, on {job.device}")
        for note in notes:
            print(f"note: {note}")
        job.load()
        failures = []
        for number, (source, outputs) in enumerate(planned.items(), start=1):
            try:
                outcome = job.segment(source, outputs)
            except USER_ERRORS as error:
                if len(planned) == 1:
                    raise
                failures.append(str(error) or type(error).__name__)
                outcome = f"{source}: failed"
            print(f"[{number}/{len(planned)}] {outcome}", flush=True)
        if job.export is not None:
            print(f"exported: {job.export.write()}")
        for failure in failures:
            print(f"error: {failure}", file=sys.stderr)
        if failures:
            print(f"error: {len(failures)} of {len(planned)} pictures failed", file=sys.stderr)
        return FAILED if failures else DONE

    def read_model(self) -> tuple[Method, Vocabulary, float | None]:
        """The model, the classes and the background's threshold of the flags; nothing is loaded.

        Raises:
            ValueError, FileNotFoundError: flags that make no sense.
        """
        from talk2dino.benchmarks.table import find_benchmark
        from talk2dino.methods.registry import find_method

        if (self.vocab is None) == (self.textual_categories is None):
            raise ValueError(
                "name the classes with --textual_categories or with --vocab, one of them."
            )
        parts = split_names((self.textual_categories or "").replace("_", " "))
        categories = [" ".join(part.split()) for part in parts]
        if self.vocab is None:  # first: it needs no file
            class_names(categories, self.with_background)
        published = self._published_options()
        threshold = published.pop("bg_thresh", self.bg_thresh)
        default = DEFAULT_MODEL if self.resume is None else RESUMED_MODEL
        name = self.model or default
        settings = self.settings_of([name], **published)[name]
        method = find_method(name, settings).for_pictures(self.with_background)
        background = self._background(method, threshold)
        method.words().check_background(background)
        if self.vocab is None:
            names = class_names(categories, background is not None)
            if len(names) == 1 and background is None:
                print(f"note: {names[0]!r} is the only class; commas separate names")
            return method, Vocabulary(tuple(names)), background
        found = find_vocabulary(self.vocab)
        if found.benchmark is not None:  # by the names that the method has for them
            of = method.words(find_benchmark(found.benchmark)).of
            found = replace(found, names=tuple(of(name)[0] for name in found.names))
        return method, found, background

    def _published_options(self) -> dict[str, Any]:
        """What --resume and --opts stand for, by the names of the project's own flags.

        Raises:
            ValueError: flags that contradict each other, or unknown options.
        """
        found: dict[str, Any] = {}
        if self.resume is not None:
            if vars(self).get("option_weights", self.resume) != self.resume:
                raise ValueError("--resume and --weights are the same. Give one of them.")
            found["weights"] = self.resume
        for option in self.opts or []:
            key, equals, value = option.partition("=")
            if not equals or key not in _PUBLISHED:
                raise ValueError(f"--opts {option}: unknown. Known: {', '.join(_PUBLISHED)}.")
            try:
                found[_PUBLISHED[key]] = float(value) if key.endswith("thresh") else value
            except ValueError as error:
                raise ValueError(f"--opts {option}: {value!r} is no number.") from error
        return found

    def _background(self, method: Method, threshold: float | None) -> float | None:
        """The background's threshold, or None for no background.

        Raises:
            ValueError: a threshold without a background, or outside 0 to 1.
        """
        if self.no_background and self.with_background:
            raise ValueError("--with_background and --no_background contradict each other.")
        if threshold is not None:
            check_between(0, 1, bg_thresh=threshold)
        wanted = self.with_background or method.demo.always_background
        if wanted and not self.no_background:
            return method.demo.threshold if threshold is None else threshold
        if threshold is not None:
            change = "with --no_background" if self.no_background else "without --with_background"
            raise ValueError(
                f"--bg_thresh has no effect {change}. Leave one out, or add the other."
            )
        return None
