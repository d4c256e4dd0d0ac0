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
class Differences:
    """How a run B differs from a run A by one measure; all are B - A, in points of IoU."""

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


@dataclass(frozen=True, eq=False)
class Comparison(Differences):
    """How a run B differs from a run A."""

    first: EvaluatedRun
    """A."""
    second: EvaluatedRun
    """B."""
    boundary: Differences | None
    """The same by boundary IoU, if both runs were evaluated with it."""

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        found = {"benchmark": self.first.benchmark, **vars(self), "draws": DRAWS}
        for letter, name in (("a", "first"), ("b", "second")):
            run = found.pop(name)
            found[letter] = {"label": run.label, "file": str(run.path)}
        return found | {"boundary": self.boundary and vars(self.boundary)}


def compare_runs(first: EvaluatedRun, others: Sequence[EvaluatedRun]) -> list[Comparison]:
    """Compare runs with the first one; `check_comparable` says whether they can be."""
    runs = [first, *others]
    places = [(place, measure) for place, run in enumerate(runs) for measure in run.measures]
    areas = [runs[place].areas(measure) for place, measure in places]
    drawn = dict(zip(places, 100 * resampled_mious(areas, DRAWS).T, strict=True))
    comparisons = []
    for place, run in enumerate(others, start=1):
        found = {
            measure: _differences(first, run, measure, drawn[place, measure] - drawn[0, measure])
            for measure in run.measures
            if measure in first.measures
        }
        regions, boundary = found[""], found.get("boundary_")
        comparisons.append(Comparison(**vars(regions), first=first, second=run, boundary=boundary))
    return comparisons


def _differences(
    first: EvaluatedRun, second: EvaluatedRun, measure: str, drawn: np.ndarray
) -> Differences:
    """By one measure, with the differences of the draws."""
    with np.errstate(invalid="ignore"):
        own, other = (
            100 * intersect.sum(axis=0) / union.sum(axis=0)
            for intersect, union in (first.areas(measure), second.areas(measure))
        )
    classes = dict(zip(first.classes, (other - own).tolist(), strict=True))
    scores = second.scores_of_images(measure)
    images = first.scores_of_images(measure).items()
    return Differences(
        float(np.nanmean(other) - np.nanmean(own)),
        interval_of(drawn),
        float(np.mean(drawn[np.isfinite(drawn)] > 0)),
        _largest_first({name: v for name, v in classes.items() if np.isfinite(v)}),
        _largest_first({name: scores[name] - v for name, v in images if name in scores}),
    )


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
