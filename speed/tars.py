"""Opening ten million samples in a thousand tars, whose index is kept: time and memory."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speed.case import SHIPPED, Case, Step

if TYPE_CHECKING:
    from talk2dino.methods.ovsegmentor.data.words import CaptionReader

TARS, SAMPLES, ENTITIES = 1000, 10_000, 100
BATCH = 256
_LARGE = 2**26  # bytes of a tar, nearly all of which are a hole


def _inputs(folder: Path) -> None:
    """Tars without pixels, and for each the index of as many samples as one of CC12M has."""
    from talk2dino.methods.ovsegmentor.data.rows import TarIndex, cache_place, keep

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    random = np.random.default_rng(0)
    counts = random.integers(1, 3, SAMPLES).astype(np.int32)
    index: TarIndex = {
        "places": np.cumsum(np.full((SAMPLES, 5), 1536), axis=0),
        "usable": np.arange(SAMPLES),
        "counts": counts,
        "codes": random.integers(0, ENTITIES, int(counts.sum())).astype(np.int32),
        "names": np.array([f"entity{number}" for number in range(ENTITIES)]),
        "left_out": np.array("[{}, []]"),
    }
    (folder / "tars").mkdir()
    for number in range(TARS):
        path = folder / "tars" / f"{number:05d}.tar"
        tarfile.open(path, "w").close()
        os.truncate(path, _LARGE)
        keep(index, cache_place(path, _reader(), True))


def _reader() -> CaptionReader:
    from talk2dino.methods.ovsegmentor.data.words import CaptionReader as Reader
    from talk2dino.methods.ovsegmentor.data.words import dictionary_lemma

    return Reader(dictionary_lemma)


def _shipped(device: str, folder: Path) -> Step:
    """Up to the places of the first batch's images and of their partners'."""
    from talk2dino.methods.ovsegmentor.data.rows import TarRows
    from talk2dino.methods.ovsegmentor.data.samples import EpochBatches

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def step() -> None:
        rows, random = TarRows(folder / "tars", _reader(), True), np.random.default_rng(0)
        assert len(rows.usable) == TARS * SAMPLES
        for _, number in next(iter(EpochBatches(rows.usable, BATCH))):
            row = int(rows.usable[number])
            rows.image(row)
            rows.image(rows.partner(row, random)[0])

    return step


CASES = {
    "tars": Case(
        f"open {TARS * SAMPLES:,} samples in {TARS:,} tars from the index, places of a batch",
        {SHIPPED: _shipped},
        inputs=_inputs,
        repeats=3,
        limits={"seconds": 60, "resident_mb": 2000},
        work=1,
        unit="openings",
    )
}
