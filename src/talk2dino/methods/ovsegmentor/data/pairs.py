"""Give every row of a metafile ten partners that share an entity, for stage 2 (section 3.3)."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from talk2dino.methods.ovsegmentor.data.metafile import (
    ENTITY,
    PAIR_ENTITIES,
    PAIR_ROWS,
    Table,
    open_table,
)
from talk2dino.methods.ovsegmentor.data.prepare import result
from talk2dino.methods.ovsegmentor.data.rows import EntityIndex
from talk2dino.progress import Progress, silent

PAIRS = 10
"""Partners per row."""
ROWS_AT_ONCE = 65_536
"""Rows drawn from one generator."""


def make_pairs(metafile: str | Path, out: Path, seed: int = 0, progress: Progress = silent) -> int:
    """Write the metafile with the columns pairindex and pairentity added.

    For each of the ten, an entity of the row is drawn uniformly, then a row that has it. In memory:
    20 bytes per row and 20 per entity of a row, some 200 MB for the 4 million rows of the paper.

    Args:
        metafile: a csv with the columns image_id, caption and entity.
        out: the file to write.
        seed: of the draw.
        progress: a bar that counts pieces of 65,536 rows.

    Returns:
        The number of rows.

    Raises:
        ValueError: no column `entity`, a row without entities, or a damaged row.
    """
    table = open_table(metafile)
    if PAIR_ROWS in table.columns:
        raise ValueError(f"{table.path} has pairs already (column {PAIR_ROWS!r})")
    index = EntityIndex.build(_entity_lists(table))
    rows = len(index.starts) - 1
    if not rows:
        raise ValueError(f"{table.path} holds no rows")
    pieces = range(0, rows, ROWS_AT_ONCE)
    made_from = {"metafile": str(metafile), "seed": seed, "rows": rows}
    with (
        result(out, made_from) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
        progress(len(pieces), 0) as bar,
    ):
        writer, records = csv.writer(file, lineterminator="\n"), table.records()
        writer.writerow([*table.columns, PAIR_ROWS, PAIR_ENTITIES])
        for number, start in enumerate(pieces):
            drawn_for = np.arange(start, min(start + ROWS_AT_ONCE, rows))
            random = np.random.default_rng([seed, number])
            codes, partners = index.draw(random, drawn_for, PAIRS)
            some = itertools.islice(records, len(drawn_for))
            for record, row_codes, row_partners in zip(some, codes, partners, strict=True):
                names = [index.names[code] for code in row_codes]
                writer.writerow([*table.fields(record), str(row_partners.tolist()), str(names)])
            bar.update(1)
    return rows


def _entity_lists(table: Table) -> Iterator[list[str]]:
    """The entities of every row."""
    column = table.column(ENTITY)
    for row, record in enumerate(table.records()):
        try:
            entities = split_entities(table.fields(record)[column])
        except ValueError as error:
            raise ValueError(f"{table.path}: row {row} {error}") from error
        if not entities:
            table.fail(row, ENTITY, "names no entity. Filter the captions first.")
        yield entities


def split_entities(text: str) -> list[str]:
    """The words of an entity column, each once."""
    return list(dict.fromkeys(word for piece in text.split(",") if (word := piece.strip())))
