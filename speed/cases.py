"""Every case that can be measured, by name."""

from __future__ import annotations

from speed.case import Case
from speed.pamr import CASES as PAMR

CASES: dict[str, Case] = {**PAMR}

PATHS: dict[str, tuple[str, ...]] = {
    "pamr": tuple(PAMR),
}
"""Hot path -> its cases, in the order in which they are measured."""
