"""What can be known to be wrong with a benchmark's files before any weights are loaded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from talk2dino.benchmarks.data.check import pictures_left_out
from talk2dino.benchmarks.data.labels import forbidden, label_size
from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.pictures.images import check_image

logger = logging.getLogger(__name__)

_SHOWN = 3
_SAMPLED = 16  # labels decoded ahead: enough for mistakes that are in every file


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
    images = root / dataset.benchmark.images
    suffix = dataset.benchmark.image_suffix
    if dataset.benchmark.split is None and (left := pictures_left_out(images, suffix)):
        logger.warning("%s: pictures of %s do not end in %s: %s", key, images, suffix, left)
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
        digest.update(f"{sample.image}\0{size}\n{sample.label}\n".encode(errors="surrogateescape"))
        digest.update((dataset.data_root / sample.label).read_bytes())
    return digest.hexdigest()[:16]


def _pair_problem(image: Path, label: Path) -> str | None:
    try:
        (height, width), labels = check_image(image), label_size(label)
    except PermissionError as error:
        return forbidden(error.filename or image)
    except (ValueError, OSError) as error:
        return str(error).rstrip(".")
    if (height, width) != labels:
        return f"{label} is {labels[1]}x{labels[0]} pixels, but its image is {width}x{height}"
    return None


def _some(items: Sequence[str], show: Callable[[str], str] = str) -> str:
    shown = ", ".join(show(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown}, ... ({len(items)} in all)"
