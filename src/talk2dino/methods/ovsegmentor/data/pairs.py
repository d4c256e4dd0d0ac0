"""Give every row of a metafile ten partners that share an entity, for stage 2 (section 3.3).

Which partners depends on the seed and the row only: not on the number of processes, nor on how
often the run was interrupted. Parts wait in a folder beside the result until all are there.
"""

from __future__ import annotations

import itertools
import json
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talk2dino.files import atomic_path, content_digest, remove_folder
from talk2dino.methods.ovsegmentor.data.filter import run_jobs
from talk2dino.methods.ovsegmentor.data.merge import result
from talk2dino.methods.ovsegmentor.data.metafile import (
    ENTITY,
    PAIR_ENTITIES,
    PAIR_ROWS,
    Table,
    TableWriter,
    open_table,
)
from talk2dino.methods.ovsegmentor.data.rows import EntityIndex
from talk2dino.progress import Progress, silent

PAIRS = 10
"""Partners per row."""
ROWS_PER_PART = 65_536
"""Rows drawn from one generator and written by one job."""


def make_pairs(
    metafile: str | Path,
    out: Path,
    seed: int = 0,
    processes: int = 1,
    progress: Progress = silent,
) -> int:
    """Write the metafile with the columns pairindex and pairentity added.

    For each of the ten, an entity of the row is drawn uniformly, then a row that has it. In memory:
    20 bytes per row and 20 per entity of a row, some 200 MB for the 4 million rows of the paper.

    Args:
        metafile: a csv with the columns image_id, caption and entity.
        out: the file to write.
        seed: of the draw.
        processes: parts written at the same time.
        progress: a bar that counts parts.

    Returns:
        The number of rows.

    Raises:
        ValueError: no column `entity`, a row without entities, or a damaged row.
    """
    table = _without_pairs(open_table(metafile))
    work = _work_folder(out, {"input": content_digest(table.path), "seed": seed})
    offsets = array("q")
    EntityIndex.build(_entity_lists(table, offsets)).save(work)
    rows = len(offsets)
    if not rows:
        raise ValueError(f"{table.path} holds no rows")
    parts = [
        _Part(work / f"{start:012d}.csv", table, seed, start, offsets[start])
        for start in range(0, rows, ROWS_PER_PART)
    ]
    run_jobs(_write_part, [p for p in parts if not p.path.is_file()], processes, progress)
    made_from = {"metafile": str(metafile), "seed": seed, "rows": rows}
    with result(out, made_from) as temporary, temporary.open("w+b") as target:
        for part in parts:
            with part.path.open("rb") as source:
                shutil.copyfileobj(source, target)
        remove_folder(work)  # before the result is there, so that a kill leaves none of it
    return rows


@dataclass(frozen=True)
class _Part:
    path: Path
    table: Table
    seed: int
    first_row: int
    offset: int


def _without_pairs(table: Table) -> Table:
    """Raises ValueError unless pairs can be added."""
    table.column(ENTITY)
    if PAIR_ROWS in table.columns:
        raise ValueError(f"{table.path} has pairs already (column {PAIR_ROWS!r})")
    return table


def _work_folder(out: Path, settings: dict[str, object]) -> Path:
    """The folder for parts; parts of other settings are removed from it."""
    work = out.with_name(f".{out.name}.parts")
    record = work / "settings.json"
    if work.is_dir() and not (record.is_file() and json.loads(record.read_text()) == settings):
        remove_folder(work)
    work.mkdir(parents=True, exist_ok=True)
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(settings))
    return work


def _entity_lists(table: Table, offsets: array[int]) -> Iterator[list[str]]:
    """The entities of every row; also notes where each row begins."""
    column = table.column(ENTITY)
    for row, record in enumerate(table.records()):
        try:
            entities = split_entities(table.fields(record)[column])
        except ValueError as error:
            raise ValueError(f"{table.path}: row {row} {error}") from error
        if not entities:
            table.fail(row, ENTITY, "names no entity. Filter the captions first.")
        offsets.append(record.offset)
        yield entities


def split_entities(text: str) -> list[str]:
    """The words of an entity column, each once."""
    return list(dict.fromkeys(word for piece in text.split(",") if (word := piece.strip())))


def _write_part(part: _Part) -> None:
    index = EntityIndex.load(part.path.parent)
    rows = np.arange(part.first_row, min(part.first_row + ROWS_PER_PART, len(index.starts) - 1))
    random = np.random.default_rng([part.seed, part.first_row // ROWS_PER_PART])
    codes, partners = index.draw(random, rows, PAIRS)
    table = part.table
    records = itertools.islice(table.records(part.offset), len(rows))
    with (
        atomic_path(part.path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = TableWriter(file)
        if part.first_row == 0:
            writer.write([*table.columns, PAIR_ROWS, PAIR_ENTITIES])
        for record, row_codes, row_partners in zip(records, codes, partners, strict=True):
            names = [index.names[code] for code in row_codes]
            fields = [*table.fields(record), str(row_partners.tolist()), str(names)]
            writer.write(fields)
