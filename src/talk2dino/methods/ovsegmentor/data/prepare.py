"""Captions to a metafile: filter them, join the parts, pair them; and JSON lines to a csv.

The filter keeps captions that name an entity (the paper's CC12M to CC4M), in one csv per part. A
part that is there is complete, so an interrupted run goes on with the missing ones.
"""

import csv
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from talk2dino.files import (
    atomic_files,
    atomic_path,
    check_file,
    check_not_inputs,
    content_digest,
    is_unfinished,
    listed,
)
from talk2dino.methods.ovsegmentor.data.table import (
    CAPTION,
    ENTITY,
    IMAGE,
    PAIR_ENTITIES,
    PAIR_ROWS,
    EntityIndex,
    LeftOut,
    Table,
    open_table,
)
from talk2dino.methods.ovsegmentor.data.words import DICTIONARY, LEMMA_SOURCES, CaptionReader
from talk2dino.progress import Progress, silent
from talk2dino.textfiles import parse_json, read_json, refuse_packed

DAMAGED, UNNAMED = "damaged", "without an image"
MERGED = "cc12m_filtered_subset.csv"
"""Name of the joined metafile."""
PAIRS = 10
"""Partners per row."""
ROWS_AT_ONCE = 65_536
"""Rows drawn from one generator."""


def part_paths(folder: Path, parts: int) -> list[Path]:
    """The files that a filter writes, beside their records."""
    return [folder / f"cc12m_{i}.csv" for i in range(parts)]


def filter_captions(
    metafile: str | Path,
    folder: str | Path,
    parts: int = 8,
    lemmas: str = DICTIONARY,
    processes: int = 1,
    progress: Progress = silent,
    overwrite: bool = False,
    compat: bool = False,
) -> tuple[int, LeftOut]:
    """Write `cc12m_<i>.csv` with the columns image_id, caption and entity for every part.

    `entity` holds the words of the filter list that occur, each once, joined by commas.

    Args:
        metafile: a csv or tsv of images and captions, with or without a header.
        folder: receives the parts.
        parts: contiguous ones, with equally many rows.
        lemmas: source of singulars, as `find_lemmas` returned it.
        processes: parts filtered at the same time.
        progress: a bar that counts parts.
        overwrite: make parts again that are there; those too many go when all are made.
        compat: keep the captions that the published program keeps.

    Returns:
        How many captions were kept, and the others; their examples are damaged rows.

    Raises:
        ValueError: the input cannot be read, or a part there was made in another way.
    """
    table, folder = open_table(metafile), Path(folder)
    made_from = {"input": content_digest(table.path), "parts": parts, "lemmas": lemmas}
    made_from |= {"compat": True} if compat else {}
    paths = part_paths(folder, parts)
    check_not_inputs(paths, [metafile])
    missing = [i for i, path in enumerate(paths) if not _is_done(path, made_from, overwrite)]
    if missing:
        places = array("q", (place for place, _ in table.records()))
        rows = [len(places) * i // parts for i in range(parts + 1)]
        places.append(table.path.stat().st_size)
        jobs = [(i, paths[i], rows[i], places[rows[i]], places[rows[i + 1]]) for i in missing]
        work = partial(_filter_part, table, made_from)
        with progress(len(jobs), 0) as bar, ExitStack() as stack:
            done: Iterable[object] = map(work, jobs)
            if (count := min(processes, len(jobs))) > 1:  # the first error ends them all
                context = multiprocessing.get_context("spawn")
                pool = stack.enter_context(context.Pool(count, _end_with_the_parent))
                done = pool.imap(work, jobs)
            for _ in done:
                bar.update(1)
    if overwrite:
        _remove_surplus(folder, {*paths, Path(metafile)})
    kept, left_out = 0, LeftOut()
    for record in map(read_json, map(_record, paths)):
        kept += record["kept"]
        left_out.join(record["left_out"], record["damaged"])
    return kept, left_out


def _end_with_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    parent: Any = multiprocessing.parent_process()  # without this they would outlive a killed one
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _record(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_record(part: Path) -> dict[str, Any] | None:
    """What a part says it was made from, or None for a csv of other origin."""
    record = read_json(_record(part)) if _record(part).is_file() else None
    return record if isinstance(record, dict) and "made_from" in record else None


def _is_done(part: Path, made_from: dict[str, Any], overwrite: bool) -> bool:
    """Raises ValueError for a file that is not this part."""
    if not part.is_file() or is_unfinished(_record(part)):
        return False
    record = _read_record(part)
    if record is None or (record["made_from"] != made_from and not overwrite):
        raise ValueError(
            f"{part} was made from another input or with other settings. "
            "Choose another --dstdir, or remove the old parts."
        )
    return not overwrite


def _remove_surplus(folder: Path, kept: set[Path]) -> None:
    """Remove the parts of an earlier run that had more of them."""
    for record in folder.glob("cc12m_*.csv.json"):
        path = record.with_suffix("")
        if path not in kept and _read_record(path) is not None:
            path.unlink(missing_ok=True)  # the record last: a kill before that is seen
            record.unlink()


def _filter_part(
    table: Table, made_from: dict[str, Any], job: tuple[int, Path, int, int, int]
) -> None:
    """The job: number, file, first row, and the bytes between which the records begin."""
    number, path, first_row, *bounds = job
    kept, left_out = 0, LeftOut()
    reader = CaptionReader(LEMMA_SOURCES[made_from["lemmas"]], "compat" in made_from)
    with atomic_files(path.parent, path.name, _record(path).name) as folder:
        with _csv_writer(folder / path.name, (IMAGE, CAPTION, ENTITY)) as write:
            for row, (_, fields) in enumerate(table.records(*bounds), start=first_row):
                if damage := table.damage(fields):
                    left_out.add(f"row {row}", DAMAGED, damage)
                    continue
                named = table.named(fields)
                image, caption = named[IMAGE].strip(), named[CAPTION].strip()
                problem, entities = reader.look_at(caption) if image else (UNNAMED, [])
                if problem:
                    left_out.reasons[problem] += 1
                else:
                    kept += 1
                    write((image, caption, ",".join(entities)))
        record = {
            "made_from": made_from,
            "part": number,
            "kept": kept,
            "left_out": left_out.reasons,
            "damaged": left_out.examples,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (folder / _record(path).name).write_text(text, "utf-8")


@contextmanager
def _csv_writer(path: Path, header: Sequence[str]) -> Iterator[Callable[[Sequence[str]], object]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer.writerow


def list_parts(folder: str | Path) -> list[Path]:
    """The csv files of a folder whose names end with a number, in the order of the numbers.

    Raises:
        FileNotFoundError: there is no folder, or no such file in it.
        ValueError: they are not all parts of one filter run.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    numbered = [(re.search(r"\d+$", path.stem), path) for path in listed(folder, "*.csv")]
    parts = [path for _, path in sorted((int(n[0]), path) for n, path in numbered if n)]
    if not parts:
        raise FileNotFoundError(
            f"{folder} holds no .csv files to merge, called <name>_<number>.csv. Filter captions "
            "first."
        )
    for part in parts:
        check_file(part)
        if is_unfinished(_record(part)):
            raise ValueError(f"{part} is unfinished. Run the filter again to finish it.")
    runs = [record and (record["made_from"], record["part"]) for record in map(_read_record, parts)]
    made_from = next((run[0] for run in runs if run), {"parts": 0})
    if any(runs) and runs != [(made_from, number) for number in range(made_from["parts"])]:
        raise ValueError(
            f"{folder} does not hold the {made_from['parts']} parts of one run of the filter, and "
            f"them alone: {', '.join(part.name for part in parts[:8])}. Run the filter again to "
            "finish it, or move other files whose names end with a number elsewhere."
        )
    return parts


def merge(parts: Sequence[Path], out: Path, delete: bool = False) -> int:
    """Write the rows of all parts below one header; memory does not depend on their size.

    Args:
        parts: csv files with the same header.
        out: the file to write.
        delete: remove the parts and what is said about them when `out` is complete.

    Returns:
        The number of parts.

    Raises:
        ValueError: two parts have different headers.
    """
    with atomic_path(out) as temporary, temporary.open("wb") as target:
        header = b""
        for part in parts:
            with part.open("rb") as source:
                first = source.readline().rstrip(b"\r\n").removeprefix(BOM_UTF8)
                if first != (header or first):
                    raise ValueError(
                        f"{part} has the columns {first.decode('utf-8', 'replace')!r}, "
                        f"{parts[0]} has {header.decode('utf-8', 'replace')!r}"
                    )
                if not header:
                    target.write(first + b"\n")
                header = first
                target.writelines(line if line[-1:] == b"\n" else line + b"\n" for line in source)
    if delete:
        for part in parts:
            part.unlink()
            _record(part).unlink(missing_ok=True)
    return len(parts)


def make_pairs(metafile: str | Path, out: Path, seed: int = 0, progress: Progress = silent) -> int:
    """Write the metafile with ten partners for every row (section 3.3), for stage 2.

    For each of the ten, an entity of the row is drawn uniformly, then a row that has it. In memory:
    20 bytes per row and 20 per entity of a row, some 200 MB for the 4 million rows of the paper.

    Args:
        metafile: a csv with the columns image_id, caption and entity.
        out: the file to write, with the columns pairindex and pairentity added.
        seed: of the draw.
        progress: a bar that counts pieces of 65,536 rows.

    Returns:
        The number of rows.

    Raises:
        ValueError: no column `entity`, a row without entities, or a damaged row.
    """
    table, index = open_table(metafile), EntityIndex()
    if PAIR_ROWS in table.columns:
        raise ValueError(f"{table.path} has pairs already (column {PAIR_ROWS!r})")
    table.need(ENTITY)
    for row, (_, named) in enumerate(table.rows()):
        words = [word for piece in named[ENTITY].split(",") if (word := piece.strip())]
        if not words:
            table.fail(row, ENTITY, "names no entity. Filter the captions first.")
        index.add(dict.fromkeys(words))
    rows, words = len(index.counts), list(index.names)
    if not rows:
        raise ValueError(f"{table.path} holds no rows")
    index.sort()
    pieces = range(0, rows, ROWS_AT_ONCE)
    with (
        atomic_path(out) as temporary,
        _csv_writer(temporary, (*table.columns, PAIR_ROWS, PAIR_ENTITIES)) as write,
        progress(len(pieces), 0) as bar,
    ):
        records = table.records()
        for number, start in enumerate(pieces):
            drawn_for = np.arange(start, min(start + ROWS_AT_ONCE, rows))
            random = np.random.default_rng([seed, number])
            drawn = zip(*index.draw(random, drawn_for, PAIRS), strict=True)
            some = itertools.islice(records, len(drawn_for))
            for (_, fields), (codes, partners) in zip(some, drawn, strict=True):
                write([*fields, str(partners.tolist()), str([words[code] for code in codes])])
            bar.update(1)
    return rows


def json_to_csv(source: Path, out: Path) -> int:
    """Turn JSON lines `{"filename", "caption"}` into a csv with image_id and caption.

    Returns:
        How many rows were written.

    Raises:
        ValueError: a line is no such object; the message names it.
    """
    refuse_packed(source)
    rows = 0
    with (
        source.open("rb") as lines,
        atomic_path(out) as temporary,
        _csv_writer(temporary, (IMAGE, CAPTION)) as write,
    ):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{source}: line {number}"
            record: Any = parse_json(line, where)
            record = record if isinstance(record, dict) else {}
            fields = (record.get("filename", record.get(IMAGE)), record.get(CAPTION))
            if not all(isinstance(field, str) for field in fields):
                raise ValueError(f"{where} is no object with a 'filename' and a 'caption'")
            write(fields)
            rows += 1
    return rows
