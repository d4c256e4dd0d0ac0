"""One run of an extraction command: which files it makes, and where its unfinished work is kept.

The work folder `<first output>.parts` exists from the start to the end of a run. It holds the
settings, the finished chunks of the split at work, and `<split>.done` for every written split.
Several processes on one job share the folder: the first one makes and removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from talk2dino.features.chunks import Chunk, Chunks, holds_chunks, system_words
from talk2dino.features.shards import shard_paths, write_shards
from talk2dino.features.store import FeatureFile, write_features
from talk2dino.files import check_folder_writable, hold_lock, remove_folder, write_text
from talk2dino.processes import Processes
from talk2dino.progress import Progress

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Division:
    """How the input is divided into splits and they are numbered; flags of the same names."""

    n_in_splits: int = 1
    """Contiguous splits of the input, one output each."""
    in_batch_offset: int = 0
    """First split that is worked on."""
    job_id: int | None = None
    """The only split that is worked on (default: all from the first one on)."""
    out_offset: int = 0
    """Added to the number in `<stem>_<number>.pth`, or to the number of every shard."""
    n_shards: int = 0
    """Shards per split, where shards are written in place of a `.pth` file."""

    def __post_init__(self) -> None:
        if self.n_in_splits < 1 or self.n_shards < 0:
            raise ValueError("--n_in_splits and --n_shards must be at least 1")
        if not 0 <= self.in_batch_offset < self.n_in_splits:
            raise ValueError(
                f"--in_batch_offset {self.in_batch_offset}: with --n_in_splits "
                f"{self.n_in_splits} the splits are 0 to {self.n_in_splits - 1}"
            )
        if self.job_id is not None and not 0 <= self.job_id < self.n_in_splits:
            raise ValueError(
                f"--job_id {self.job_id}: with --num_jobs {self.n_in_splits} the jobs are 0 to "
                f"{self.n_in_splits - 1}"
            )
        if self.job_id is not None and self.in_batch_offset:
            raise ValueError("--in_batch_offset is the first of several splits, --job_id the only")
        if self.out_offset < 0:
            raise ValueError(f"--out_offset must not be negative, got {self.out_offset}")


@dataclass(frozen=True)
class Output:
    """The file, or the shards, that one split becomes."""

    split: int
    """Number of the split of the input."""
    num_splits: int
    """How many splits the input has."""
    files: tuple[Path, ...]
    """What is written."""
    layout: str | None = None
    """Layout of a `.pth`; None is that of the input. Without meaning for shards."""

    def write(self, features: FeatureFile, kept: Path) -> None:
        """Write everything, each file atomically.

        Args:
            features: the whole split.
            kept: where they are until then, for the message.

        Raises:
            RuntimeError: it could not be written; older files are untouched.
        """
        try:
            if self.files[0].suffix == ".tar":
                write_shards(features, self.files)
            else:
                layout = self.layout or features.layout or "columnar"
                write_features(features, self.files[0], layout)
        except OSError as error:
            raise RuntimeError(
                f"{self.files[0]}: could not write ({system_words(error)}). The features are kept "
                f"in {kept}; once there is room, run the same command again to go on."
            ) from error


def plan_outputs(path: Path, division: Division, layout: str | None = None) -> list[Output]:
    """The outputs of a run, in order.

    Args:
        path: the `.pth` file; or the folder of the shards.
        division: splits and numbers.
        layout: of `.pth` files; None for that of the input.
    """
    outputs = []
    splits = range(division.in_batch_offset, division.n_in_splits)
    for split in splits if division.job_id is None else (division.job_id,):
        if division.n_shards:
            first = division.out_offset + split * division.n_shards
            files = tuple(shard_paths(path, division.n_shards, first))
        elif division.n_in_splits == 1 and division.out_offset == 0:
            files = (path,)
        else:
            number = split + division.out_offset
            files = (path.with_name(f"{path.stem}_{number}{path.suffix}"),)
        outputs.append(Output(split, division.n_in_splits, files, layout))
    return outputs


def fingerprint(items: Iterable[Any]) -> str:
    """A short text that differs between inputs that differ in `items` (plain JSON data)."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done on one split."""

    fingerprint: str
    """Identifies the items and their order."""
    total: int
    """How many items there are."""
    batch_size: int
    """Items per batch."""
    prepare: Callable[[bool], object]
    """Called before the first batch, told whether nothing is done yet; loads the models."""
    batches: Callable[[Sequence[range]], Iterable[Chunk]]
    """The results of batches, which are given by the positions of their items."""
    order: Tensor | None = None
    """(total,) int64, the row of the item at each position; None if they are the same."""


class Job:
    """The work folder of a run.

    Args:
        outputs: what the run makes, at least one.
        settings: everything that decides the bytes of the outputs, as plain JSON data.
        overwrite: replace existing outputs; drop unfinished work made with other settings.
        in_place: the output is the input, which is completed and then replaced.
        leads: this is the only process or the first of several; the others touch no file before
            they have joined it.

    Used in a `with` block. The folder goes when the block is left without an error, or when there
    is no finished work in it.

    Attributes:
        folder: the work folder.
        overwrite: as given.
        resumed: an earlier run left finished work.
        processes: those that work on the job, once they have joined.

    Raises:
        FileExistsError: an output is there already.
        ValueError: the work folder was made with other settings.
        RuntimeError: another process is at work in it.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        settings: dict[str, Any],
        overwrite: bool = False,
        in_place: bool = False,
        leads: bool = True,
    ) -> None:
        self.outputs = list(outputs)
        first = self.outputs[0].files[0]
        self.folder = first.with_name(f"{first.name}.parts")
        self.overwrite = overwrite
        self.leads = leads
        self.processes = Processes()
        self.resumed = False
        self._lock: TextIO | None = None
        if leads:
            self._take_over_folder(json.loads(json.dumps(settings)), in_place)

    def _take_over_folder(self, settings: dict[str, Any], in_place: bool) -> None:
        check_folder_writable(self.folder.parent)
        known = _read_settings(self.folder / SETTINGS)
        differing = _differences(known, settings) if known is not None else ""
        if differing and not self.overwrite:
            raise ValueError(
                f"{self.folder} holds unfinished work with other settings ({differing}). Use the "
                "same settings to go on, or pass --overwrite to start anew."
            )
        if known is None and not self.overwrite and not in_place:
            self._check_absent()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = hold_lock(self.folder / "lock")
        self.resumed = known is not None and not differing and self._holds_work()
        if known is None or differing:
            self._clear()
            write_text(self.folder / SETTINGS, json.dumps(settings, indent=1))

    def join(self, processes: Processes) -> None:
        """Work on this job together with others; each calls this before anything else.

        Raises:
            RuntimeError: the environment names a rank, but this process has not that rank.
        """
        if self.leads != (processes.rank == 0):
            raise RuntimeError(
                f"RANK is {os.environ.get('RANK')!r}, but this is process {processes.rank} of "
                f"{processes.count}. Unset RANK, or start with python -m torch.distributed.run."
            )
        self.processes = processes
        self.resumed = processes.gather(self.resumed)[0]

    def pending(self) -> list[Output]:
        """The outputs that are not written yet."""
        return [output for output in self.outputs if not self._done(output).exists()]

    def collected(self, output: Output, work: Work, progress: Progress) -> Chunk | None:
        """Do what an earlier run has not done of `output`, and put all of it together.

        Every process works on chunks of its own. When one of them fails, the others end too.

        Returns:
            The finished rows; None in every process but the first.

        Raises:
            ValueError: an earlier run worked on another input.
            RuntimeError: rows could not be written, or another process has ended.
        """
        # What the first finds counts: times and places of the same pictures may differ elsewhere.
        chunks = self._chunks(output, work) if self.leads else None
        found = (work.fingerprint, chunks.finished()) if chunks else None
        fingerprint, finished = self._gather(found)[0]
        if chunks is None:
            folder = self.folder / _name(output)
            chunks = Chunks(folder, fingerprint, work.total, work.batch_size)
        self._work(chunks, finished, work, progress)
        self._gather(None)  # every chunk is there
        return chunks.together(work.order) if self.leads else None

    def _work(self, chunks: Chunks, finished: set[int], work: Work, progress: Progress) -> None:
        mine = chunks.numbers[self.processes.rank :: self.processes.count]
        left = [number for number in mine if number not in finished]
        if not left:
            return
        work.prepare(not finished)  # before the bar, whose rate is that of the work
        total = sum(len(chunks.items(number)) for number in mine)
        ahead = sum(len(chunks.items(number)) for number in left)
        with progress(total, total - ahead) as bar:
            results = work.batches([chunks.items(number) for number in left])
            for number, result in zip(left, results, strict=True):
                chunks.write(number, result)
                if number == left[0]:
                    chunks.check_room(number, len(finished) + 1)
                bar.update(len(chunks.items(number)))

    def _chunks(self, output: Output, work: Work) -> Chunks:
        """Where the first process finds, or makes, the work on an output."""
        folder = self.folder / _name(output)
        try:
            return Chunks(folder, work.fingerprint, work.total, work.batch_size)
        except ValueError:
            if not self.overwrite:
                raise
            shutil.rmtree(folder)
            return Chunks(folder, work.fingerprint, work.total, work.batch_size)

    def _gather(self, value: Any) -> list[Any]:
        try:
            return self.processes.gather(value)
        except RuntimeError as error:
            raise RuntimeError(
                "another process of this extraction has ended. What is finished is kept in "
                f"{self.folder}; run the same command again to go on."
            ) from error

    def finish(self, output: Output, failures: Sequence[str] = ()) -> None:
        """Note that `output` is written and what it lacks, and drop its chunks."""
        write_text(self._done(output), json.dumps(list(failures)))
        shutil.rmtree(self.folder / _name(output), ignore_errors=True)

    def discard(self, output: Output) -> None:
        """Drop the chunks of an output that nothing can be made of."""
        shutil.rmtree(self.folder / _name(output))

    def failures(self) -> list[str]:
        """What the written outputs lack, over all runs of this job.

        Every process calls this last, and waits until the first one has written everything.
        """
        done = [self._done(output) for output in self.outputs] if self.leads else []
        lines = [line for path in done if path.is_file() for line in json.loads(path.read_text())]
        return self.processes.gather(lines)[0]

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.leads:
            return
        # After an error, others may still be about to see it there.
        if kind is None or (self.processes.count == 1 and not self._holds_work()):
            remove_folder(self.folder)  # a kill before that leaves a job that is known to be done
        if self._lock:
            self._lock.close()

    def _holds_work(self) -> bool:
        begun = any(map(holds_chunks, self.folder.glob("split*/")))
        return begun or any(self.folder.glob("*.done"))

    def _done(self, output: Output) -> Path:
        return self.folder / f"{_name(output)}.done"

    def _check_absent(self) -> None:
        for output in self.outputs:
            for path in output.files:
                if path.exists():
                    raise FileExistsError(
                        f"{path} exists already. Choose another name or pass --overwrite."
                    )

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


def _name(output: Output) -> str:
    return f"split{output.split:05d}"


def _read_settings(path: Path) -> dict[str, Any] | None:
    """Settings of unfinished work; None if there is none (they are written before any work)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged. Delete the folder {path.parent}.") from error


def _differences(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    return "; ".join(
        f"{key}: {known.get(key)} there, {wanted.get(key)} asked for"
        for key in sorted(known.keys() | wanted.keys())
        if known.get(key) != wanted.get(key)
    )
