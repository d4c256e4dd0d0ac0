"""The segment command with --vis: a folder of pictures in, a folder per mode out."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from talk2dino.cli.segment_files import find_sources, output_names
from talk2dino.config import check_name
from talk2dino.files import check_folder_writable, check_writable
from talk2dino.pictures.drawing import BACKGROUND_COLOUR
from talk2dino.pictures.vocabularies import BACKGROUND

if TYPE_CHECKING:
    import torch

    from talk2dino.cli.modes import ModesJob
    from talk2dino.methods.base import Method
    from talk2dino.pictures.vocabularies import Vocabulary

MODES = (
    *("input", "pred", "input_pred", "input_pred_label", "mask"),
    *("all_groups", "first_group", "final_group"),
)
DEFAULT_MODES = ("input_pred_label",)
_OTHER_OUTPUTS = ("output", "save_mask", "save_scores", "max_side")


@dataclass(frozen=True)
class Plan:
    """What is read, what is written, and with what."""

    outputs: dict[Path, dict[str, Path]]
    """Image -> mode -> file."""
    method: Method
    """Model and options."""
    vocabulary: Vocabulary
    """Classes without the background."""
    background: float | None
    """Threshold of the background, or None for none."""
    device: torch.device
    """Where the model runs."""

    @property
    def names(self) -> list[str]:
        """Of the labels."""
        first = [] if self.background is None else [BACKGROUND]
        return [*first, *self.vocabulary.names]


def add_modes_flags(group: argparse._ArgumentGroup) -> None:
    """Declare the flags."""
    group.add_argument("--image_folder", metavar="DIR", help="as --input, of one folder")
    group.add_argument("--output_folder", metavar="DIR", help="gets a folder per mode of --vis")
    group.add_argument(
        "--vis",
        nargs="+",
        metavar="MODE",
        help=f"{', '.join(MODES)} (default: {' '.join(DEFAULT_MODES)})",
    )


def wants_modes(args: argparse.Namespace) -> bool:
    """Whether the flags ask for modes and not for overlays with a legend."""
    return args.vis is not None or args.output_folder is not None


def plan_modes(
    args: argparse.Namespace, method: Method, vocabulary: Vocabulary, background: float | None
) -> Plan:
    """Check all flags, all pictures' headers and all places for files; nothing is loaded.

    Raises:
        ValueError, OSError: what is wrong, and what to do.
    """
    from talk2dino.cli.segment_job import JobOptions, check_count, check_pictures, refines
    from talk2dino.devices import resolve_device

    if args.output_folder is None:
        raise ValueError("--vis writes folders: give --output_folder.")
    for flag in _OTHER_OUTPUTS:
        if getattr(args, flag) is not None:
            raise ValueError(f"--{flag} does not go with --vis and --output_folder. Leave it out.")
    modes = check_modes(args.vis or DEFAULT_MODES, method)
    sources, _ = find_sources(*_inputs(args))
    folder = Path(args.output_folder)
    _check_outside(folder, sources)
    outputs = _outputs(sources, folder, modes)
    _check_files([path for files in outputs.values() for path in files.values()], args.overwrite)
    plan = Plan(outputs, method, vocabulary, background, resolve_device(args.device))
    check_count(len(plan.names), "mask" in modes or "pred" in modes, "--vis mask and pred")
    method.check()
    options = JobOptions(names=plan.names, background=background, pamr=refines(method))
    check_pictures(sources, options, plan.device)
    return plan


def load_job(plan: Plan, command: str) -> ModesJob:
    """Load the model and embed the classes.

    Args:
        plan: from `plan_modes`.
        command: what was typed; kept in the PNG files.
    """
    from talk2dino.cli.modes import ModesJob, ModesOptions

    segmenter = plan.method.load(plan.device)
    colours = plan.vocabulary.colours
    if plan.background is not None:
        colours = np.concatenate([np.array([BACKGROUND_COLOUR], np.uint8), colours])
    record = {
        "command": command,
        "classes": plan.names,
        "background": plan.background,
        "segmenter": plan.method.settings(),
    }
    options = ModesOptions(
        names=plan.names,
        colours=colours,
        query=plan.method.query(segmenter, plan.names, plan.background),
        protocol=plan.method.demo.protocol,
        record=json.dumps(record, ensure_ascii=False),
    )
    return ModesJob(segmenter, options)


def check_modes(modes: list[str] | tuple[str, ...], method: Method) -> list[str]:
    """The modes, each once.

    Raises:
        ValueError: an unknown one, or group maps of a method that has none.
    """
    from talk2dino.cli.modes import GROUP_MODES

    found = [check_name("vis mode", mode, MODES) for mode in dict.fromkeys(modes)]
    if not method.demo.groups and (without := [mode for mode in found if mode in GROUP_MODES]):
        others = ", ".join(mode for mode in MODES if mode not in GROUP_MODES)
        raise ValueError(
            f"--vis {without[0]}: {method.model} has no groups, so there are no group maps of it. "
            f"They exist for methods with group tokens, such as ovsegmentor_vitb. Here: {others}."
        )
    return found


def _inputs(args: argparse.Namespace) -> tuple[list[str], str]:
    """The places of pictures, and the flag that named them."""
    if (args.input is None) == (args.image_folder is None):
        raise ValueError("give the pictures with --image_folder or with --input, one of them.")
    if args.input is not None:
        return args.input, "--input"
    if Path(args.image_folder).is_file():
        raise ValueError(f"--image_folder {args.image_folder} is a file. Use --input for it.")
    return [args.image_folder], "--image_folder"


def _check_outside(folder: Path, sources: list[Path]) -> None:
    for parent in dict.fromkeys(source.parent for source in sources):
        if folder.resolve().is_relative_to(parent.resolve()):
            raise ValueError(
                f"--output_folder {folder} lies in {parent}, where the pictures are, and nothing "
                "is written there. Choose a folder beside it."
            )


def _outputs(sources: list[Path], folder: Path, modes: list[str]) -> dict[Path, dict[str, Path]]:
    from talk2dino.cli.modes import SUFFIXES

    return {
        source: {mode: folder / mode / f"{name}{SUFFIXES[mode]}" for mode in modes}
        for source, name in output_names(sources).items()
    }


def _check_files(paths: list[Path], overwrite: bool) -> None:
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{repeated[0]} would be written more than once. Rename one of the pictures or "
            "segment them in separate runs."
        )
    for path in paths:
        first = path if path.parent.name != "all_groups" else _first_layer(path)
        check_writable(first, overwrite)
    for folder in {path.parent for path in paths}:
        check_folder_writable(folder)


def _first_layer(path: Path) -> Path:
    from talk2dino.cli.modes import layer_path

    return layer_path(path, 0)
