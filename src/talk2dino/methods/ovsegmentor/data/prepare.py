"""Captions to a metafile: filter them, join the parts, and turn JSON lines into a csv.

The filter keeps captions that name an entity (the paper's CC12M to CC4M), in one csv per part. A
part that is there is complete, so an interrupted run goes on with the missing ones. Memory does
not depend on the file: every process holds one row.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from talk2dino.files import (
    atomic_files,
    check_file,
    check_not_inputs,
    content_digest,
    is_unfinished,
    listed,
)
from talk2dino.methods.ovsegmentor.data.metafile import (
    CAPTION,
    ENTITY,
    IMAGE,
    Table,
    open_table,
)
from talk2dino.methods.ovsegmentor.data.words import NO_ENTITY, CaptionReader, get_lemma
from talk2dino.progress import Progress, silent
from talk2dino.textfiles import parse_json, read_json, refuse_packed

Job = TypeVar("Job")


def run_jobs(
    work: Callable[[Job], object],
    jobs: Sequence[Job],
    processes: int,
    progress: Progress = silent,
) -> None:
    """`work(job)` for each of the jobs, some at a time.

    Args:
        work: a function of a module; it and the jobs are pickled.
        jobs: what to do.
        processes: at most this many; with 1 everything happens in this process.
        progress: a bar that counts jobs.

    Raises:
        Whatever the first job that fails raises; jobs not yet begun are given up.
    """
    with progress(len(jobs), 0) as bar, ExitStack() as stack:
        done: Iterable[object] = map(work, jobs)
        if min(processes, len(jobs)) > 1:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(processes, context, initializer=_end_with_the_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(work, jobs)
        for _ in done:
            bar.update(1)


def _end_with_the_parent() -> None:
    """Without this, workers of a killed process would wait for work for ever."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # the parent reports the interruption
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


KEPT, DAMAGED, UNNAMED = "kept", "damaged", "without an image"
_SHOWN = 5


@dataclass(frozen=True)
class FilterSettings:
    """What decides the content of the parts, besides the input."""

    parts: int = 8
    """Contiguous parts the input is cut into; each is filtered by one process at a time."""
    compat: bool = False
    """Match words exactly and in their letter case, as the published program does."""
    lemmas: str = "lemminflect"
    """Source of lemmas, as `find_lemmas` returned it; not used under `compat`."""
    header: str = "auto"
    """Whether the input has a header: auto, yes or no."""

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(f"there must be at least 1 part, got {self.parts}")


@dataclass
class FilterCounts:
    """What happened to the rows of the input."""

    rows: Counter[str] = field(default_factory=Counter)
    """KEPT, or why a row was left out, -> number of rows."""
    damaged: list[str] = field(default_factory=list)
    """The first damaged rows, and why."""

    def add(self, other: FilterCounts) -> None:
        """Count what another part did."""
        self.rows.update(other.rows)
        self.damaged = (self.damaged + other.damaged)[:_SHOWN]


def filter_captions(
    metafile: str | Path,
    folder: str | Path,
    settings: FilterSettings,
    processes: int = 1,
    progress: Progress = silent,
    overwrite: bool = False,
) -> FilterCounts:
    """Write `cc12m_<i>.csv` with the columns image_id, caption and entity for every part.

    `entity` holds the words of the filter list that occur, each once, joined by commas. Beside each
    part, `cc12m_<i>.csv.json` says what it was made from, and how many rows were left out.

    Args:
        metafile: a csv or tsv of images and captions, with or without a header.
        folder: receives the parts.
        settings: see there.
        processes: parts filtered at the same time.
        progress: a bar that counts parts.
        overwrite: make parts again that are there; those too many go when all are made.

    Raises:
        ValueError: the input cannot be read, or a part there was made in another way.
    """
    table = open_table(metafile, settings.header)
    made_from = {"input": content_digest(table.path), **asdict(settings)}
    folder = Path(folder)
    paths = part_paths(folder, settings.parts)
    check_not_inputs(paths, [metafile])
    todo = [_Part(path, i, made_from, table) for i, path in enumerate(paths)]
    missing = [part for part in todo if not _is_done(part, overwrite)]
    if missing:
        bounds = _boundaries(table, settings.parts)
        run_jobs(_filter_part, [_bounded(part, bounds) for part in missing], processes, progress)
    if overwrite:
        _remove_surplus(folder, {*paths, Path(metafile)})
    counts = FilterCounts()
    for part in todo:
        record = read_json(_record_path(part.path))
        counts.add(FilterCounts(Counter(record["rows"]), record["damaged"]))
    return counts


def part_paths(folder: Path, parts: int) -> list[Path]:
    """The files that a filter writes, beside their records."""
    return [folder / f"cc12m_{i}.csv" for i in range(parts)]


def read_record(part: Path) -> dict[str, Any] | None:
    """What a part says it was made from, or None for a csv of other origin."""
    path = _record_path(part)
    record = read_json(path) if path.is_file() else None
    return record if isinstance(record, dict) and "made_from" in record else None


@dataclass(frozen=True)
class _Part:
    path: Path
    number: int
    made_from: dict[str, Any]
    table: Table
    start: int = 0
    stop: int = 0
    first_row: int = 0


def _is_done(part: _Part, overwrite: bool) -> bool:
    """Raises ValueError for a file that is not this part."""
    if not part.path.is_file() or is_unfinished(_record_path(part.path)):
        return False
    record = read_record(part.path)
    if record is not None and overwrite:
        return False
    if record is None or record["made_from"] != part.made_from:
        raise ValueError(
            f"{part.path} was made from another input or with other settings. "
            "Choose another --dstdir, or remove the old parts."
        )
    return True


def _remove_surplus(folder: Path, kept: set[Path]) -> None:
    """Remove the parts of an earlier run that had more of them."""
    for record in folder.glob("cc12m_*.csv.json"):
        path = record.with_suffix("")
        if path not in kept and read_record(path) is not None:
            path.unlink(missing_ok=True)  # the record last: a kill before that is seen
            record.unlink()


def _boundaries(table: Table, parts: int) -> list[tuple[int, int]]:
    """(byte, row) where each part begins, and the end: parts of nearly the same size in bytes."""
    size = table.path.stat().st_size
    bounds = [(table.start, 0)]
    row = 0
    for record in table.records():
        while len(bounds) < parts and record.offset >= table.start + (
            (size - table.start) * len(bounds) // parts
        ):
            bounds.append((record.offset, row))
        row += 1
    return bounds + [(size, row)] * (parts + 1 - len(bounds))


def _bounded(part: _Part, bounds: list[tuple[int, int]]) -> _Part:
    (start, row), (stop, _) = bounds[part.number], bounds[part.number + 1]
    return replace(part, start=start, stop=stop, first_row=row)


def _filter_part(part: _Part) -> None:
    settings = part.made_from
    reader = CaptionReader(get_lemma(settings["lemmas"]), settings["compat"])
    counts = FilterCounts()
    record_path = _record_path(part.path)
    with atomic_files(part.path.parent, part.path.name, record_path.name) as folder:
        with (folder / part.path.name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((IMAGE, CAPTION, ENTITY))
            _write_rows(part, reader, writer, counts)
        record = {
            "made_from": part.made_from,
            "part": part.number,
            "rows": dict(counts.rows),
            "damaged": counts.damaged,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (folder / record_path.name).write_text(text, "utf-8")


def _write_rows(part: _Part, reader: CaptionReader, writer: Any, counts: FilterCounts) -> None:
    table = part.table
    image_column, caption_column = table.column(IMAGE), table.column(CAPTION)
    for row, record in enumerate(table.records(part.start, part.stop), start=part.first_row):
        try:
            fields = table.fields(record)
        except ValueError as error:
            counts.rows[DAMAGED] += 1
            counts.damaged = [*counts.damaged, f"row {row} {error}"][:_SHOWN]
            continue
        image, caption = fields[image_column].strip(), fields[caption_column].strip()
        problem = reader.problem(caption, need_entity=False) if image else UNNAMED
        entities = [] if problem else reader.entities(caption)
        counts.rows[problem or (KEPT if entities else NO_ENTITY)] += 1
        if entities:
            writer.writerow((image, caption, ",".join(entities)))


def _record_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


MERGED = "cc12m_filtered_subset.csv"
"""Name of the joined metafile."""


def list_parts(folder: str | Path) -> list[Path]:
    """The csv files of a folder, but results, in the order of the numbers in their names.

    Raises:
        FileNotFoundError: there is no folder, or no csv file in it.
        ValueError: parts of one filter run are missing, unfinished, or among other files.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    parts = [path for path in listed(folder, "*.csv") if not made(path).exists()]
    for part in parts:
        check_file(part)
    if not parts:
        raise FileNotFoundError(f"{folder} holds no .csv files to merge. Filter captions first.")
    parts.sort(key=_natural)
    _check_complete(parts)
    return parts


def made(out: Path) -> Path:
    """The file beside a result that says what it was made from."""
    return out.with_name(f"{out.name}.made.json")


@contextmanager
def result(out: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """Where to write `out`; with what it was made from, which may be completed meanwhile."""
    with atomic_files(out.parent, out.name, made(out).name) as folder:
        yield folder / out.name
        text = json.dumps(made_from, indent=1) + "\n"
        (folder / made(out).name).write_text(text, encoding="utf-8")


def merge(parts: Sequence[Path], out: Path, delete: bool = False) -> None:
    """Write the rows of all parts below one header; memory does not depend on their size.

    Args:
        parts: csv files with the same header.
        out: the file to write.
        delete: remove the parts and what is said about them when `out` is complete.

    Raises:
        ValueError: two parts have different headers.
    """
    made_from = {"parts": [part.name for part in parts]}
    with result(out, made_from) as temporary, temporary.open("wb") as target:
        header = b""
        for part in parts:
            with part.open("rb") as source:
                first = source.readline().rstrip(b"\r\n").removeprefix(BOM_UTF8)
                header = header or first
                if first != header:
                    raise ValueError(
                        f"{part} has the columns {first.decode('utf-8', 'replace')!r}, "
                        f"{parts[0]} has {header.decode('utf-8', 'replace')!r}"
                    )
                if part is parts[0]:
                    target.write(header + b"\n")
                shutil.copyfileobj(source, target)
                source.seek(-1, os.SEEK_CUR)
                if source.read(1) != b"\n":
                    target.write(b"\n")
    if delete:
        for part in parts:
            part.unlink()
            part.with_name(part.name + ".json").unlink(missing_ok=True)


def json_to_csv(source: Path, out: Path) -> int:
    """Turn JSON lines `{"filename", "caption"}` into a csv with image_id and caption.

    Returns:
        How many rows were written.

    Raises:
        ValueError: a line is no such object; the message names it.
    """
    refuse_packed(source)
    rows = 0
    made_from: dict[str, Any] = {"metafile": str(source)}
    with (
        source.open("rb") as lines,
        result(out, made_from) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((IMAGE, CAPTION))
        for number, line in enumerate(lines, start=1):
            if line.strip():
                writer.writerow(_json_fields(line, f"{source}: line {number}"))
                rows += 1
        made_from["rows"] = rows
    return rows


def _json_fields(line: bytes, where: str) -> tuple[str, str]:
    record: Any = parse_json(line, where)
    if isinstance(record, dict):
        image, caption = record.get("filename", record.get(IMAGE)), record.get(CAPTION)
        if isinstance(image, str) and isinstance(caption, str):
            return image, caption
    raise ValueError(f"{where} is no object with a 'filename' and a 'caption'")


def _natural(path: Path) -> list[tuple[int, str]]:
    """cc12m_2 before cc12m_10, so that rows keep the order of the input."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in pieces]


def _check_complete(parts: Sequence[Path]) -> None:
    """Parts that know which of how many they are must all be there, from one input."""
    records = [record for part in parts if (record := read_record(part))]
    for part in parts:
        if is_unfinished(part.with_name(part.name + ".json")):
            raise ValueError(f"{part} is unfinished. Run the filter again to finish it.")
        if records and read_record(part) is None:
            raise ValueError(f"{part} is no part of the filter run beside it. Move it elsewhere.")
    if not records:
        return
    made_from = records[0]["made_from"]
    if any(record["made_from"] != made_from for record in records):
        raise ValueError(
            f"{parts[0].parent} holds parts of different filter runs. Keep those of one."
        )
    found = {record["part"] for record in records}
    missing = [number for number in range(made_from["parts"]) if number not in found]
    if missing:
        names = ", ".join(f"cc12m_{number}.csv" for number in missing[:5])
        raise ValueError(
            f"{parts[0].parent} holds {len(found)} of {made_from['parts']} parts; missing: "
            f"{names}. Run the filter again to finish it."
        )
