"""What of a data set is there, what is missing, and which common mistake explains it."""

import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from talk2dino.benchmarks.data.labels import IGNORED, WIDE_IGNORED, LabelRules
from talk2dino.benchmarks.datasets import (
    EvaluationSet,
    MissingPlaces,
    notes_of,
    problems_of,
    unknown_values,
)
from talk2dino.benchmarks.table import Benchmark, Source
from talk2dino.config import first_few
from talk2dino.files import listed

_ENOUGH_LABELS = 3  # of which one holds a value that most labels hold
_SHOWN_SHARES = 5
_DEPTH = 6  # of folders below the data root that are looked into
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz")


@dataclass
class DataReport:
    """What was found of one data set."""

    row: Benchmark
    num_images: int = 0
    """Images that should be evaluated and are there."""
    num_labels: int = 0
    """Images of them whose label is there."""
    problems: list[str] = field(default_factory=list)
    """What keeps the evaluation from running, and what to do."""
    warnings: list[str] = field(default_factory=list)
    """What makes its numbers differ from published ones."""
    histogram: str = ""
    """The most frequent values of some labels, in a line."""

    @property
    def state(self) -> str:
        if self.problems:
            return "incomplete" if self.num_images else "missing"
        return "differs" if self.warnings else "complete"


def check_data(row: Benchmark, data_root: str | Path, sample_size: int) -> DataReport:
    """Look at a data set's files; nothing is changed.

    Args:
        row: the data set.
        data_root: the folder that all benchmarks are below.
        sample_size: how many labels to read, spread over the list.
    """
    report, root, source = DataReport(row), Path(data_root), row.source
    try:
        dataset = EvaluationSet(row, root)
    except MissingPlaces as error:
        if source is None:
            report.problems.append(str(error))
        else:
            labels = (row.label_suffix, source.raw_suffix or row.label_suffix)
            for path in error.paths:
                suffixes = row.image_suffixes if path == root / row.images else labels
                report.problems.append(f"no {path}{_elsewhere(path, root, source, suffixes)}")
    except (OSError, ValueError) as error:
        report.problems.append(str(error))
    else:
        _check_files(report, dataset)
        _check_labels(report, dataset, sample_size)
    if source is not None and report.problems:
        report.problems.append(f"Get {source.get.format(root=shlex.quote(str(root)), key=row.key)}")
    return report


def _check_files(report: DataReport, dataset: EvaluationSet) -> None:
    """Count them, and look at their headers."""
    there = [sample for sample in dataset.samples if (dataset.data_root / sample.image).is_file()]
    labels = [dataset.data_root / sample.label for sample in there]
    missing = [label for label in labels if not label.is_file()]
    report.num_images, report.num_labels = len(there), len(labels) - len(missing)
    report.problems += map(str, problems_of(dataset))
    report.warnings += notes_of(dataset)
    if (source := report.row.source) is None:
        return
    if source.raw_suffix:
        stems = [str(label).removesuffix(report.row.label_suffix) for label in missing]
        if raw := sum(Path(f"{stem}{source.raw_suffix}").is_file() for stem in stems):
            report.problems.append(f"{raw} labels are not converted to TrainIds")
    count, official = len(dataset.samples), " or ".join(map(str, source.counts))
    if count in source.other_lists:
        report.problems.append(
            f"{count} images are listed: that is {source.other_lists[count]}; the benchmark has "
            f"{official} (wrong split file)"
        )
    elif count not in source.counts:
        report.warnings.append(f"{count} images, officially {official}")


def _check_labels(report: DataReport, dataset: EvaluationSet, sample_size: int) -> None:
    """Look at the values of some labels, and guess by which mistake they are not what they seem."""
    row, rules, root = report.row, report.row.rules, dataset.data_root
    there = [n for n, one in enumerate(dataset.samples) if (root / one.label).is_file()]
    pixels = np.zeros(WIDE_IGNORED + 1, np.int64)
    damaged, outside, looked_at, wide = [], [], 0, False
    spread = np.linspace(0, len(there) - 1, min(sample_size, len(there))).round().astype(int)
    for index in (there[place] for place in np.unique(spread)):
        try:
            values = dataset.read_label_file(index)
            labels, unknown = rules.class_ids(values, len(row.classes))
        except ValueError as error:
            damaged.append(str(error))
            continue
        stored = labels if rules.colours else values
        pixels += np.bincount(stored.ravel(), minlength=len(pixels))
        looked_at, wide = looked_at + 1, wide or stored.dtype == np.uint16
        if unknown.any() and not rules.unknown_ignored:
            name = dataset.samples[index].label
            outside.append(f"{name}: {unknown_values(row, values, unknown)}")
    for texts in (damaged, outside):
        if texts:
            report.problems.append(f"{texts[0]} ({len(texts)} of {len(spread)} in the sample)")
    if not looked_at:
        return
    report.histogram = f"{looked_at} labels, {_histogram(row, pixels, wide)}"
    if (source := row.source) is None:
        return
    shifted = _numbering(row, pixels, looked_at, source)
    if outside:
        report.problems.append(shifted or f"{source.outside}, and no labels of this benchmark")
    elif shifted:
        report.warnings.append(shifted)


def _histogram(row: Benchmark, pixels: np.ndarray, wide: bool) -> str:
    found = np.flatnonzero(pixels)
    shown = found[np.argsort(-pixels[found], kind="stable")][:_SHOWN_SHARES]
    # Of colours the classes were counted, which only the ignored one is no class of.
    rules = LabelRules() if row.rules.colours else row.rules
    values = shown.astype(np.uint16 if wide else np.uint8)[None]
    (ids,), (unknown,) = rules.class_ids(values, len(row.classes))
    entries = []
    for value, label, nothing in zip(shown.tolist(), ids.tolist(), unknown, strict=True):
        name = row.classes[label] if label < len(row.classes) else "(ignored)"
        name = "(no class)" if nothing else name
        entries.append(f"{value} {name} {100 * pixels[value] / pixels.sum():.0f} %")
    more = ", ..." if len(found) > _SHOWN_SHARES else ""
    return f"{len(found)} values: {', '.join(entries)}{more}"


def _numbering(row: Benchmark, pixels: np.ndarray, num_labels: int, source: Source) -> str | None:
    """A sentence if the values are probably those of the published labels less or plus one."""
    last = int(row.rules.known(len(row.classes))[-1])
    above = [v for v in np.flatnonzero(pixels[:IGNORED]).tolist() if v > last]
    has_zero = row.background or row.rules.shift < 0  # most published labels hold it
    ignored = pixels[IGNORED] / pixels.sum()
    if above == [last + 1] and not pixels[0]:
        return "no label holds 0, and all values seem one too high: use the published files"
    if above:
        return None
    if not pixels[int(has_zero) : IGNORED].any():
        return "the labels looked at hold no class at all"
    if ignored > source.most_ignored:
        return (
            f"{100 * ignored:.0f} % of the pixels are {IGNORED}, in the published labels less than "
            f"{100 * source.most_ignored:.0f} %: were they reduced by one already (0 became 255)? "
            "Then every class is off by one: use the published files"
        )
    if has_zero and not pixels[0] and num_labels >= _ENOUGH_LABELS:
        return "no label holds 0, which most published ones do: are all values off by one?"
    return None


def _elsewhere(path: Path, root: Path, source: Source, suffixes: Sequence[str]) -> str:
    """What there is of a missing place, as a clause: in another folder, packed, or of other data.

    Args:
        path: a folder, or a list of images.
        root: the folder of all data sets.
        source: of its data set.
        suffixes: what files of the folder end with.
    """
    found, others = [], ""
    for place, folders, files in os.walk(root):
        here = Path(place)
        kinds = [what for start, what in source.lookalikes.items() if here.name.startswith(start)]
        deep = len(here.relative_to(root).parts) >= _DEPTH
        folders[:] = [] if kinds or deep else sorted(folders)
        if kinds:
            others += f"; {here} is there, which is {kinds[0]}"
        elif here.name.lower() == path.name.lower():  # cities have folders of their own
            inside = itertools.chain(here.glob("*"), here.glob("*/*"))
            if any(file.name.lower().endswith(tuple(suffixes)) for file in inside):
                found.append(here)
        elif path.name in files and here.name == path.parent.name:
            found.append(here / path.name)
    if found:
        parts = set(path.parts)
        best = max(found, key=lambda other: len(parts.intersection(other.parts)))
        made, there, target = (shlex.quote(str(p)) for p in (path.parent, best.absolute(), path))
        command = f"mkdir -p {made} && ln -s {there} {target}"
        return f", but {best} is there: link it ({command}){others}"
    places = {root, *(place for place in path.parents if place.is_relative_to(root))}
    packed = [p for place in places for p in listed(place, "*") if p.suffix in _ARCHIVES]
    return f"; not unpacked: {first_few(sorted(map(str, packed)))}{others}" if packed else others
