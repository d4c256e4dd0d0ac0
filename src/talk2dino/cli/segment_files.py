"""Which pictures the segment command reads and which files it writes for each."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.files import check_folder_writable, check_not_inputs, check_writable
from talk2dino.pictures.export import KINDS, Export
from talk2dino.pictures.images import IMAGE_SUFFIXES, PICTURE_FORMATS, list_images

if TYPE_CHECKING:
    from talk2dino.cli.segment import Segment

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

_FILES = {
    "output": (".png", tuple(PICTURE_FORMATS)),
    "save_mask": ("_mask.png", (".png",)),
    "save_scores": ("_scores.npz", (".npz",)),
}
"""Flag of a file per picture -> the end of its name in a folder, and the suffixes it may have."""
_LONGEST_NAME = 255 - len("_scores.npz")  # bytes


@dataclass(frozen=True)
class Task:
    """One picture to segment."""

    source: Path
    """The picture."""
    outputs: Mapping[str, Path]
    """All files that will be written: `output` (the overlay with its legend), `save_mask` and
    `save_scores`, as their flags are called, and those of MODES."""


def plan_tasks(command: Segment, modes: Sequence[str] = ()) -> list[Task]:
    """Lay out what is read and written, without reading a picture.

    Args:
        command: with its flags.
        modes: those of MODES that are wanted, in a folder each of `--output_folder`.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: no pictures, names that collide, or a wrong kind of output.
        OSError: an output exists already or can never be written.
    """
    sources, several = find_sources(command.input)
    if modes and command.output_folder is None:
        raise ValueError("--vis writes folders: give --output_folder.")
    if command.output is None and (
        not modes or BESIDE_OVERLAY in (command.save_mask, command.save_scores)
    ):
        raise ValueError("--output is missing: where the overlays go, and what lies beside them.")
    tasks = []
    for source, name in output_names(sources).items():
        outputs = {m: Path(command.output_folder or "", m, name + MODES[m]) for m in modes}
        for flag, (ending, suffixes) in _FILES.items():
            given = getattr(command, flag)
            if given == BESIDE_OVERLAY:
                overlay = outputs["output"]
                outputs[flag] = overlay.with_name(overlay.stem + ending)
            elif given is not None:
                outputs[flag] = _place(flag, given, name + ending, suffixes, several)
        tasks.append(Task(source, outputs))
    _check_outputs(tasks, command)
    return tasks


def plan_export(command: Segment, tasks: Sequence[Task]) -> Export | None:
    """What --export writes beside the overlays, if it is asked for.

    Raises:
        OSError: it exists already or can never be written.
    """
    if command.export is None:
        return None
    overlay, several = tasks[0].outputs.get("output"), len(tasks) > 1
    if overlay is None:
        raise ValueError("--export writes beside the overlays: give --output.")
    name = KINDS[command.export] if several else f"{overlay.stem}_{KINDS[command.export]}"
    path = overlay.with_name(name)
    if command.export != "masks":
        check_writable(path, command.overwrite)
    elif path.exists() and not command.overwrite:
        raise FileExistsError(f"{path} exists. Choose another folder or pass --overwrite.")
    root = os.path.commonpath([task.source.resolve().parent for task in tasks])
    return Export(command.export, path, Path(root))


def find_sources(inputs: Sequence[Path]) -> tuple[list[Path], bool]:
    """The pictures that `inputs` name, and whether they are meant as several.

    A folder stands for the image files directly in it.
    """
    sources: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"--input {path}: there is no such file or folder.")
        found = list_images(path) if path.is_dir() else [path]
        if not found:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"--input {path} holds no image files ({suffixes}).")
        sources.extend(found)
    return list(dict.fromkeys(sources)), len(inputs) > 1 or inputs[0].is_dir()


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


def _place(flag: str, given: str, name: str, suffixes: Sequence[str], several: bool) -> Path:
    """A file that a flag names, or a file of that name in the folder that it names."""
    path = Path(given)
    if path.is_dir() or given.endswith(("/", "\\")):
        return path / name
    if several and path.suffix.lower() in suffixes:
        raise ValueError(f"--{flag} {path} is one file, but there are several inputs: a folder.")
    if several:
        return path / name
    path = path if path.suffix else path.with_suffix(suffixes[0])
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"--{flag} {path} needs one of the suffixes {', '.join(suffixes)}, "
            "or must be an existing folder."
        )
    return path


def _check_outputs(tasks: Sequence[Task], command: Segment) -> None:
    outputs = [path for task in tasks for path in task.outputs.values()]
    repeated = [path for path, count in Counter(outputs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{repeated[0]} would be written more than once. Rename one of the pictures or "
            "segment them in separate runs."
        )
    check_not_inputs(outputs, [task.source for task in tasks])
    for parent in {task.source.parent for task in tasks} if command.output_folder else ():
        if Path(command.output_folder or "").resolve().is_relative_to(parent.resolve()):
            raise ValueError(
                f"--output_folder {command.output_folder} lies in {parent}, where the pictures "
                "are, and nothing is written there. Choose a folder beside it."
            )
    for path in outputs:
        if path.exists():
            check_writable(path, command.overwrite)
    for folder in {path.parent for path in outputs}:
        check_folder_writable(folder)
