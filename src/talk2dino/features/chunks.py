"""What makes features, and finished work on disk, so that a kill at any moment loses nothing.

The items are cut into chunks, the same ones whoever computes them. A finished chunk is a file of
its own, named by its number, and whole or absent. Chunk k belongs to process k mod N. When all are
there, they are put together.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from talk2dino.config import check_at_least, check_name
from talk2dino.devices import AMP_TYPES, Fetched, one_behind, resolve_device, resolve_dtype
from talk2dino.features.captions import Collection
from talk2dino.features.keys import BERT_KEY
from talk2dino.features.store import FeatureFile
from talk2dino.files import atomic_path, write_text

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC_FAILED")
"""In errors of PyTorch, and of CUDA's libraries that it calls."""
_INPUT, _ABOUT = "input.txt", "about.json"
FINISHED = _WHOLE, _CHUNKS = "whole", "chunk*.safetensors"
"""What the folder of a split has of finished work: all together, or chunks."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """The results of some items."""

    columns: dict[str, Tensor]
    """Key -> (n, ...) rows of the items that succeeded, in order."""
    failures: dict[int, str] = field(default_factory=dict)
    """Position of a failed item among all -> its name and why. It has no row."""
    captions: list[str] = field(default_factory=list)
    """Texts that go with the rows, if any are made."""


@dataclass(eq=False, kw_only=True)
class Extraction(ABC):
    """One kind of features: frozen models, and what they make of the items of a collection.

    Its fields say what is made, and how.
    """

    unit: ClassVar[str]
    """What an item is called, in the plural."""
    cpu_batch: ClassVar[int]
    """Items at once on a CPU: more are no faster, and their activations leave its cache."""
    completes_input: ClassVar[bool] = False
    """Whether the output may be the input, which keeps what it has."""

    weights: str | None = None
    """`pretrained`, a file, or `seeded:<n>` (default: the model's own)."""
    dtype: str = "float32"
    """Number type of the stored tensors; masks and positions keep theirs."""
    amp: str = ""
    """Type of mixed precision, empty for none; auto is bfloat16 (float16 on mps). What is stored is
    of `dtype` in any case."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda, cuda:<n> or mps."""
    batch_size: int = 64
    """Items per forward pass (on a CPU fewer)."""
    keys: tuple[str, ...] = field(init=False)
    """What is stored, by the keys of feature files."""
    section: str = field(init=False)
    """Where a feature file's settings keep `recorded()`."""
    runs_on: torch.device = field(init=False)
    """The device."""
    _most: int = field(default=sys.maxsize, init=False)
    """Items at once that have been seen to fit in memory."""

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size)
        if self.amp:
            check_name("amp", self.amp, AMP_TYPES)
        resolve_dtype(self.dtype)
        self.runs_on = resolve_device(self.device)

    @abstractmethod
    def recorded(self) -> dict[str, Any]:
        """What decides the numbers; stored in the feature file."""

    def pieces(self, model: Callable[[Tensor], Result], items: Tensor) -> list[Result]:
        """What a model makes of items (B, ...), in order: of as many at once as fit in memory.

        Where they do not, half as many are tried, now and with all later batches.

        Raises:
            RuntimeError: even a single item does not fit, or something else went wrong.
        """
        results: list[Result] = []
        while len(items):
            some = items[: self._most]
            try:
                results.append(model(some))
                items = items[self._most :]
                continue
            except RuntimeError as error:
                if len(some) == 1 or not _NO_MEMORY.search(str(error)):
                    raise
            # Behind the except block, whose error holds on to the model's tensors.
            self._most = len(some) // 2
            found = f"{len(some)} {self.unit} at a time do not fit in the memory of {self.runs_on}"
            logger.warning("%s; going on with %d", found, self._most)
            if self.runs_on.type == "cuda":
                torch.cuda.empty_cache()
        return results

    @property
    def batch(self) -> int:
        """Items per forward pass on this device."""
        size = self.batch_size
        return min(size, self.cpu_batch) if self.runs_on.type == "cpu" else size

    @property
    def chunk_size(self) -> int:
        """Items of a chunk; whoever computes them, they are the same."""
        return self.batch

    def chunks(self, total: int) -> list[range]:
        """The positions of items whose results are made together, and become one file."""
        size = self.chunk_size
        return [range(start, min(start + size, total)) for start in range(0, total, size)]

    @cached_property
    @abstractmethod
    def models(self) -> Any:
        """The frozen models, on the device; loaded when first asked for."""

    @abstractmethod
    def items(self, collection: Collection) -> list[Any]:
        """Every item as JSON data that changes when its features would.

        Raises:
            FileNotFoundError: nothing is where it should be.
        """

    def fingerprint(self, items: Iterable[Any]) -> str:
        """Identifies items, and how they are divided into chunks."""
        digest = hashlib.sha256()
        for item in (self.chunk_size, *items):
            digest.update(f"{json.dumps(item)}\n".encode())
        return digest.hexdigest()

    @abstractmethod
    def results(self, collection: Collection, chunks: Sequence[range]) -> Iterator[Chunk]:
        """The results of chunks, given by the positions of their items, on the device."""

    def completed(self, features: FeatureFile, made: Chunk) -> FeatureFile:
        """The records of a collection with the results of all its items; failed images go.

        Older columns of the kind stay if they were made the same way.
        """
        if made.failures:
            kept = torch.ones(features.num_images, dtype=torch.bool)
            kept[list(made.failures)] = False
            features = features.select(kept.nonzero().flatten())
        kind = "image_features" if self.section == "vision" else "caption_features"
        held, settings = dict(getattr(features, kind)), features.settings
        alike = [key for key in held if (key == BERT_KEY) == (self.section == "bert")]
        older = [key for key in alike if key not in made.columns]
        if older and settings.get(self.section) != self.recorded():
            logger.warning(
                "%s of the input were made with other or unknown settings and are left out",
                ", ".join(older),
            )
            for key in older:
                del held[key]
        changed: dict[str, Any] = {kind: held | made.columns}
        changed["settings"] = {**settings, self.section: self.recorded()}
        return replace(features, **changed)


def fetched_behind(results: Iterable[Chunk], device: torch.device) -> Iterator[Chunk]:
    """Results with their columns in main memory; see `one_behind`."""

    def begun(result: Chunk) -> Callable[[], Chunk]:
        fetched, keys = Fetched(list(result.columns.values())), list(result.columns)
        return lambda: replace(result, columns=dict(zip(keys, fetched.read(), strict=True)))

    return one_behind(map(begun, results), device)


@dataclass(eq=False)
class Chunks:
    """The chunks of one split."""

    folder: Path
    """Theirs alone."""
    ranges: Sequence[range]
    """The positions of the items of every chunk."""

    def take_over(self, fingerprint: str, overwrite: bool = False) -> None:
        """Make the folder, or go on with the work in it.

        Args:
            fingerprint: identifies the input.
            overwrite: drop work on another input.

        Raises:
            ValueError: the folder holds work on another input.
        """
        known = self.folder / _INPUT
        if known.is_file() and known.read_text() != fingerprint:
            if not overwrite:
                raise ValueError(
                    f"{self.folder} holds unfinished work on another input (other images or "
                    "captions). Give that input again to go on, or pass --overwrite to start anew."
                )
            shutil.rmtree(self.folder)
        if not known.is_file():
            write_text(known, fingerprint)

    def finished(self) -> set[int]:
        """The numbers of the chunks that are there."""
        if (self.folder / _WHOLE).is_dir():
            return set(range(len(self.ranges)))
        # Listed: on a network's disk, a name once looked for in vain may stay unseen for a while.
        found = set()
        for path in self.folder.glob(_CHUNKS):
            # After a power cut, only a part of a file may be there.
            with suppress(OSError, SafetensorError), safetensors.safe_open(path, "pt"):
                found.add(int(path.stem.removeprefix("chunk")))
        return found

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
        with kept_in(self.folder):
            with unfinished.open("wb") as file:
                _write(file, safetensors.torch.save(columns, about))
            os.replace(unfinished, self._path(number))

    def check_room(self, number: int, finished: int) -> None:
        """Raise RuntimeError unless all chunks, and a copy of them, fit on the disk.

        Args:
            number: of a chunk that is written; others are taken to be as large.
            finished: how many are.
        """
        size = self._path(number).stat().st_size
        needed = size * (2 * len(self.ranges) - finished)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RuntimeError(
                f"{self.folder}: the features need {needed / 1e9:.3f} GB more while they are made, "
                f"half of it at the end, and {free / 1e9:.3f} GB are free. Make room, or choose "
                "another place for the output; an extraction takes less with fewer features or "
                "--dtype float16."
            )

    def together(self) -> Chunk:
        """All chunks as one, its rows mapped from disk; the single files go.

        Raises:
            RuntimeError: it could not be written.
        """
        whole = self.folder / _WHOLE
        with kept_in(self.folder):
            if not whole.is_dir():
                with atomic_path(whole) as temporary:
                    temporary.mkdir()
                    self._put_together(temporary)
            for number in range(len(self.ranges)):
                self._path(number).unlink(missing_ok=True)
        about = json.loads((whole / _ABOUT).read_text())
        columns = {
            key: torch.from_file(
                str(whole / key), shared=False, size=math.prod(shape), dtype=getattr(torch, dtype)
            ).view(shape)
            for key, (dtype, shape) in about["columns"].items()
        }
        failures = {int(position): why for position, why in about["failures"].items()}
        return Chunk(columns, failures, about["captions"])

    def _put_together(self, folder: Path) -> None:
        """Write for every key a file of the raw rows of all chunks, and what else they say."""
        count, failures, captions = 0, dict[str, str](), list[str]()
        kinds, files = dict[str, tuple[str, list[int]]](), dict[str, BinaryIO]()
        with ExitStack() as stack:
            for number, items in enumerate(self.ranges):
                with safetensors.safe_open(self._path(number), "pt") as chunk:
                    about = {key: json.loads(text) for key, text in chunk.metadata().items()}
                    columns = {key: chunk.get_tensor(key) for key in sorted(chunk.keys())}
                failures |= about["failures"]
                captions += about["captions"]
                count += len(items) - len(about["failures"])
                for key, rows in columns.items():
                    if key not in files:
                        files[key] = stack.enter_context((folder / key).open("wb"))
                    kinds[key] = str(rows.dtype).removeprefix("torch."), [count, *rows.shape[1:]]
                    _write(files[key], rows.view(torch.uint8).numpy().data.cast("B"))
        about = {"columns": kinds, "failures": failures, "captions": captions}
        (folder / _ABOUT).write_text(json.dumps(about))

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk{number:07d}.safetensors"


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Say of what cannot be written where the finished work is."""
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        raise RuntimeError(
            f"{folder}: could not write ({what}). What is finished is kept there; once there is "
            "room, run the same command again to go on."
        ) from error


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)
