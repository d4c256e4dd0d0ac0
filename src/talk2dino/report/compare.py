"""Is one run better than another? Paired differences on the same images, with their interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from talk2dino.benchmarks.bootstrap import interval_of, resampled_mious
from talk2dino.report.runs import EvaluatedRun

DRAWS = 10_000
"""Lists of images that are drawn again."""
_MOST_NAMED = 3


@dataclass(frozen=True, eq=False)
class Comparison:
    """How a run B differs from a run A; all differences are B - A, in points of IoU."""

    first: EvaluatedRun
    """A."""
    second: EvaluatedRun
    """B."""
    difference: float
    """Of the mIoU."""
    interval: tuple[float, float]
    """95 % paired bootstrap over images: both runs see the same images in every draw."""
    better: float
    """Share of the draws, 0 to 1, in which B has the higher mIoU."""
    per_class: dict[str, float]
    """Class -> difference of its IoU, the largest first; only classes that occur in both."""
    images: dict[str, float]
    """Image -> difference of its own mIoU, the largest first."""

    def most(self, what: str, count: int) -> list[tuple[str, float]]:
        """The `per_class` or `images` that differ most, the gains first; those that differ."""
        values: dict[str, float] = getattr(self, what)
        largest = islice(((name, v) for name, v in values.items() if v), count)
        return sorted(largest, key=lambda entry: -entry[1])

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "benchmark": self.first.benchmark,
            "a": {"label": self.first.label, "file": str(self.first.path)},
            "b": {"label": self.second.label, "file": str(self.second.path)},
            "difference": self.difference,
            "interval": list(self.interval),
            "better": self.better,
            "draws": DRAWS,
            "per_class": self.per_class,
            "images": self.images,
        }


def compare_runs(first: EvaluatedRun, others: Sequence[EvaluatedRun]) -> list[Comparison]:
    """Compare runs with the first one.

    Raises:
        ValueError: they are not of the same images, labels and classes, or have no counts; says
            what differs.
    """
    runs = [first, *others]
    for run in runs:
        check_comparable(first, run)
    counts = [_counts(run) for run in runs]
    areas = [(found["intersect"], found["union"]) for found in counts]
    with np.errstate(invalid="ignore"):
        ious = [100 * inter.sum(axis=0) / union.sum(axis=0) for inter, union in areas]
    drawn = 100 * resampled_mious(areas, DRAWS)
    found = []
    for place, run in enumerate(others, start=1):
        differences = drawn[:, place] - drawn[:, 0]
        classes = dict(zip(run.classes, (ious[place] - ious[0]).tolist(), strict=True))
        scores = run.image_scores
        images = {n: scores[n] - own for n, own in first.image_scores.items() if n in scores}
        found.append(
            Comparison(
                first,
                run,
                float(np.nanmean(ious[place]) - np.nanmean(ious[0])),
                interval_of(differences),
                float(np.mean(differences[np.isfinite(differences)] > 0)),
                _largest_first({name: v for name, v in classes.items() if np.isfinite(v)}),
                _largest_first(images),
            )
        )
    return found


def compare_comparable(runs: Sequence[EvaluatedRun]) -> tuple[list[Comparison], list[str]]:
    """Compare those runs of a benchmark that can be with the first; the reasons of the others."""
    first, *others = [run for run in runs if run.counts is not None] or runs
    comparable, reasons = [], []
    for run in others:
        try:
            check_comparable(first, run)
            comparable.append(run)
        except ValueError as error:
            reasons.append(str(error))
    return compare_runs(first, comparable) if comparable else [], reasons


def check_comparable(first: EvaluatedRun, second: EvaluatedRun) -> None:
    """Raise ValueError unless two runs are of the same images, labels and classes."""
    one, two = _counts(first), _counts(second)
    trouble = _difference("classes", first.classes, second.classes)
    trouble += _difference("images", one["images"].tolist(), two["images"].tolist())
    if not trouble:
        differing = (one["label_area"] != two["label_area"]).any(axis=1)
        if differing.any():
            names = ", ".join(one["images"][differing][:_MOST_NAMED])
            trouble = [f"the ground truth differs in {int(differing.sum())} images, as in {names}"]
        elif not one["label_area"].any():
            trouble = ["no pixel has a label"]
    if trouble:
        raise ValueError(
            f"{second.path} cannot be compared with {first.path}: {'; '.join(trouble)}."
        )


def _largest_first(differences: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(differences.items(), key=lambda entry: -abs(entry[1])))


def _counts(run: EvaluatedRun) -> dict[str, np.ndarray]:
    if run.counts is None:
        raise ValueError(
            f"{run.path.with_suffix('.npz')} is not there: it holds the counts per image, and "
            f"belongs beside {run.path.name}."
        )
    return run.counts


def _difference(what: str, first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What two lists of names do not share, as a sentence or none."""
    if list(first) == list(second):
        return []
    missing = [name for name in first if name not in set(second)]
    added = [name for name in second if name not in set(first)]
    parts = [f"{len(first)} and {len(second)} {what}"]
    for text, names in (("only in the first", missing), ("only in the second", added)):
        if names:
            parts.append(f"{text}: {', '.join(names[:_MOST_NAMED])}")
    return [", ".join(parts) if missing or added else f"the {what} are in another order"]
