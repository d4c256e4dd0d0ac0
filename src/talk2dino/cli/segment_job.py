"""The pictures of the segment command: found, scored, drawn, and the files written of each."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from talk2dino.cli.command import free_memory
from talk2dino.files import check_folder_writable, check_not_inputs, check_writable
from talk2dino.inference import resize_pixels
from talk2dino.pictures.drawing import blend, write_names
from talk2dino.pictures.export import KINDS, Export
from talk2dino.pictures.images import (
    IMAGE_SUFFIXES,
    PICTURE_FORMATS,
    check_image,
    list_images,
    read_rgb,
)
from talk2dino.pictures.segmentation import Segmentation, save_picture, save_scores
from talk2dino.predict import draw_groups, segment_picture
from talk2dino.segmenter import ClassQuery, ClassWords, Segmenter
from talk2dino.sizes import scoring_size

if TYPE_CHECKING:
    from talk2dino.cli.segment import Segment
    from talk2dino.methods.base import Method

Outputs = Mapping[str, Path]
"""The files of a picture: `output` (the overlay with its legend), `save_mask` and `save_scores`, as
their flags are called, and those of the modes of --vis."""
GROUP_MODES = ("all_groups", "first_group", "final_group")

_FILES = {
    "output": (".png", tuple(PICTURE_FORMATS)),
    "save_mask": ("_mask.png", (".png",)),
    "save_scores": ("_scores.npz", (".npz",)),
}
"""Flag of a file per picture -> the end of its name in a folder, and the suffixes it may have."""
_LONGEST_NAME = 255 - len("_scores.npz")  # bytes
_GIB = 2**30
_MOST_WEIGHTS = 2**28  # PAMR holds no more at a time
_HUGE_PIXELS = 16_000_000  # refined beyond this only if asked for: it takes a minute on a laptop
_HUGE_SIDE = 4096


def plan_outputs(command: Segment, modes: Mapping[str, str]) -> dict[Path, Outputs]:
    """The pictures that are read, each with what is written of it; no picture is read for that.

    Args:
        command: with its flags; an empty --save_mask or --save_scores lies beside the overlay.
        modes: of --vis, with what their files end with; a folder each of --output_folder.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: no pictures, names that collide, or a wrong kind of output.
        OSError: an output exists already or can never be written.
    """
    sources, several = _find_sources(command.input)
    if modes and command.output_folder is None:
        raise ValueError("--vis writes folders: give --output_folder.")
    if command.output is None and (not modes or "" in (command.save_mask, command.save_scores)):
        raise ValueError("--output is missing: where the overlays go, and what lies beside them.")
    stems = Counter(source.stem for source in sources)
    planned: dict[Path, Outputs] = {}
    for source in sources:  # photo.jpg and photo.png keep their suffix to differ
        name = _short(source.stem if stems[source.stem] == 1 else source.name)
        folder = Path(command.output_folder or "")
        outputs = {mode: folder / mode / (name + ending) for mode, ending in modes.items()}
        for flag, (ending, suffixes) in _FILES.items():
            given = getattr(command, flag)
            if given == "":
                overlay = outputs["output"]
                outputs[flag] = overlay.with_name(overlay.stem + ending)
            elif given is not None:
                outputs[flag] = _place(flag, given, name + ending, suffixes, several)
        planned[source] = outputs
    _check_outputs(planned, command)
    return planned


def plan_export(command: Segment, planned: Mapping[Path, Outputs]) -> Export | None:
    """What --export writes beside the overlays, if it is asked for.

    Raises:
        OSError: it exists already or can never be written.
    """
    if command.export is None:
        return None
    overlay, several = next(iter(planned.values())).get("output"), len(planned) > 1
    if overlay is None:
        raise ValueError("--export writes beside the overlays: give --output.")
    name = KINDS[command.export] if several else f"{overlay.stem}_{KINDS[command.export]}"
    path = overlay.with_name(name)
    if command.export != "masks":
        check_writable(path, command.overwrite)
    elif path.exists() and not command.overwrite:
        raise FileExistsError(f"{path} exists. Choose another folder or pass --overwrite.")
    root = os.path.commonpath([source.resolve().parent for source in planned])
    return Export(command.export, path, Path(root))


def _find_sources(inputs: Sequence[Path]) -> tuple[list[Path], bool]:
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
    folder = path.is_dir() or given.endswith(("/", "\\"))
    if several and not folder and path.suffix.lower() in suffixes:
        raise ValueError(f"--{flag} {path} is one file, but there are several inputs: a folder.")
    if several or folder:
        return path / name
    path = path if path.suffix else path.with_suffix(suffixes[0])
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"--{flag} {path} needs one of the suffixes {', '.join(suffixes)}, "
            "or must be an existing folder."
        )
    return path


def _check_outputs(planned: Mapping[Path, Outputs], command: Segment) -> None:
    outputs = [path for files in planned.values() for path in files.values()]
    repeated = [path for path, count in Counter(outputs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{repeated[0]} would be written more than once. Rename one of the pictures or "
            "segment them in separate runs."
        )
    check_not_inputs(outputs, list(planned))
    for parent in {source.parent for source in planned} if command.output_folder else ():
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


@dataclass(eq=False)
class SegmentJob:
    """Segments one picture after the other with the same classes."""

    command: Segment
    method: Method
    """Model and options; the modes of groups need one with groups."""
    names: Sequence[str]
    """Of the labels."""
    colours: np.ndarray
    """(C, 3) uint8 RGB of the labels."""
    device: torch.device
    background: float | None = None
    """Threshold of the background, or None for none."""
    words: ClassWords = field(default_factory=ClassWords)
    export: Export | None = None
    """Gets every segmentation."""
    settings: dict[str, Any] = field(default_factory=dict, init=False)
    segmenter: Segmenter = field(init=False)
    query: ClassQuery = field(init=False)

    def load(self) -> None:
        self.segmenter = self.method.load(self.device)
        record = self.command.line("--overwrite")
        self.settings = {"command": record, "segmenter": self.method.settings()}
        self.query = self.words.asked_of(self.segmenter, self.names, self.background)

    def check(self, path: Path) -> None:
        """Raise for a picture whose header is damaged, or that needs more memory than there is.

        Raises:
            FileNotFoundError, ValueError: see `images.check_image`; or too large to score.
        """
        height, width = check_image(path)
        if self.device.type != "cpu":
            return  # the device says itself when it is full
        scored = scoring_size(height, width, self.side_of(height, width))
        count = len(self.names)
        needed = scoring_bytes(height, width, scored, count, self.refined)
        available = free_memory()
        if available is not None and needed > available:
            raise ValueError(
                f"{path}: {width} x {height} pixels and {count} classes need about "
                f"{needed / _GIB:.1f} GiB of memory, {available / _GIB:.1f} GiB are free. "
                "Pass --max_side 2048, name fewer classes, or make the picture smaller."
            )

    @property
    def refined(self) -> bool:
        """Whether the scores of whole pictures are refined."""
        return "pamr" in (self.method.demo.refines or ())

    def side_of(self, height: int, width: int) -> int | None:
        """The longest side at which a picture is scored; None: it keeps its size.

        Without a wish, whole pictures of more than 16 megapixels are refined at 4096 pixels.
        """
        huge = self.refined and height * width > _HUGE_PIXELS
        wanted = self.command.max_side
        return _HUGE_SIDE if huge and wanted is None else wanted

    def segment(self, source: Path, outputs: Outputs) -> str:
        """Write the files of one picture; returns a line that says what was found.

        Raises:
            ValueError, OSError: the picture cannot be read, or a file cannot be written.
            RuntimeError: not enough memory on the device.
        """
        started = time.perf_counter()
        self.check(source)
        image = read_rgb(source)
        pictures = self._without_classes(image, outputs)
        line, record = "", ""
        if left := [kind for kind in outputs if kind not in ("input", *GROUP_MODES)]:
            found = self._found(image, source)
            line, record = f": {_shares(found)}", found.record()
            drawn = [kind for kind in left if kind != "save_scores"]
            pictures |= {outputs[kind]: self._draw(kind, found) for kind in drawn}
            if "save_scores" in outputs:
                save_scores(found.scores, found.names, outputs["save_scores"], record)
            if self.export is not None:
                self.export.add(found, source)
        for path, picture in pictures.items():
            save_picture(picture, path, record)
        where = outputs.get("output", f"{len(pictures)} files")
        return f"{source} -> {where} ({time.perf_counter() - started:.1f} s){line}"

    def _without_classes(self, image: Image.Image, outputs: Outputs) -> dict[Path, Image.Image]:
        """The pictures for which no class is looked for."""
        pictures = {}
        if "input" in outputs:  # as the model saw it, at its own size again
            pixels, size_hw = np.asarray(image), (image.height, image.width)
            small = resize_pixels(pixels, self.method.demo.protocol.scored_size(*size_hw))
            pictures[outputs["input"]] = Image.fromarray(resize_pixels(small, size_hw))
        if any(mode in outputs for mode in GROUP_MODES):
            groups = draw_groups(self.segmenter, image, self.query.rows.device)
            for number, picture in enumerate(groups):
                if "all_groups" in outputs:
                    first = outputs["all_groups"]
                    pictures[first.with_stem(f"{first.stem.removesuffix('0')}{number}")] = picture
            for mode, picture in (("first_group", groups[0]), ("final_group", groups[-1])):
                if mode in outputs:
                    pictures[outputs[mode]] = picture
        return pictures

    def _found(self, image: Image.Image, path: Path) -> Segmentation:
        most = self.side_of(image.height, image.width)
        if most != self.command.max_side:
            megapixels = image.height * image.width / 1e6
            print(
                f"note: {path} has {megapixels:.0f} megapixels: scored at a long side of {most} "
                f"pixels; --max_side {max(image.size)} keeps its size"
            )
        settings, protocol = {"image": str(path), **self.settings}, self.method.demo.protocol
        found = segment_picture(self.segmenter, image, self.query, protocol, most, settings)
        return replace(found, palette=self.colours)

    def _draw(self, kind: str, found: Segmentation) -> Image.Image:
        labels = found.labels.numpy()
        if kind == "output":
            return found.overlay(self.command.opacity)
        if kind in ("pred", "save_mask"):
            return found.mask()
        if kind == "mask":
            return Image.fromarray(labels.astype(np.uint8))
        kept = None if found.background is None else 0
        blended = blend(np.asarray(found.image), self.colours[labels], labels == kept)
        picture = Image.fromarray(blended)
        return picture if kind == "input_pred" else write_names(picture, labels, found.names, kept)


def _shares(found: Segmentation) -> str:
    """The five classes with the most pixels."""
    areas = {name: share for name, share in found.areas().items() if share}
    largest = sorted(areas.items(), key=lambda area: -area[1])
    shown = [f"{n} {f'{share:.0f}%' if share >= 1 else '<1%'}" for n, share in largest[:5]]
    return ", ".join(shown) + (", ..." if len(largest) > 5 else "")


def scoring_bytes(
    height: int, width: int, scored: tuple[int, int], classes: int, refined: bool
) -> int:
    """Memory that scoring a picture as one window takes at its peak, roughly.

    Args:
        height, width: of the picture.
        scored: height and width at which it is scored.
    """
    pixels = scored[0] * scored[1]
    planes = (2 * classes + 6) * pixels  # float32: the picture, its scores, and once more refined
    planes += min(48 * pixels, _MOST_WEIGHTS) if refined else 0
    if scored != (height, width):
        planes += (classes + 4) * height * width
    return 4 * planes
