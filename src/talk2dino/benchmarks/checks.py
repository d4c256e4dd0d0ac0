"""What can be known to be wrong with a benchmark's files before any weights are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from talk2dino.benchmarks.datasets import EvaluationSet

_SHOWN = 3
_SAMPLED = 16  # labels decoded ahead: enough for mistakes that are in every file
_ROTATED = {5, 6, 7, 8}  # EXIF orientations that swap the sides
_LABEL_MODES = {"P", "L", "1"}


def check_files(dataset: EvaluationSet) -> None:
    """Look for missing files, sizes that differ, colours in place of ids, and wrong labels.

    Only headers are read, but for the first labels.

    Raises:
        FileNotFoundError: images or labels are missing; names the first few and their number.
        ValueError: files that cannot be used, likewise.
    """
    key, root = dataset.benchmark.key, dataset.data_root
    for kind, paths in (
        ("image", [sample.image for sample in dataset.samples]),
        ("label", [sample.label for sample in dataset.samples]),
    ):
        missing = [path for path in paths if not (root / path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{key}: {len(missing)} of {len(paths)} {kind} files are missing below {root}: "
                f"{_some(missing)}. `python -m talk2dino data check` says where to get them."
            )
    problems = [
        problem
        for sample in dataset.samples
        if (problem := _pair_problem(root / sample.image, root / sample.label))
    ]
    if problems:
        raise ValueError(f"{key}: {len(problems)} files cannot be used: {_some(problems)}.")
    for index in range(min(_SAMPLED, len(dataset.samples))):
        dataset.read_label(index)


def check_distinct_stems(dataset: EvaluationSet) -> None:
    """Raise ValueError if predictions named by image stem would overwrite each other."""
    stems: dict[str, str] = {}
    for sample in dataset.samples:
        other = stems.setdefault(sample.stem, sample.image)
        if other != sample.image:
            raise ValueError(
                f"{other} and {sample.image} have one file stem, so their predictions would "
                "overwrite each other. Evaluate without saving predictions."
            )


def fingerprint(dataset: EvaluationSet) -> str:
    """A hash of the images' names and sizes in bytes, and of the labels' names and contents."""
    digest = hashlib.sha256()
    for sample in dataset.samples:
        size = (dataset.data_root / sample.image).stat().st_size
        digest.update(f"{sample.image}\0{size}\n{sample.label}\n".encode())
        digest.update((dataset.data_root / sample.label).read_bytes())
    return digest.hexdigest()[:16]


def _pair_problem(image: Path, label: Path) -> str | None:
    sizes = []
    for path, allowed in ((image, None), (label, _LABEL_MODES)):
        try:
            sizes.append(_size(path, allowed))
        except (UnidentifiedImageError, OSError, SyntaxError):
            return f"{path} is empty, damaged, or no image"
        except ValueError as error:
            return str(error)
    if sizes[0] != sizes[1]:
        width, height = sizes[0]
        return f"{label} is {sizes[1][0]}x{sizes[1][1]} pixels, but its image is {width}x{height}"
    return None


def _size(path: Path, modes: set[str] | None) -> tuple[int, int]:
    """(width, height) upright, from the header."""
    with Image.open(path) as image:
        if modes and image.mode not in modes:
            raise ValueError(
                f"{path} holds {image.mode} pixels (colours or wide numbers), not 8-bit class ids"
            )
        width, height = image.size
        turned = modes is None and _orientation(image) in _ROTATED
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int | None:
    return image.getexif().get(0x0112) if "exif" in image.info else None


def _some(items: Sequence[str], show: Callable[[str], str] = str) -> str:
    shown = ", ".join(show(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown}, ... ({len(items)} in all)"
