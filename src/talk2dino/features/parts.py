"""Finished work on disk while a long extraction runs, so that a kill at any moment loses nothing.

A folder holds one file of raw rows per key, only ever appended to, and a journal with one line per
finished batch. A line is written after its rows. Whatever lies beyond the last whole line was
unfinished, and is cut off when the work goes on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

JOURNAL = "journal.jsonl"
FINGERPRINT = "input.txt"
_GATHER_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Batch:
    """The result of one batch of items."""

    stop: int
    """Items are processed in a fixed order; all before this position are finished now."""
    columns: dict[str, Tensor]
    """Key -> (n, ...) rows of the items that succeeded, in order."""
    failures: dict[int, str] = field(default_factory=dict)
    """Position of a failed item -> why. It has no row."""
    captions: list[str] = field(default_factory=list)
    """Texts that go with the rows, if any are made."""


class Parts:
    """Append-only rows with a journal.

    Args:
        folder: made if absent; work that is there is continued.
        fingerprint: identifies the input; other work is refused.
        start: position of the first item.

    Raises:
        ValueError: the folder holds work on another input.
    """

    def __init__(self, folder: str | Path, fingerprint: str, start: int = 0) -> None:
        self.folder = Path(folder)
        self.stop = start
        self.rows = 0
        self.failures: dict[int, str] = {}
        self.captions: list[str] = []
        self._kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._files: dict[str, BinaryIO] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_fingerprint(fingerprint)
        self._restore()

    def append(self, batch: Batch) -> None:
        """Store a batch; when this returns, a kill cannot lose it.

        Raises:
            RuntimeError: it could not be written, for example because the disk is full.
        """
        counts = {len(rows) for rows in batch.columns.values()}
        assert len(counts) <= 1, "every key has one row per item"
        count = counts.pop() if counts else 0
        try:
            for key, rows in batch.columns.items():
                if count:
                    self._write_rows(key, rows)
            self._write_line(batch, self.rows + count)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._remember(batch.stop, self.rows + count, batch.failures, batch.captions)

    def take_over(self, other: Parts) -> None:
        """Append the batches of the work that begins where this one stops.

        Batches that are here already are left out, so that this can be done again after a kill.
        """
        columns = other.columns()
        before = 0
        for line in _whole_lines(other.folder / JOURNAL):
            rows = {key: column[before : line["rows"]] for key, column in columns.items()}
            before = line["rows"]
            if line["stop"] > self.stop:
                failures = {int(position): why for position, why in line["failures"].items()}
                self.append(Batch(line["stop"], rows, failures, line["captions"]))

    def columns(self, order: Tensor | None = None) -> dict[str, Tensor]:
        """Key -> (rows, ...), mapped from disk.

        Args:
            order: (rows,) int64; row i of the result is stored row order[i]. Written once more
                beside the stored rows, in chunks.
        """
        columns = {}
        for key, (dtype, shape) in self._kinds.items():
            path = self._path(key)
            if order is not None and self.rows:
                try:
                    path = _gather(_map(path, dtype, shape, self.rows), order, path)
                except OSError as error:
                    raise self._cannot_write(error) from error
            columns[key] = _map(path, dtype, shape, self.rows)
        return columns

    def check_room(self, total: int, elsewhere: int = 0) -> None:
        """Raise RuntimeError unless the rows of all `total` items, and a copy, fit on the disk.

        Args:
            total: items of all parts together.
            elsewhere: those whose rows are on the disk already, in other parts.
        """
        row = sum(_row_bytes(*kind) for kind in self._kinds.values())
        needed = row * (2 * total - self.rows - elsewhere)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RuntimeError(
                f"{self.folder}: the features need {_size(needed)} more while they are made, half "
                f"of it at the end, and {_size(free)} are free. Make room, or choose another "
                "--out_path, fewer features or --dtype float16."
            )

    def close(self) -> None:
        """Close the files; nothing is lost if this is never called."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def remove(self) -> None:
        """Delete the folder."""
        self.close()
        shutil.rmtree(self.folder)

    def _cannot_write(self, error: OSError) -> RuntimeError:
        return RuntimeError(
            f"{self.folder}: could not write ({error.strerror or error}). The first {self.stop} "
            "items are kept there; once there is room, run the same command again to go on."
        )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.rows"

    def _check_fingerprint(self, fingerprint: str) -> None:
        path = self.folder / FINGERPRINT
        known = path.read_text() if path.is_file() else ""
        if known and known != fingerprint:
            raise ValueError(
                f"{self.folder} holds unfinished work on another input (other images or captions)."
                " Give that input again to go on, or pass --overwrite to start anew."
            )
        if not known:
            (self.folder / JOURNAL).unlink(missing_ok=True)
            path.write_text(fingerprint)

    def _restore(self) -> None:
        """Read the journal up to the last line whose rows are all there; cut off the rest."""
        path = self.folder / JOURNAL
        end = 0
        for line in _whole_lines(path):
            kinds = {k: (getattr(torch, d), tuple(s)) for k, (d, s) in line["columns"].items()}
            if not all(
                self._path(key).is_file()
                and self._path(key).stat().st_size >= line["rows"] * _row_bytes(*kind)
                for key, kind in kinds.items()
            ):
                break  # only after a power cut: a line is written after its rows
            self._kinds = kinds
            failures = {int(position): why for position, why in line["failures"].items()}
            self._remember(line["stop"], line["rows"], failures, line["captions"])
            end = line["end"]
        for file in [path, *self.folder.glob("*.rows")]:
            kind = self._kinds.get(file.stem)
            if file == path and path.is_file():
                os.truncate(path, end)
            elif kind:
                os.truncate(file, self.rows * _row_bytes(*kind))
            else:
                file.unlink(missing_ok=True)

    def _remember(
        self, stop: int, rows: int, failures: dict[int, str], captions: list[str]
    ) -> None:
        self.stop, self.rows = stop, rows
        self.failures |= failures
        self.captions += captions

    def _write_rows(self, key: str, rows: Tensor) -> None:
        rows = rows.detach().cpu().contiguous()
        kind = (rows.dtype, tuple(rows.shape[1:]))
        known = self._kinds.setdefault(key, kind)
        assert kind == known, f"rows of {key} changed from {known} to {kind}"
        _write_at(self._file(self._path(key)), self.rows * _row_bytes(*kind), _raw(rows))

    def _write_line(self, batch: Batch, rows: int) -> None:
        kinds = {k: (str(d).removeprefix("torch."), s) for k, (d, s) in self._kinds.items()}
        line = {
            "stop": batch.stop,
            "rows": rows,
            "failures": batch.failures,
            "captions": batch.captions,
            "columns": kinds,
        }
        file = self._file(self.folder / JOURNAL)
        end = file.seek(0, os.SEEK_END)
        try:
            _write_at(file, end, json.dumps(line).encode() + b"\n")
        except OSError:
            file.truncate(end)
            raise

    def _file(self, path: Path) -> BinaryIO:
        name = str(path)
        if name not in self._files:
            path.touch()
            self._files[name] = path.open("r+b", buffering=0)
        return self._files[name]


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The journal's lines, each with the byte offset of its `end`; stops at a broken one."""
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                return
            end += len(text)
            try:
                line = json.loads(text)
            except ValueError:
                return
            yield {**line, "end": end}


def _row_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _raw(rows: Tensor) -> memoryview:
    return rows.contiguous().view(torch.uint8).numpy().data.cast("B")


def _write_at(file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
    file.seek(offset)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]  # unbuffered: may write less than asked for


def _map(path: Path, dtype: torch.dtype, shape: tuple[int, ...], rows: int) -> Tensor:
    size = rows * math.prod(shape)
    if size == 0:
        return torch.empty(rows, *shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(rows, *shape)


def _gather(column: Tensor, order: Tensor, path: Path) -> Path:
    ordered = path.with_suffix(".ordered")
    with ordered.open("wb") as file:
        for rows in order.split(_GATHER_ROWS):
            file.write(_raw(column[rows]))
    return ordered
