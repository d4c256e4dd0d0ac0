"""Pixel counts per image, kept on disk as they come: what a killed evaluation goes on from.

A file is a line of JSON (the settings) and then one record per image, of methods that find uniform
windows with their number in front; a record that was cut short by a kill is dropped when the file
is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from talk2dino.benchmarks.metrics import ignored_label, pair_numbers
from talk2dino.devices import Fetched

SUFFIX = ".counts"
_HEAD = struct.Struct("<4sIII")  # magic, image, number of pairs, checksum of the pairs
_PAIRS = {
    magic: np.dtype([("true", kind), ("predicted", kind), ("pixels", "<u4")])
    for magic, kind in ((b"IMG\n", "u1"), (b"IMG2", "<u2"), (b"IMG4", "<u4"))
}
"""Earlier versions wrote the smaller ones."""
PAIR = _PAIRS[b"IMG4"]
"""True label, predicted label, pixels."""
_UNIFORM = b"UNI\n"  # its number stands in place of the number of pairs
_FEW = 1 << 16  # pairs of classes that are counted in one bin each, also of a small picture
_FEW_ON_GPU = 1 << 20  # there, finding those that occur means to wait
MOST_CONFUSED = 5_793
"""Classes of which a table of all pairs is kept: 256 MiB."""


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """The non-zero entries of one image's confusion matrix."""

    index: int
    """Of the image in its data set."""
    pairs: np.ndarray
    """(n,) records: true class, predicted class, pixels."""
    uniform: int | None = None
    """Windows in which all patches are alike; None of a method that does not tell."""

    def between(self, first: int, end: int) -> ImageCounts:
        """The pairs of labels from `first` up to `end`, counted from 0; see `joined`."""
        pairs = self.pairs[(self.pairs["true"] >= first) & (self.pairs["true"] < end)]
        pairs["true"] -= first
        pairs["predicted"] -= first
        return ImageCounts(self.index, pairs, self.uniform)


def joined(counts: Sequence[ImageCounts], firsts: Sequence[int]) -> ImageCounts:
    """Several counts of one image in one table of pairs, the labels of each from its `first` on."""
    parts = []
    for found, first in zip(counts, firsts, strict=True):
        parts.append(found.pairs.copy())
        parts[-1]["true"] += first
        parts[-1]["predicted"] += first
    return ImageCounts(counts[0].index, np.concatenate(parts), counts[0].uniform)


def count_image(*shown: Any) -> list[ImageCounts]:
    """`begin_count`, and its end at once."""
    return begin_count(*shown)()


def begin_count(
    index: int,
    predicted: Sequence[Tensor],
    targets: Sequence[Tensor],
    num_classes: Sequence[int],
    uniform: int | None = None,
) -> Callable[[], list[ImageCounts]]:
    """Compare the label maps of an image with their ground truths, where these are not ignored.

    Counted where the label maps are; the counts of all of them are fetched in one piece. A GPU is
    not waited for. Memory follows the pixels, not the square of the classes.

    Args:
        index: of the image in its data sets.
        predicted: (H, W) label maps, one per benchmark.
        targets: (H, W) ground truths, likewise; see `metrics.ignored_label`.
        num_classes: of each benchmark.
        uniform: windows of the image in which all patches are alike, if that is known.

    Returns:
        what waits for the counts and returns them, one per benchmark. It raises ValueError for
        labels that are no classes.

    Raises:
        ValueError: they differ in size.
    """
    counted: list[Tensor] = []
    for maps, target, classes in zip(predicted, targets, num_classes, strict=True):
        truth = target.to(maps.device, non_blocking=True)
        numbers = pair_numbers(maps, truth, classes, ignored_label(classes))
        if classes**2 <= max(len(numbers), _FEW_ON_GPU if numbers.device.type == "cuda" else _FEW):
            counted += [numbers[:0], _bins(numbers, classes**2 + 2)]
        else:
            counted += numbers.unique(return_counts=True)
    fetched = Fetched(counted)

    def finish() -> list[ImageCounts]:
        found = [part.numpy() for part in fetched.read()]
        return [
            ImageCounts(index, _pairs(numbers, counts, classes), uniform)
            for numbers, counts, classes in zip(found[::2], found[1::2], num_classes, strict=True)
        ]

    return finish


def _bins(numbers: Tensor, count: int) -> Tensor:
    """How often each number below `count` occurs, (count,) int64."""
    if numbers.device.type != "cuda":
        return numbers.bincount(minlength=count)
    # For `bincount` the largest number has to be known first, and the GPU to be waited for.
    return numbers.new_zeros(count).scatter_add_(0, numbers, torch.ones_like(numbers))


def _pairs(numbers: np.ndarray, counts: np.ndarray, num_classes: int) -> np.ndarray:
    """Records of pairs of classes, of `pair_numbers` that occur so often; without any, of all."""
    numbers = numbers if len(numbers) else np.arange(len(counts))
    if counts[numbers == num_classes**2 + 1].any():
        raise ValueError(f"ground truth or prediction holds labels outside 0 to {num_classes - 1}")
    occurring = (counts > 0) & (numbers < num_classes**2)
    pairs = np.empty(int(occurring.sum()), PAIR)
    pairs["true"], pairs["predicted"] = np.divmod(numbers[occurring], num_classes)
    pairs["pixels"] = counts[occurring]
    return pairs


_LATER = ("pictures", "batch_size")  # of the settings; files of earlier versions lack them


class CountsWriter:
    """Appends images to one file; one writer per file.

    Args:
        path: made if it is not there; a record cut short by a kill is removed.
        settings: everything that decides the counts.

    Raises:
        ValueError: the file was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = open(path, "r+b")  # noqa: SIM115
        try:
            _lock(self._file, path)  # before looking: nobody else appends from here on
            end = _read(path, settings)[1]
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._file.write(_first_line(settings))
            self._file.flush()

    def add(self, counts: ImageCounts) -> None:
        """Append one image; it is in the file when this returns."""
        data = counts.pairs.tobytes()
        head = _HEAD.pack(b"IMG4", counts.index, len(counts.pairs), zlib.crc32(data))
        if counts.uniform is not None:
            head = _HEAD.pack(_UNIFORM, counts.index, counts.uniform, 0) + head
        self._file.write(head + data)
        self._file.flush()

    def close(self) -> None:
        """Write everything through to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_counts_folder(folder: Path, settings: Mapping[str, Any]) -> dict[int, ImageCounts]:
    """All images counted so far, from the files of all jobs, by their index.

    Raises:
        ValueError: a file was made with other settings.
    """
    found: dict[int, ImageCounts] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for counts in _read(path, settings)[0]:
            found.setdefault(counts.index, counts)
    return found


def stacked_areas(images: Sequence[ImageCounts], num_classes: int) -> dict[str, np.ndarray]:
    """`intersect`, `union`, `pred_area`, `label_area` (N, C) and `confusion` (C, C), int64.

    The last one only of at most MOST_CONFUSED classes.
    """
    names = ("intersect", "pred_area", "label_area")
    found = {name: np.zeros((len(images), num_classes), np.int64) for name in names}
    confused = num_classes <= MOST_CONFUSED
    confusion = np.zeros((num_classes, num_classes) if confused else (0, 0), np.int64)
    for row, image in enumerate(images):
        true, predicted, pixels = (image.pairs[name] for name in ("true", "predicted", "pixels"))
        same = true == predicted
        found["intersect"][row, true[same]] = pixels[same]  # no pair occurs twice in an image
        np.add.at(found["pred_area"][row], predicted, pixels)
        np.add.at(found["label_area"][row], true, pixels)
        if confused:
            confusion[true, predicted] += pixels
    found["union"] = found["pred_area"] + found["label_area"] - found["intersect"]
    return found | {"confusion": confusion} if confused else found


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold the file until it is closed or this process ends, where the system can do that."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process is writing {path}: the same evaluation is running already. "
                "Wait for it, or share the images with --num_jobs and --job_id."
            ) from error


def _first_line(settings: Mapping[str, Any]) -> bytes:
    return json.dumps(settings, sort_keys=True).encode() + b"\n"


def _read(path: Path, settings: Mapping[str, Any]) -> tuple[list[ImageCounts], int]:
    """The intact records, and where they end in bytes."""
    data = path.read_bytes()
    line = _first_line(settings)
    earlier = _first_line({key: settings[key] for key in settings if key not in _LATER})
    if data.startswith(earlier):
        line = earlier
    if not data.startswith(line):
        if b"\n" not in data and line.startswith(data):
            return [], 0  # killed within the first line
        raise ValueError(
            f"{path} was made with other settings, --batch_size or pictures, or is no file. "
            "Choose another --output, or delete its folder."
        )
    start, found, uniform = len(line), [], None
    position = start
    while position + _HEAD.size <= len(data):
        magic, index, pairs, checksum = _HEAD.unpack_from(data, position)
        if magic == _UNIFORM:
            position, uniform = position + _HEAD.size, pairs
            continue
        kind = _PAIRS.get(magic)
        if kind is None:
            break
        end = position + _HEAD.size + pairs * kind.itemsize
        payload = data[position + _HEAD.size : end]
        if end > len(data) or zlib.crc32(payload) != checksum:
            break
        found.append(ImageCounts(index, np.frombuffer(payload, kind).astype(PAIR), uniform))
        start, position, uniform = end, end, None
    return found, start
