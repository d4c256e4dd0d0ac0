"""What OVSegmentor's published evaluation says differently per benchmark: names and thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from talk2dino.config import as_texts

BACKGROUND = "background"

_ALIASES: dict[str, dict[str, str]] = {
    "voc": {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"},
    "context": {"aeroplane": "airplane", "pottedplant": "plant", "tvmonitor": "monitor"},
}
_ALIASES |= {"voc20": _ALIASES["voc"], "context59": _ALIASES["context"]}

_THRESHOLDS = {"voc": 0.95, "context": 0.35, "coco_object": 0.9, "coco_stuff": 0.95}

DEFAULT_THRESHOLD = 0.95
"""For images of no benchmark; the published demo's."""


def class_names(benchmark: str, names: Sequence[str]) -> list[str]:
    """The names to put into prompts, in the given order.

    Args:
        benchmark: key of a benchmark (`voc`, `context`, ...); others have no names of their own.
        names: MMSegmentation's names. They are used as they are, the blank of ADE20K's `bed `
            included.
    """
    aliases = _ALIASES.get(benchmark, {})
    return [aliases.get(name, name) for name in as_texts(names)]


def background_threshold(benchmark: str) -> float | None:
    """The published threshold of a benchmark with background; None for one without.

    COCO-Stuff is evaluated with a background as class 0, so with 172 classes.
    """
    return _THRESHOLDS.get(benchmark)
