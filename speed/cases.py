"""Every case that can be measured, by name."""

from __future__ import annotations

from speed.case import Case
from speed.evaluate import CASES as EVALUATE
from speed.extract import CASES as EXTRACT
from speed.pamr import CASES as PAMR
from speed.peers import CASES as PEERS
from speed.propagation import CASES as PROPAGATION
from speed.retrieval import CASES as RETRIEVAL
from speed.start import CASES as START
from speed.store import CASES as STORE
from speed.tars import CASES as TARS
from speed.text import CASES as TEXT
from speed.train import CASES as TRAIN

CASES: dict[str, Case] = {
    **{**PAMR, **PROPAGATION, **TRAIN, **EVALUATE, **EXTRACT},
    **{**START, **TEXT, **STORE, **RETRIEVAL, **TARS, **PEERS},
}

PATHS: dict[str, tuple[str, ...]] = {
    "pamr": tuple(PAMR),
    "propagation": tuple(PROPAGATION),
    "train": tuple(TRAIN),
    "evaluate": tuple(name for name in EVALUATE if name != "evaluate_windows"),
    "extract": ("extract", "resize"),  # extract_8 is a shorter one
    "start": tuple(START),
    "text": tuple(TEXT),
    "store": tuple(STORE),
    "retrieval": tuple(RETRIEVAL),
    "tars": tuple(TARS),
    **{name: (name,) for name in PEERS},
}
"""Hot path -> its cases, in the order in which they are measured."""

ON_CUDA = {"extract": ("extract_decoded",), "evaluate": ("evaluate_windows",)}
"""Hot path -> cases that are measured on GPUs only, unless they are named."""
