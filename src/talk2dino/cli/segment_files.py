"""Which pictures the segment command reads and which files it writes for each."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talk2dino.files import check_folder_writable, check_writable
from talk2dino.pictures.images import IMAGE_SUFFIXES, PICTURE_FORMATS, list_images

BESIDE_OVERLAY = ""
"""Value of --save_mask and --save_scores without a path."""


_LONGEST_NAME = 255 - len("_scores.npz")  # bytes


@dataclass(frozen=True)
class Task:
    """One picture to segment."""

    source: Path
    """The picture."""
    overlay: Path
    """Coloured picture with legend."""
    mask: Path | None
    """Indexed PNG of labels, if asked for."""
    scores: Path | None
    """NPZ of scores, if asked for."""

    @property
    def outputs(self) -> list[Path]:
        """All files that will be written."""
        return [path for path in (self.overlay, self.mask, self.scores) if path is not None]


def plan_tasks(args: argparse.Namespace) -> list[Task]:
    """Lay out what is read and written, without reading a picture.

    Args:
        args: `input` (list), `output`, `save_mask`, `save_scores`, `overwrite`.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: no pictures, names that collide, or a wrong kind of output.
        OSError: an output exists already or can never be written.
    """
    sources, several = find_sources(args.input)
    output = Path(args.output)
    if several or output.is_dir() or args.output.endswith(("/", "\\")):
        tasks = _tasks_in_folders(sources, args, several)
    else:
        if not output.suffix:  # as in the published example
            output = output.with_suffix(".png")
        if output.suffix.lower() not in PICTURE_FORMATS:
            raise ValueError(
                f"--output {output} needs one of the suffixes {', '.join(PICTURE_FORMATS)}, "
                "or must be an existing folder."
            )
        mask = _side_file(args.save_mask, output, "_mask.png", "--save_mask")
        scores = _side_file(args.save_scores, output, "_scores.npz", "--save_scores")
        tasks = [Task(sources[0], output, mask, scores)]
    _check_outputs(tasks, args.overwrite)
    return tasks


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


def _tasks_in_folders(sources: list[Path], args: argparse.Namespace, several: bool) -> list[Task]:
    """Files named after the pictures, in one folder per kind of file."""
    folder = Path(args.output)
    if folder.suffix.lower() in PICTURE_FORMATS and not folder.is_dir():
        raise ValueError(f"--output {folder} is one file, but there are several inputs: a folder.")
    folders = [folder]
    for flag, value in (("--save_mask", args.save_mask), ("--save_scores", args.save_scores)):
        beside = value is None or value == BESIDE_OVERLAY
        folders.append(folder if beside else Path(value))
        if several and not beside and Path(value).suffix.lower() in (".png", ".npz"):
            raise ValueError(f"{flag} {value} is one file, but there are several inputs: a folder.")
    tasks = []
    for source, name in output_names(sources).items():
        overlay = folder / f"{name}.png"
        if several:
            mask = None if args.save_mask is None else folders[1] / f"{name}_mask.png"
            scores = None if args.save_scores is None else folders[2] / f"{name}_scores.npz"
        else:
            mask = _side_file(args.save_mask, overlay, "_mask.png", "--save_mask")
            scores = _side_file(args.save_scores, overlay, "_scores.npz", "--save_scores")
        tasks.append(Task(source, overlay, mask, scores))
    return tasks


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


def _side_file(value: str | None, overlay: Path, ending: str, flag: str) -> Path | None:
    """The mask or scores file of a single picture."""
    if value is None:
        return None
    if value == BESIDE_OVERLAY:
        return overlay.with_name(overlay.stem + ending)
    path = Path(value)
    if path.is_dir():
        return path / (overlay.stem + ending)
    if path.suffix.lower() != Path(ending).suffix:
        raise ValueError(f"{flag} {value}: the file must end in {Path(ending).suffix}.")
    return path


def _check_outputs(tasks: list[Task], overwrite: bool) -> None:
    outputs = [path for task in tasks for path in task.outputs]
    inputs = {task.source.resolve() for task in tasks}
    repeated = [path for path, count in Counter(outputs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{repeated[0]} would be written more than once. Rename one of the pictures or "
            "segment them in separate runs."
        )
    replaced = [path for path in outputs if path.resolve() in inputs]
    if replaced:
        raise ValueError(f"{replaced[0]} is an input. Choose another place for the output.")
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
