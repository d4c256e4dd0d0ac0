"""The evaluated runs that a report is about: found, labelled, and compared on the same images."""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from talk2dino.benchmarks.metrics import interval_of, resampled_mious
from talk2dino.benchmarks.results import WrongField, check_counts, read_counts, read_result
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.benchmarks.tables import options_of, protocol_of
from talk2dino.files import listed

MEASURES = {"": "per_class", "boundary_": "per_class_boundary_iou"}
"""What is summed over images: how the names of its counts begin -> the result's field."""
DRAWS = 10_000
"""Lists of images that are drawn again."""
_MOST_NAMED = 3
_WEIGHTS = ("projection_weights", "weights")
"""Settings that `--weights` names."""
_WEIGHTS_FLAG = re.compile(r"--weights[ =](.*?)(?: --|$)")


@dataclass(frozen=True)
class EvaluatedRun:
    """One result file with its counts."""

    path: Path
    result: Mapping[str, Any]
    """Its content; see docs/evaluation.md."""
    label: str
    """What the report calls the method; unique among the runs of a benchmark."""

    @property
    def benchmark(self) -> str:
        return str(self.result["benchmark"])

    @property
    def classes(self) -> list[str]:
        """Names by id."""
        return list(self.result["per_class"])

    @property
    def settings(self) -> dict[str, Any]:
        """Of the segmenter, and the threshold."""
        segmenter = (self.result["settings"] or {}).get("segmenter") or {}
        return {**segmenter, "threshold": self.result["bg_thresh"]}

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """The counts per image; none if their file is gone.

        Raises:
            ValueError: the file is damaged, or does not belong to the result.
        """
        path = self.path.with_suffix(".npz")
        if not path.is_file():
            return {}
        try:
            counts = read_counts(path)
            check_counts(counts, self.result)
        except (zipfile.BadZipFile, EOFError, LookupError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}). Delete it to report without it."
            ) from error
        return counts

    @cached_property
    def areas(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Those of MEASURES that were counted -> intersections and unions (N, C) in pixels."""
        names = [name for name in MEASURES if f"{name}union" in self.counts]
        return {n: (self.counts[f"{n}intersect"], self.counts[f"{n}union"]) for n in names}

    @cached_property
    def image_scores(self) -> dict[str, dict[str, float]]:
        """Measure -> image -> its own mIoU in percent, over the classes in its label or prediction.

        Images without a labelled pixel are left out.
        """
        scores = {}
        for measure, (intersect, union) in self.areas.items():
            iou = np.divide(intersect, union, out=np.zeros(union.shape), where=union > 0)
            names, occurring = self.counts["images"].tolist(), (union > 0).sum(axis=1)
            found = zip(names, iou.sum(axis=1), occurring, strict=True)
            scores[measure] = {name: 100 * float(total / n) for name, total, n in found if n}
        return scores


def find_runs(places: Sequence[str | Path]) -> tuple[list[EvaluatedRun], list[str]]:
    """Read results, given as files or as the folders that hold them.

    Returns:
        the runs in the order of the paper's table and then of their labels; and a line per JSON
        in a folder that is no result.

    Raises:
        FileNotFoundError: a place is not there, or no result is in any.
        ValueError: a result that was named is none, or any has a wrong field.
    """
    found: dict[Path, Mapping[str, Any]] = {}
    skipped = []
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such file or folder of results")
        for path in [place] if place.is_file() else listed(place, "*.json"):
            try:
                found[path.resolve()] = read_result(path)
            except ValueError as error:
                if path == place or isinstance(error, WrongField):
                    raise
                skipped.append(str(error))
    if not found:
        raise FileNotFoundError(
            f"{', '.join(map(str, places))}: no results. Make some: python -m talk2dino evaluate "
            f"--model vitb --benchmarks all --output results/ {'; '.join(skipped[:3])}".rstrip()
        )
    runs = [EvaluatedRun(path, result, _method(result)) for path, result in found.items()]
    order = {key: place for place, key in enumerate(BENCHMARKS)}
    runs = _distinguish(runs)
    runs.sort(key=lambda run: (order.get(run.benchmark, len(order)), run.label))
    return runs, skipped


def by_benchmark(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    """Benchmark -> its runs, in their order."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(run.benchmark, []).append(run)
    return groups


def methods(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Every label once, in order."""
    return list(dict.fromkeys(run.label for run in runs))


def pick_examples(runs: Sequence[EvaluatedRun], count: int) -> dict[str, list[str]]:
    """The best, median and worst images by their own mIoU, averaged over the runs.

    Args:
        runs: of one benchmark.
        count: images per kind; no image is picked twice, so small sets give fewer.

    Returns:
        "best", "median", "worst" -> paths below the data root.
    """
    scored = [run.image_scores[""] for run in runs if run.image_scores]
    if not scored:
        return {}
    common = [name for name in scored[0] if all(name in scores for scores in scored)]
    mean = {name: sum(scores[name] for scores in scored) / len(scored) for name in common}
    ranked = sorted(mean, key=lambda name: -mean[name])
    count = min(count, max(len(ranked) // 3, 1))
    best, rest = ranked[:count], ranked[count:]
    worst, rest = rest[len(rest) - count :], rest[: max(len(rest) - count, 0)]
    start = max((len(rest) - count) // 2, 0)
    picked = {"best": best, "median": rest[start : start + count], "worst": worst}
    return {kind: names for kind, names in picked.items() if names}


def top_confusions(run: EvaluatedRun, count: int) -> list[tuple[str, str, float]]:
    """The largest mistakes: (true class, predicted class, percent of all counted pixels)."""
    if "confusion" not in run.counts:
        return []
    wrong = run.counts["confusion"].astype(np.float64)
    total = wrong.sum()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(wrong)) for place in largest]
    names = run.classes
    return [(names[t], names[p], 100 * wrong[t, p] / total) for t, p in pairs if wrong[t, p]]


def _method(result: Mapping[str, Any]) -> str:
    own = f"{result['model']}{' + PAMR' if result['pamr'] else ''}"
    words = options_of(result["settings"])
    if protocol_of(result["settings"]) is not None:
        words[0] += " protocol"
    return ", ".join([own, *words])


def _distinguish(runs: list[EvaluatedRun]) -> list[EvaluatedRun]:
    """Make labels unique within each benchmark, and the same for all benchmarks of a method.

    One setting after the other is added where runs of one label differ in it; then their places.
    """
    known = dict.fromkeys(key for run in runs for key in run.settings)
    weights = [key for key in _WEIGHTS if key in known]
    endings: list[Callable[[EvaluatedRun], str]] = [
        *(partial(_setting, key) for key in dict.fromkeys([*weights, *known])),
        lambda run: f", {run.path.parent.name}",
        lambda run: f", {run.path}",
    ]
    for ending in endings:
        found: dict[tuple[str, str], set[str]] = {}
        for run in runs:
            found.setdefault((run.benchmark, run.label), set()).add(ending(run))
        ambiguous = {label for (_, label), several in found.items() if len(several) > 1}
        runs = [
            replace(run, label=run.label + ending(run)) if run.label in ambiguous else run
            for run in runs
        ]
    return runs


def _setting(key: str, run: EvaluatedRun) -> str:
    """One setting as the end of a label; of weights the file as typed, or a few letters."""
    value = run.settings.get(key)
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    kind, _, digest = text.partition(":")
    if kind == "sha256":
        typed = " ".join(_WEIGHTS_FLAG.findall(" ".join(run.result["command"] or []))).split()
        named = [word for word in typed if word.startswith(f"{run.result['model']}=")] or typed
        known = key in _WEIGHTS and len(named) == 1
        text = Path(named[0].rpartition("=")[2]).name if known else digest[:8]
    return f", {key.removeprefix('projection_').replace('_', ' ')} {text}"


@dataclass(frozen=True, eq=False)
class Differences:
    """How a run B differs from a run A by one measure; all are B - A, in points of IoU."""

    first: EvaluatedRun
    second: EvaluatedRun
    measure: str
    """One of MEASURES."""
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
        names = ("difference", "interval", "better", "per_class", "images")
        return {name: getattr(self, name) for name in names}


def compare_runs(first: EvaluatedRun, others: Sequence[EvaluatedRun]) -> list[Differences]:
    """Compare runs with the first one, run after run, by every measure that both have.

    `check_comparable` says whether they can be.
    """
    runs = list(enumerate([first, *others]))
    areas = {(n, measure): pair for n, run in runs for measure, pair in run.areas.items()}
    mious = 100 * resampled_mious(list(areas.values()), DRAWS)
    drawn = dict(zip(areas, mious.T, strict=True))
    found = []
    for place, measure in areas:
        if not place or measure not in first.areas:
            continue
        (_, second), draws = runs[place], drawn[place, measure] - drawn[0, measure]
        with np.errstate(invalid="ignore"):
            own, other = (
                100 * intersect.sum(axis=0) / union.sum(axis=0)
                for intersect, union in (areas[0, measure], areas[place, measure])
            )
        of_class = zip(first.classes, (other - own).tolist(), strict=True)
        images, scores = first.image_scores[measure], second.image_scores[measure]
        of_image = ((name, scores[name] - v) for name, v in images.items() if name in scores)
        difference = float(np.nanmean(other) - np.nanmean(own))
        better = float(np.mean(draws[np.isfinite(draws)] > 0))
        numbers = (difference, interval_of(draws), better)
        largest = (_largest_first(of_class), _largest_first(of_image))
        found.append(Differences(first, second, measure, *numbers, *largest))
    return found


def _largest_first(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    known = [(name, value) for name, value in values if np.isfinite(value)]
    return dict(sorted(known, key=lambda entry: -abs(entry[1])))


def compare_comparable(runs: Sequence[EvaluatedRun]) -> tuple[list[Differences], list[str]]:
    """Compare those runs of a benchmark that can be with the first; the reasons of the others."""
    first, *others = [run for run in runs if run.counts] or runs
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
    for run in (first, second):
        if not run.counts:
            raise ValueError(
                f"{run.path.with_suffix('.npz')} is not there: it holds the counts per image, and "
                f"belongs beside {run.path.name}."
            )
    one, two = first.counts, second.counts
    trouble = _difference("classes", first.classes, second.classes)
    trouble += _difference("images", one["images"].tolist(), two["images"].tolist())
    if not trouble:
        differing = (one["label_area"] != two["label_area"]).any(axis=1)
        if differing.any():
            shown = ", ".join(one["images"][differing][:_MOST_NAMED])
            trouble = [f"the ground truth differs in {int(differing.sum())} images, as in {shown}"]
        elif not one["label_area"].any():
            trouble = ["no pixel has a label"]
    if trouble:
        raise ValueError(
            f"{second.path} cannot be compared with {first.path}: {'; '.join(trouble)}."
        )


def _difference(what: str, first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What two lists of names do not share, as a sentence or none."""
    if first == second:
        return []
    parts = [f"{len(first)} and {len(second)} {what}"]
    for text, some, others in (("first", first, second), ("second", second, first)):
        if only := [name for name in some if name not in set(others)]:
            parts.append(f"only in the {text}: {', '.join(only[:_MOST_NAMED])}")
    return [", ".join(parts) if parts[1:] else f"the {what} are in another order"]
