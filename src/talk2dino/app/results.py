"""Finished segmentations, kept for a while so that a click or a slider needs no model."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from talk2dino.app.inputs import Picture
from talk2dino.app.models import Abilities
from talk2dino.inference import score_labels
from talk2dino.pictures.segmentation import Segmentation


@dataclass(frozen=True)
class Result:
    """One segmented picture; everything that is shown or downloaded is made from it."""

    picture: Picture
    """What was sent."""
    segmentation: Segmentation
    """What was found, at the threshold of the request."""
    abilities: Abilities = field(default_factory=Abilities)
    """Of the model."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        found = self.segmentation
        return found.scores.nbytes + found.labels.nbytes + 3 * found.labels.numel()

    def at(self, threshold: float) -> Segmentation:
        """The same scores with another threshold of the background, if there is one.

        Some methods have to score the picture again for that; then the threshold stays.
        """
        found = self.segmentation
        if found.background in (None, threshold) or not self.abilities.redraw:
            return found
        scores = torch.cat([torch.full_like(found.scores[:1], threshold), found.scores[1:]])
        return dataclasses.replace(
            found, scores=scores, labels=score_labels(scores), background=threshold
        )


class Results:
    """The latest results of all visitors, under keys that cannot be guessed.

    Args:
        folder: every result gets a folder in it, which is removed with the result.
        max_bytes: memory for scores; the oldest results make room, the newest is always kept.
        max_count: results at the same time.
    """

    def __init__(self, folder: Path, max_bytes: int = 2**30, max_count: int = 64) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._kept: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: Result) -> str:
        """Keep a result; returns its key."""
        key = secrets.token_urlsafe(24)
        self.folder(key).mkdir(parents=True)
        with self._lock:
            self._kept[key] = result
            while len(self._kept) > 1 and self._is_full():
                self._forget(next(iter(self._kept)))
        return key

    def get(self, key: str | None) -> Result | None:
        """The result of a key, or None if it has made room for others."""
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def discard(self, key: str | None) -> None:
        """Forget a result that its visitor has replaced."""
        with self._lock:
            if key is not None and key in self._kept:
                self._forget(key)

    def folder(self, key: str) -> Path:
        """Where the files of a result are."""
        return self._folder / key

    def _is_full(self) -> bool:
        used = sum(result.num_bytes for result in self._kept.values())
        return used > self._max_bytes or len(self._kept) > self._max_count

    def _forget(self, key: str) -> None:
        del self._kept[key]
        shutil.rmtree(self.folder(key), ignore_errors=True)
