"""Finished work on disk while a long extraction runs, so that a kill at any moment loses nothing.

The items are cut into chunks of one batch each, the same ones whoever computes them. A finished
chunk is a file of its own, named by its number, and whole or absent. Chunk k belongs to process
k mod N. When all are there, they are put together.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from talk2dino.devices import Fetched
from talk2dino.files import atomic_path

_INPUT, _WHOLE, _ABOUT, _CHUNKS = "input.txt", "whole", "about.json", "chunk*.safetensors"


@dataclass(frozen=True, eq=False)
class Chunk:
    """The result of one batch of items."""

    columns: dict[str, Tensor]
    """Key -> (n, ...) rows of the items that succeeded, in order."""
    failures: dict[int, str] = field(default_factory=dict)
    """Position of a failed item among all -> why. It has no row."""
    captions: list[str] = field(default_factory=list)
    """Texts that go with the rows, if any are made."""


def fetched_behind(results: Iterable[Chunk], device: torch.device) -> Iterator[Chunk]:
    """Results with their columns in main memory.

    On CUDA one is handed out when the work of the next has been launched, so that storing it
    takes no time of the GPU's.
    """
    waiting: deque[tuple[Chunk, Fetched]] = deque()
    for result in results:
        waiting.append((result, Fetched(list(result.columns.values()))))
        if len(waiting) > (device.type == "cuda"):
            yield _arrived(*waiting.popleft())
    for result, fetched in waiting:
        yield _arrived(result, fetched)


def _arrived(result: Chunk, fetched: Fetched) -> Chunk:
    return replace(result, columns=dict(zip(result.columns, fetched.read(), strict=True)))


class Chunks:
    """The chunks of one split.

    Args:
        folder: made if absent; work that is there is continued.
        fingerprint: identifies the input; other work is refused.
        total: items of the split.
        size: items per chunk.

    Raises:
        ValueError: the folder holds work on another input.
    """

    def __init__(self, folder: Path, fingerprint: str, total: int, size: int) -> None:
        self.folder, self.total, self.size = folder, total, size
        self.numbers = range(-(-total // size))
        known = folder / _INPUT
        if not known.is_file():
            with atomic_path(known) as temporary:
                temporary.write_text(fingerprint)
        elif known.read_text() != fingerprint:
            raise ValueError(
                f"{folder} holds unfinished work on another input (other images or captions)."
                " Give that input again to go on, or pass --overwrite to start anew."
            )

    def items(self, number: int) -> range:
        """The positions of a chunk."""
        return range(number * self.size, min((number + 1) * self.size, self.total))

    def finished(self) -> set[int]:
        """The numbers of the chunks that are there."""
        if (self.folder / _WHOLE).is_dir():
            return set(self.numbers)
        # Listed: on a network's disk, a name once looked for in vain may stay unseen for a while.
        found = {int(p.stem.removeprefix("chunk")): p for p in self.folder.glob(_CHUNKS)}
        return {number for number, path in found.items() if _is_complete(path)}

    def write(self, number: int, chunk: Chunk) -> None:
        """Store a chunk; when this returns, a kill cannot lose it.

        Raises:
            RuntimeError: it could not be written, for example because the disk is full.
        """
        assert len({len(rows) for rows in chunk.columns.values()}) <= 1, "one row per item"
        # Cloned, because rows may be views of one larger tensor.
        columns = {
            key: rows.clone(memory_format=torch.contiguous_format)
            for key, rows in chunk.columns.items()
        }
        about = {"failures": json.dumps(chunk.failures), "captions": json.dumps(chunk.captions)}
        unfinished = self._path(number).with_suffix(".tmp")  # written again after a kill
        try:
            with unfinished.open("wb") as file:
                _write(file, safetensors.torch.save(columns, about))
            os.replace(unfinished, self._path(number))
        except OSError as error:
            raise self._cannot_write(error) from error

    def check_room(self, number: int, finished: int) -> None:
        """Raise RuntimeError unless all chunks, and a copy of them, fit on the disk.

        Args:
            number: of a chunk that is written; others are taken to be as large.
            finished: how many are.
        """
        size = self._path(number).stat().st_size
        needed = size * (2 * len(self.numbers) - finished)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RuntimeError(
                f"{self.folder}: the features need {_in_words(needed)} more while they are made, "
                f"half of it at the end, and {_in_words(free)} are free. Make room, or choose "
                "another --out_path, fewer features or --dtype float16."
            )

    def together(self, order: Tensor | None = None) -> Chunk:
        """All chunks as one, its rows mapped from disk; the single files go.

        Args:
            order: (total,) int64, a permutation: the item at position i becomes row order[i]. By
                default rows stay in order, without those of failed items.

        Raises:
            RuntimeError: it could not be written.
        """
        whole = self.folder / _WHOLE
        try:
            if not whole.is_dir():
                with atomic_path(whole) as temporary:
                    temporary.mkdir()
                    self._put_together(temporary, order)
            for number in self.numbers:
                self._path(number).unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        about = json.loads((whole / _ABOUT).read_text())
        columns = {
            key: _mapped(whole / f"{key}.rows", getattr(torch, dtype), shape)
            for key, (dtype, shape) in about["columns"].items()
        }
        return Chunk(columns, _failures(about), about["captions"])

    def _put_together(self, folder: Path, order: Tensor | None) -> None:
        """Write `<key>.rows`, the raw rows of all chunks, and what else they say."""
        count, failures, captions = 0, dict[int, str](), list[str]()
        kinds, files = dict[str, tuple[str, tuple[int, ...]]](), dict[str, BinaryIO]()
        with ExitStack() as stack:
            for number in self.numbers:
                with safetensors.safe_open(self._path(number), "pt") as chunk:
                    about = {key: json.loads(text) for key, text in chunk.metadata().items()}
                    columns = {key: chunk.get_tensor(key) for key in sorted(chunk.keys())}
                failures |= _failures(about)
                assert order is None or not failures
                captions += about["captions"]
                added = len(self.items(number)) - len(about["failures"])
                places = torch.arange(count, count + added)
                count += added
                for key, rows in columns.items() if added else ():
                    if key not in files:
                        kinds[key] = str(rows.dtype).removeprefix("torch."), tuple(rows.shape[1:])
                        files[key] = stack.enter_context((folder / f"{key}.rows").open("wb"))
                    _write_rows(files[key], rows, places if order is None else order[places])
        about = {
            "columns": {key: (dtype, [count, *shape]) for key, (dtype, shape) in kinds.items()},
            "failures": failures,
            "captions": captions,
        }
        (folder / _ABOUT).write_text(json.dumps(about))

    def _cannot_write(self, error: OSError) -> RuntimeError:
        return RuntimeError(
            f"{self.folder}: could not write ({system_words(error)}). What is finished is kept "
            "there; once there is room, run the same command again to go on."
        )

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk{number:07d}.safetensors"


def holds_chunks(folder: Path) -> bool:
    """Whether anything is finished in the folder of a split."""
    return (folder / _WHOLE).is_dir() or any(folder.glob(_CHUNKS))


def system_words(error: OSError) -> str:
    """The system's own words for an error, such as `No space left on device`."""
    return os.strerror(error.errno) if error.errno else str(error)


def _failures(about: Mapping[str, Any]) -> dict[int, str]:
    return {int(position): why for position, why in about["failures"].items()}


def _is_complete(path: Path) -> bool:
    """Whether all of a chunk is there; after a power cut, only a part of a file may be."""
    try:
        with safetensors.safe_open(path, "pt"):
            return True
    except (OSError, safetensors.SafetensorError):
        return False


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)


def _write_rows(file: BinaryIO, rows: Tensor, places: Tensor) -> None:
    """Write each row at its place; neighbours that stay together in one go."""
    size = rows[:1].nbytes
    breaks = (places.diff() != 1).nonzero().flatten() + 1
    pieces = (part.tensor_split(breaks) for part in (rows, places))
    for piece, place in zip(*pieces, strict=True):
        file.seek(int(place[0]) * size)
        _write(file, piece.contiguous().view(torch.uint8).numpy().data.cast("B"))


def _mapped(path: Path, dtype: torch.dtype, shape: list[int]) -> Tensor:
    mapped = torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype)
    return mapped.view(shape)


def _in_words(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
