"""One run of an extraction: what it reads, what it makes, and where its unfinished work is kept.

The work folder `<first output>.parts` exists from the start to the end of a run. It holds the
settings, the finished chunks of the split at work, and `<split>.done` for every written split.
Several processes on one job share the folder: the first one makes and removes it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from talk2dino.config import check_at_least, differences, first_few
from talk2dino.features.captions import CaptionInput, Collection
from talk2dino.features.chunks import FINISHED, Chunks, Extraction, fetched_behind, kept_in
from talk2dino.features.store import FeatureFile, write_features
from talk2dino.features.tars import shard_paths, write_shards
from talk2dino.files import (
    check_folder_writable,
    check_not_inputs,
    content_digest,
    hold_lock,
    remove_folder,
    write_text,
)
from talk2dino.processes import Processes, is_first_process
from talk2dino.progress import Progress, silent
from talk2dino.textfiles import read_json

SETTINGS = "settings.json"


DIVISION = ("n_in_splits", "in_batch_offset", "job_id", "out_offset", "n_shards")
"""Fields of a job that say how its input is divided into splits, and how these are numbered."""


@dataclass(eq=False)
class Job:
    """One run, used in a `with` block; most of its fields are flags of the commands.

    The work folder goes when the block is left without an error, or when there is no finished
    work in it.

    Raises:
        FileExistsError: an output is there already.
        ValueError: the work folder was made with other settings; an output is an input; or numbers
            of splits that cannot be.
        RuntimeError: another process is at work in it.
    """

    data: CaptionInput
    """What is read."""
    extraction: Extraction
    """What makes the features."""
    path: Path
    """The `.pth` file; or the folder of the shards."""
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
    layout: str | None = None
    """Of a .pth: ours or the published one (default: that of the input)."""
    overwrite: bool = False
    """Replace what is there, and drop unfinished work made with other settings."""
    max_failures: int = 0
    """With more unreadable images than this the exit code is 1 (the rest is written), and a file
    that is completed in place is left as it was."""
    every: bool = False
    """The first item that cannot be read ends the run; what is finished is kept."""
    processes: Processes = field(default_factory=Processes, init=False)
    """Those that work on the job, once they have joined."""
    resumed: bool = field(default=False, init=False)
    """An earlier run left finished work."""
    _lock: TextIO | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_at_least(1, n_in_splits=self.n_in_splits)
        check_at_least(0, n_shards=self.n_shards, out_offset=self.out_offset)
        numbers = {"--in_batch_offset": self.in_batch_offset, "--job_id": self.job_id}
        for flag, number in numbers.items():
            if number is not None and not 0 <= number < self.n_in_splits:
                raise ValueError(
                    f"{flag} {number}: with {self.n_in_splits} splits (--num_jobs or "
                    f"--n_in_splits) they are 0 to {self.n_in_splits - 1}"
                )
        if self.job_id is not None and self.in_batch_offset:
            raise ValueError("--in_batch_offset is the first of several splits, --job_id the only")
        all_of_them = range(self.in_batch_offset, self.n_in_splits)
        splits = all_of_them if self.job_id is None else (self.job_id,)
        self.outputs = {split: self._files(split) for split in splits}
        """Split -> the files that it becomes."""
        files = [path for written in self.outputs.values() for path in written]
        check_not_inputs(files, [self.extraction.weights, *self.data.tars])
        self.folder = files[0].with_name(f"{files[0].name}.parts")
        """The work folder."""
        self.in_place = self.data.path.resolve() == files[0].resolve()
        self.keeps = self.in_place and self.extraction.completes_input and not self.overwrite
        self.leads = is_first_process()
        """This is the only process or the first of several; the others touch no file before they
        have joined it."""
        if self.leads:
            self._take_over_folder(files)

    def _decisive(self) -> dict[str, Any]:
        """Everything that decides the bytes of the outputs, as plain JSON data."""
        made = self.extraction
        decisive = {
            **{entry.name: getattr(made, entry.name) for entry in fields(made) if entry.init},
            **made.recorded(),
            "weights_digest": content_digest(made.weights),
            "ann_path": str(self.data.path.resolve()),
            "device": made.runs_on.type,
            "batch_size": made.batch,
            **{name: getattr(self, name) for name in ("layout", *DIVISION)},
        }
        decisive.pop("workers", None)
        return json.loads(json.dumps(decisive))

    def _files(self, split: int) -> list[Path]:
        if self.n_shards:
            return shard_paths(self.path, self.n_shards, self.out_offset + split * self.n_shards)
        if self.n_in_splits == 1 and self.out_offset == 0:
            return [self.path]
        name = f"{self.path.stem}_{split + self.out_offset}{self.path.suffix}"
        return [self.path.with_name(name)]

    def _take_over_folder(self, files: list[Path]) -> None:
        check_folder_writable(self.folder.parent)
        kept, wanted = self.folder / SETTINGS, self._decisive()  # written before any work
        known = read_json(kept, f"Delete the folder {self.folder}") if kept.exists() else None
        differing = "" if known is None else differences(known, wanted)
        if differing and not self.overwrite:
            raise ValueError(
                f"{self.folder} holds unfinished work with other settings ({differing}). Use the "
                "same settings to go on, or pass --overwrite to start anew."
            )
        existing = [path for path in files if path.exists()]
        if existing and known is None and not (self.overwrite or self.keeps):
            raise FileExistsError(
                f"{existing[0]} exists already. Choose another name or pass --overwrite."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = hold_lock(self.folder / "lock")
        self.resumed = known is not None and not differing and self._holds_work()
        if known is None or differing:
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
            write_text(kept, json.dumps(wanted, indent=1))

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
        self.extraction.runs_on = processes.device(self.extraction.runs_on)
        self.resumed = processes.gather(self.resumed)[0]

    def pending(self) -> list[int]:
        """The splits that are not written yet."""
        return [split for split in self.outputs if not self._done(split).exists()]

    def make(self, split: int, progress: Progress = silent) -> FeatureFile | None:
        """Do what an earlier run has not done of a split, and write what it becomes.

        Every process works on chunks of its own. When one of them fails, the others end too. Items
        that fail are left out with what belongs to them, and noted.

        Returns:
            What was written; None in every process but the first.

        Raises:
            FileNotFoundError, ValueError: there is nothing to work on, or nothing to add; an
                earlier run worked on another input.
            RuntimeError: every item failed, or too many in place; something could not be written;
                another process has ended.
        """
        collection = self.data.split(split, self.n_in_splits)
        if self.keeps and not self.resumed:
            _check_new(collection.features, self.extraction, self.data.path)
        chunks = self._computed(split, collection, progress)
        if not self.leads:
            return None
        made = chunks.together()
        failures = list(dict(sorted(made.failures.items())).values())
        unit, total = self.extraction.unit, sum(map(len, chunks.ranges))
        if len(failures) == total:
            shutil.rmtree(chunks.folder)
            raise RuntimeError(f"none of the {total} {unit} could be read; {failures[0]}")
        if self.in_place and len(failures) > self.max_failures:
            raise RuntimeError(
                f"{len(failures)} of {total} {unit} could not be read ({failures[0]}), and "
                f"{self.data.path} would lose them. It is left as it was. Run again with "
                f"--max_failures {len(failures)} to accept that."
            )
        if self.keeps:
            for key in collection.features.caption_features:
                made.columns.pop(key, None)
        features = self.extraction.completed(collection.features, made)
        files = self.outputs[split]
        with kept_in(self.folder):
            if self.n_shards:
                write_shards(features, files)
            else:
                write_features(features, files[0], self.layout or features.layout or "columnar")
        write_text(self._done(split), json.dumps(failures))
        shutil.rmtree(chunks.folder, ignore_errors=True)
        return features

    def _computed(self, split: int, collection: Collection, progress: Progress) -> Chunks:
        """The chunks of a split, all of which are there."""
        items = self.extraction.items(collection)
        if not items:
            raise ValueError(f"{self.data.path} holds no {self.extraction.unit}")
        ranges, finished = self.extraction.chunks(len(items)), set[int]()
        chunks = Chunks(self._done(split).with_suffix(""), ranges)
        if self.leads:  # what it finds counts: times and places of pictures may differ elsewhere
            chunks.take_over(self.extraction.fingerprint(items), self.overwrite)
            finished = chunks.finished()
        finished = self._gather(finished)[0]
        mine = range(len(ranges))[self.processes.rank :: self.processes.count]
        left = [number for number in mine if number not in finished]
        total, ahead = (sum(len(ranges[n]) for n in some) for some in (mine, left))
        if left:
            _ = self.extraction.models  # before the bar, whose rate is that of the work
            with progress(total, total - ahead) as bar:
                results = self.extraction.results(collection, [ranges[n] for n in left])
                fetched = fetched_behind(results, self.extraction.runs_on)
                for number, result in zip(left, fetched, strict=True):
                    if result.failures and self.every:
                        raise ValueError(
                            f"{first_few(result.failures.values())} dino_extraction_v2.py leaves "
                            "such images out: extract the features first."
                        )
                    chunks.write(number, result)
                    if number == left[0]:
                        chunks.check_room(number, len(finished) + 1)
                    bar.update(len(ranges[number]))
        self._gather(None)  # every chunk is there
        return chunks

    def _gather(self, value: Any) -> list[Any]:
        try:
            return self.processes.gather(value)
        except RuntimeError as error:
            raise RuntimeError(
                "another process of this extraction has ended. What is finished is kept in "
                f"{self.folder}; run the same command again to go on."
            ) from error

    def failures(self) -> list[str]:
        """What the written outputs lack, over all runs of this job.

        Every process calls this last, and waits until the first one has written everything.
        """
        done = [self._done(split) for split in self.outputs] if self.leads else []
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
        finished = ("*.done", *(f"split*/{name}" for name in FINISHED))
        return any(path for pattern in finished for path in self.folder.glob(pattern))

    def _done(self, split: int) -> Path:
        return self.folder / f"split{split:05d}.done"


def is_complete(path: Path) -> bool:
    """Whether a job has written its only output, and ended."""
    return path.exists() and not path.with_name(f"{path.name}.parts").exists()


def _check_new(features: FeatureFile, made: Extraction, path: Path) -> None:
    """Raise ValueError unless a file that keeps what it has can be completed."""
    held = [key for key in made.keys if key in features.caption_features]
    if held and features.settings.get(made.section) != made.recorded():
        raise ValueError(
            f"{path} already holds {', '.join(held)}, made with other or unknown settings. "
            "Pass --overwrite to replace them, or --out_path to write another file."
        )
    if len(held) == len(made.keys):
        raise ValueError(
            f"{path} already holds {', '.join(held)}, made with the same settings. "
            "Pass --overwrite to compute them again."
        )
