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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from talk2dino.benchmarks.metrics import confusion_counts, pair_counts

SUFFIX = ".counts"
_HEAD = struct.Struct("<4sIII")  # magic, image, number of pairs, checksum of the pairs
_MAGIC = b"IMG\n"
_UNIFORM = b"UNI\n"  # its number stands in place of the number of pairs
_PAIR = np.dtype([("true", "u1"), ("predicted", "u1"), ("pixels", "<u4")])


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """The non-zero entries of one image's confusion matrix."""

    index: int
    """Of the image in its data set."""
    pairs: np.ndarray
    """(n,) records: true class, predicted class, pixels."""
    uniform: int | None = None
    """Windows in which all patches are alike; None of a method that does not tell."""

    def dense(self, num_classes: int) -> np.ndarray:
        """(C, C) int64; rows are true classes."""
        confusion = np.zeros((num_classes, num_classes), np.int64)
        confusion[self.pairs["true"], self.pairs["predicted"]] = self.pairs["pixels"]
        return confusion


def count_image(
    index: int,
    predicted: Sequence[Tensor],
    targets: Sequence[Tensor],
    num_classes: Sequence[int],
    uniform: int | None = None,
) -> list[ImageCounts]:
    """Compare the label maps of an image with their ground truths, where these are not 255.

    Counted where the label maps are; the counts of all of them are fetched in one piece.

    Args:
        index: of the image in its data sets.
        predicted: (H, W) label maps, one per benchmark.
        targets: (H, W) ground truths, likewise.
        num_classes: of each benchmark.
        uniform: windows of the image in which all patches are alike, if that is known.

    Raises:
        ValueError: they differ in size, or hold labels that are no classes.
    """
    triples = list(zip(predicted, targets, num_classes, strict=True))
    moved = [target.to(maps.device, non_blocking=True) for maps, target, _ in triples]
    counted = [
        pair_counts(maps, target, classes)
        for (maps, _, classes), target in zip(triples, moved, strict=True)
    ]
    fetched = torch.cat(counted).cpu().split([len(counts) for counts in counted])
    results = []
    for counts, (maps, target, classes) in zip(fetched, triples, strict=True):
        if counts[-1]:
            confusion_counts(maps.cpu(), target, classes)  # which says what is wrong
        pairs = _pairs(counts[: classes**2].numpy(), classes)
        results.append(ImageCounts(index, pairs, uniform))
    return results


def _pairs(counts: np.ndarray, num_classes: int) -> np.ndarray:
    """The non-zero entries of a confusion matrix (C * C,)."""
    found = np.flatnonzero(counts)
    pairs = np.empty(len(found), _PAIR)
    pairs["true"], pairs["predicted"] = np.divmod(found, num_classes)
    pairs["pixels"] = counts[found]
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
            end = _intact_length(path, settings)
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
        head = _HEAD.pack(_MAGIC, counts.index, len(counts.pairs), zlib.crc32(data))
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


def stacked_areas(images: Iterable[ImageCounts], num_classes: int) -> dict[str, np.ndarray]:
    """`intersect`, `union`, `pred_area`, `label_area` (N, C) and `confusion` (C, C), int64."""
    total = np.zeros((num_classes, num_classes), np.int64)
    rows = []
    for counts in images:
        confusion = counts.dense(num_classes)
        total += confusion
        rows.append((confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)))
    stacked = np.array(rows, np.int64).reshape(-1, 3, num_classes)
    intersect, predicted, labelled = stacked.transpose(1, 0, 2)
    return {
        "intersect": intersect,
        "union": predicted + labelled - intersect,
        "pred_area": predicted,
        "label_area": labelled,
        "confusion": total,
    }


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


def _intact_length(path: Path, settings: Mapping[str, Any]) -> int:
    return _read(path, settings)[1]


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
        end = position + _HEAD.size + pairs * _PAIR.itemsize
        payload = data[position + _HEAD.size : end]
        if magic != _MAGIC or end > len(data) or zlib.crc32(payload) != checksum:
            break
        found.append(ImageCounts(index, np.frombuffer(payload, _PAIR), uniform))
        start, position, uniform = end, end, None
    return found, start
