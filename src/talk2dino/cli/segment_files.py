"""Which pictures the segment command reads and which files it writes for each."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talk2dino.files import check_folder_writable, check_not_inputs, check_writable
from talk2dino.pictures.export import KINDS, Export
from talk2dino.pictures.images import IMAGE_SUFFIXES, PICTURE_FORMATS, list_images

BESIDE_OVERLAY = ""
"""Value of --save_mask and --save_scores without a path."""

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

_SIDE_FILES = {"save_mask": "_mask.png", "save_scores": "_scores.npz"}
_NOT_WITH_MODES = ("output", "save_mask", "save_scores", "export", "max_side")
_LONGEST_NAME = 255 - len("_scores.npz")  # bytes


@dataclass(frozen=True)
class Task:
    """One picture to segment."""

    source: Path
    """The picture."""
    outputs: Mapping[str, Path]
    """All files that will be written: `output` (the overlay with its legend), `save_mask` and
    `save_scores`, as their flags are called; or those of MODES."""


def plan_tasks(args: argparse.Namespace, modes: Sequence[str] = ()) -> list[Task]:
    """Lay out what is read and written, without reading a picture.

    Args:
        args: the flags of the command.
        modes: those of MODES that are wanted, in place of overlays.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: no pictures, names that collide, or a wrong kind of output.
        OSError: an output exists already or can never be written.
    """
    tasks = _tasks_of_modes(args, modes) if modes else _tasks_of_overlays(args)
    _check_outputs(tasks, args.overwrite)
    return tasks


def plan_export(args: argparse.Namespace, tasks: Sequence[Task]) -> Export | None:
    """What --export writes beside the overlays, if it is asked for.

    Raises:
        OSError: it exists already or can never be written.
    """
    if args.export is None:
        return None
    overlay, several = tasks[0].outputs["output"], len(tasks) > 1
    name = KINDS[args.export] if several else f"{overlay.stem}_{KINDS[args.export]}"
    path = overlay.with_name(name)
    if args.export != "masks":
        check_writable(path, args.overwrite)
    elif path.exists() and not args.overwrite:
        raise FileExistsError(f"{path} exists. Choose another folder or pass --overwrite.")
    root = os.path.commonpath([task.source.resolve().parent for task in tasks])
    return Export(args.export, path, Path(root))


def _tasks_of_overlays(args: argparse.Namespace) -> list[Task]:
    """Files where the flags say, or named after the pictures in one folder per kind of file."""
    for flag in ("input", "output"):
        if getattr(args, flag) is None:
            raise ValueError(
                f"--{flag} is missing; --image_folder and --output_folder take its place."
            )
    sources, several = find_sources(args.input)
    output = Path(args.output)
    for flag in ("output", *_SIDE_FILES) if several else ():
        place = Path(getattr(args, flag) or "")
        if place.suffix.lower() in (*PICTURE_FORMATS, ".npz") and not place.is_dir():
            raise ValueError(
                f"--{flag} {place} is one file, but there are several inputs: a folder."
            )
    in_folder = several or output.is_dir() or args.output.endswith(("/", "\\"))
    tasks = []
    for source, name in output_names(sources).items():
        overlay = output / f"{name}.png" if in_folder else _picture_file(output)
        given = {flag: value for flag in _SIDE_FILES if (value := getattr(args, flag)) is not None}
        files = {f: _side_file(f, value, overlay, several) for f, value in given.items()}
        tasks.append(Task(source, {**files, "output": overlay}))
    return tasks


def _tasks_of_modes(args: argparse.Namespace, modes: Sequence[str]) -> list[Task]:
    """A folder per mode, beside the pictures' folders."""
    if args.output_folder is None:
        raise ValueError("--vis writes folders: give --output_folder.")
    for flag in _NOT_WITH_MODES:
        if getattr(args, flag) is not None:
            raise ValueError(f"--{flag} does not go with --vis and --output_folder. Leave it out.")
    if (args.input is None) == (args.image_folder is None):
        raise ValueError("give the pictures with --image_folder or with --input, one of them.")
    if args.input is not None:
        sources, _ = find_sources(args.input)
    elif Path(args.image_folder).is_file():
        raise ValueError(f"--image_folder {args.image_folder} is a file. Use --input for it.")
    else:
        sources, _ = find_sources([args.image_folder], "--image_folder")
    folder = Path(args.output_folder)
    for parent in dict.fromkeys(source.parent for source in sources):
        if folder.resolve().is_relative_to(parent.resolve()):
            raise ValueError(
                f"--output_folder {folder} lies in {parent}, where the pictures are, and nothing "
                "is written there. Choose a folder beside it."
            )
    return [
        Task(source, {mode: folder / mode / f"{name}{MODES[mode]}" for mode in modes})
        for source, name in output_names(sources).items()
    ]


def find_sources(inputs: Sequence[str], flag: str = "--input") -> tuple[list[Path], bool]:
    """The pictures that `inputs` name, and whether they are meant as several.

    A folder stands for the image files directly in it.
    """
    sources: list[Path] = []
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"{flag} {path}: there is no such file or folder.")
        if not path.is_dir():
            sources.append(path)
            continue
        found = list_images(path)
        if not found:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{flag} {path} holds no image files ({suffixes}).")
        sources.extend(found)
    sources = list(dict.fromkeys(sources))
    return sources, len(inputs) > 1 or Path(inputs[0]).is_dir()


def output_names(sources: Sequence[Path]) -> dict[Path, str]:
    """What files are named after: photo.jpg and photo.png keep their suffix to differ."""
    stems = Counter(source.stem for source in sources)
    return {s: _short(s.stem if stems[s.stem] == 1 else s.name) for s in sources}


def _short(name: str) -> str:
    """A name to which every ending of an output can be added; digits keep cut names apart."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    digits = hashlib.sha256(encoded).hexdigest()[:8]
    return encoded[: _LONGEST_NAME - 9].decode("utf-8", "ignore") + f"-{digits}"


def _picture_file(output: Path) -> Path:
    """The overlay of a single picture; without a suffix a PNG, as in the published example."""
    output = output if output.suffix else output.with_suffix(".png")
    if output.suffix.lower() not in PICTURE_FORMATS:
        raise ValueError(
            f"--output {output} needs one of the suffixes {', '.join(PICTURE_FORMATS)}, "
            "or must be an existing folder."
        )
    return output


def _side_file(flag: str, value: str, overlay: Path, several: bool) -> Path:
    """The mask or scores file that belongs to an overlay."""
    ending = _SIDE_FILES[flag]
    if value == BESIDE_OVERLAY:
        return overlay.with_name(overlay.stem + ending)
    path = Path(value)
    if several or path.is_dir():
        return path / (overlay.stem + ending)
    if path.suffix.lower() != Path(ending).suffix:
        raise ValueError(f"--{flag} {value}: the file must end in {Path(ending).suffix}.")
    return path


def _check_outputs(tasks: list[Task], overwrite: bool) -> None:
    outputs = [path for task in tasks for path in task.outputs.values()]
    repeated = [path for path, count in Counter(outputs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{repeated[0]} would be written more than once. Rename one of the pictures or "
            "segment them in separate runs."
        )
    check_not_inputs(outputs, [task.source for task in tasks])
    existing = [path for path in outputs if path.exists()]
    if len(existing) > 1 and not overwrite:
        raise FileExistsError(
            f"{len(existing)} of {len(outputs)} output files exist already ({existing[0]}, ...). "
            "Choose another folder or pass --overwrite."
        )
    for path in existing:
        check_writable(path, overwrite)
    for folder in {path.parent for path in outputs}:
        check_folder_writable(folder)
