"""What of a benchmark's data is there, what is missing, and which common mistake explains it."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from talk2dino.benchmarks.data.context import find_context_json
from talk2dino.benchmarks.data.labels import CITYSCAPES_LAST_ID, WrongLabelMode, read_any_labels
from talk2dino.benchmarks.data.sources import SOURCES, Source
from talk2dino.benchmarks.datasets import (
    EvaluationSet,
    files_below,
    pair_problem,
    pictures_left_out,
    some_of,
    unknown_values,
)
from talk2dino.benchmarks.metrics import IGNORED, WIDE_IGNORED
from talk2dino.benchmarks.table import Benchmark
from talk2dino.files import listed
from talk2dino.textfiles import read_names

T = TypeVar("T")

_ENOUGH_LABELS = 3  # of which one holds a value that most labels hold
ARCHIVES = (".zip", ".tar", ".gz", ".tgz")
_DEPTH = 6  # of folders below the data root that are looked into


@dataclass(eq=False)
class LabelSample:
    """What some labels hold."""

    num_labels: int
    """Files looked at."""
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(WIDE_IGNORED + 1, np.int64))
    """(65536,) pixels of every value as stored, of every class where colours are stored."""
    wide: bool = False
    """Whether the files have 16 bits."""

    def shares(self) -> dict[int, float]:
        """Stored value -> share of the pixels, the most frequent first."""
        total = max(int(self.pixels.sum()), 1)
        found = np.flatnonzero(self.pixels)
        order = found[np.argsort(-self.pixels[found], kind="stable")]
        return {int(value): float(self.pixels[value]) / total for value in order}


@dataclass
class DataReport:
    """What was found of one benchmark."""

    benchmark: Benchmark
    """Its row."""
    num_images: int = 0
    """Images that should be evaluated and are there."""
    num_labels: int = 0
    """Images of them whose label is there."""
    problems: list[str] = field(default_factory=list)
    """What keeps the evaluation from running, each with what to do."""
    warnings: list[str] = field(default_factory=list)
    """What makes its numbers differ from published ones."""
    sample: LabelSample | None = None
    """Labels that were looked at."""

    @property
    def state(self) -> str:
        """One word."""
        if self.problems:
            return "incomplete" if self.num_images else "missing"
        return "differs" if self.warnings else "complete"


def check_benchmark(benchmark: Benchmark, data_root: str | Path, sample_size: int) -> DataReport:
    """Look at one benchmark's files; nothing is changed.

    Args:
        benchmark: its row.
        data_root: the folder that all benchmarks are below.
        sample_size: how many labels to read, spread over the list.
    """
    root = Path(data_root)
    source = SOURCES[benchmark.key]
    report = DataReport(benchmark)
    images, labels = root / benchmark.images, root / benchmark.labels
    stems = _listed_stems(benchmark, root, source, report)
    if stems is None:
        if not labels.is_dir():
            report.problems.append(_missing_labels(benchmark, root, source))
        return report
    missing = [stem for stem in stems if not (images / f"{stem}{benchmark.image_suffix}").is_file()]
    report.num_images = len(stems) - len(missing)
    if missing:
        text = _absent_files("images", images, missing, benchmark.image_suffix, len(stems))
        report.problems.append(f"{text}. {_get(source.images, benchmark, root)}")
    _check_count(len(stems), source, report)
    if not labels.is_dir():
        report.problems.append(_missing_labels(benchmark, root, source))
        return report
    labelled = [stem for stem in stems if (labels / f"{stem}{benchmark.label_suffix}").is_file()]
    report.num_labels = len(labelled)
    if len(labelled) < len(stems):
        report.problems.append(_unlabelled(benchmark, root, source, stems, set(labelled)))
    if labelled and sample_size:
        suffixes = benchmark.image_suffix, benchmark.label_suffix
        pairs = [
            (images / f"{stem}{suffixes[0]}", labels / f"{stem}{suffixes[1]}")
            for stem in _spread(labelled, sample_size)
        ]
        _add_sample(report, pairs)
    return report


def check_dataset(row: Benchmark, data_root: str | Path, sample_size: int) -> DataReport:
    """`check_benchmark` for a data set of which nothing else is known than its YAML file."""
    report = DataReport(row)
    try:
        dataset = EvaluationSet(row, data_root)
    except (OSError, ValueError) as error:
        report.problems.append(str(error))
        return report
    root = dataset.data_root
    pairs = [(root / sample.image, root / sample.label) for sample in dataset.samples]
    present = [pair for pair in pairs if pair[0].is_file()]
    labelled = [pair for pair in present if pair[1].is_file()]
    report.num_images, report.num_labels = len(present), len(labelled)
    for kind, missing in (
        ("images", [str(image) for image, _ in pairs if not image.is_file()]),
        ("labels", [str(label) for _, label in pairs if not label.is_file()]),
    ):
        if missing:
            report.problems.append(
                f"{len(missing)} of {len(pairs)} {kind} are missing: {some_of(missing)}"
            )
    wrong = [text for pair in labelled if (text := pair_problem(*pair, row.rules.colours))]
    if wrong:
        report.problems.append(f"{len(wrong)} files cannot be used: {some_of(wrong)}")
    if dataset.unlabelled:
        report.warnings.append(
            f"{len(dataset.unlabelled)} images have no label and are left out: "
            f"{some_of(dataset.unlabelled)}"
        )
    used = {label.resolve() for _, label in pairs}
    folder = dataset.label_folder
    names = sorted(files_below(folder, (row.label_suffix,)))
    if row.split is None and (more := [n for n in names if (folder / n).resolve() not in used]):
        report.warnings.append(f"{len(more)} labels have no image: {some_of(more)}")
    if labelled and sample_size and not wrong:
        _add_sample(report, _spread(labelled, sample_size))
    return report


def _listed_stems(
    benchmark: Benchmark, root: Path, source: Source, report: DataReport
) -> list[str] | None:
    """The images to evaluate, as paths below the folder without suffix; None if unknown."""
    folder = root / benchmark.images
    get_images = _get(source.images, benchmark, root)
    if not folder.is_dir():
        there = _explain_missing(folder, root, source, benchmark.image_suffix)
        report.problems.append(f"no folder {folder}{there}. {get_images}")
        return None
    if benchmark.split is None:
        suffix = benchmark.image_suffix
        stems = sorted(name.removesuffix(suffix) for name in files_below(folder, (suffix,)))
        if not stems:
            other = some_of(sorted(os.listdir(folder))) or "nothing"
            there = _explain_missing(folder, root, source, suffix)
            report.problems.append(
                f"{folder} holds no *{suffix} (found: {other}){there}. {get_images}"
            )
        elif left := pictures_left_out(folder, (suffix,)):
            report.warnings.append(f"{folder}: pictures that do not end in {suffix}: {left}")
        return stems or None
    path = root / benchmark.split
    if not path.is_file():
        text = f"no list {path}{_explain_missing(path.parent, root, source, path.name)}. "
        if benchmark.key.startswith("context"):
            text += _context_step(root, source, benchmark)
        else:
            text += get_images
        report.problems.append(text)
        return None
    try:
        stems = read_names(path)
    except ValueError as error:
        report.problems.append(f"wrong split file: {error} {get_images}")
        return None
    wrong = [stem for stem in stems if " " in stem or stem.endswith((".jpg", ".png"))]
    if wrong:
        report.problems.append(
            f"{path}: wrong split file; lines must be names without suffix or columns "
            f"(2007_000033), found {wrong[0]!r}"
        )
        return None
    return stems


def _check_count(count: int, source: Source, report: DataReport) -> None:
    if count in source.counts:
        return
    official = " or ".join(map(str, source.counts))
    if count in source.other_lists:
        report.problems.append(
            f"{count} images are listed: that is {source.other_lists[count]}; "
            f"the benchmark has {official} (wrong split file)"
        )
    else:
        report.warnings.append(f"{count} images, officially {official}")


def _missing_labels(benchmark: Benchmark, root: Path, source: Source) -> str:
    folder = root / benchmark.labels
    if benchmark.key.startswith("context"):
        return f"no masks in {folder}: they are not part of VOC2010. " + _context_step(
            root, source, benchmark
        )
    text = _get(source.labels, benchmark, root)
    suffixes = (source.conversion or benchmark.label_suffix, benchmark.label_suffix)
    return f"no folder {folder}{_explain_missing(folder, root, source, *suffixes)}. {text}"


def _context_step(root: Path, source: Source, benchmark: Benchmark) -> str:
    found = find_context_json(root / "VOCdevkit" / "VOC2010")
    if found is None:
        return _get(source.labels, benchmark, root)
    return f"{found} is there: run {_convert(root, 'context')}"


def _convert(root: Path, key: str) -> str:
    return f"python -m talk2dino data convert --data_root {_quoted(root)} --benchmarks {key}"


def _unlabelled(
    benchmark: Benchmark, root: Path, source: Source, stems: Sequence[str], labelled: set[str]
) -> str:
    """Why images have no label."""
    folder = root / benchmark.labels
    missing = [stem for stem in stems if stem not in labelled]
    if source.conversion is not None:
        raw = sum((folder / f"{stem}{source.conversion}").is_file() for stem in missing)
        if raw:
            return (
                f"{raw} of {len(stems)} labels are not converted to TrainIds "
                f"(*{source.conversion} is there, *{benchmark.label_suffix} is not). Run: "
                + _convert(root, benchmark.key)
            )
    text = _absent_files("labels", folder, missing, benchmark.label_suffix, len(stems))
    return f"{text}. {_get(source.labels, benchmark, root)}"


def _absent_files(kind: str, folder: Path, missing: Sequence[str], suffix: str, listed: int) -> str:
    """Which files are not there, and under which other endings they are."""
    text = f"{len(missing)} of {listed} {kind} are not in {folder}: "
    text += some_of([f"{stem}{suffix}" for stem in missing])
    there: dict[str, list[str]] = {}
    for place in {(folder / stem).parent for stem in missing}:
        if place.is_dir():
            for path in place.iterdir():
                there.setdefault(path.stem, []).append(path.suffix)
    endings = sorted({e for stem in missing for e in there.get(Path(stem).name, ())})
    if endings:
        text += f", but *{', *'.join(endings)} is there: rename the files to *{suffix}"
    return text


def _get(text: str, benchmark: Benchmark, root: Path) -> str:
    """Fill in a text of SOURCES."""
    return "Get " + text.format(root=_quoted(root), key=benchmark.key)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _explain_missing(folder: Path, root: Path, source: Source, *suffixes: str) -> str:
    """What there is of a missing folder, as a clause: elsewhere, packed, or of other data.

    Args:
        folder: what is missing, or empty.
        root: the folder of all benchmarks.
        source: of its data set.
        suffixes: what its files end with.
    """
    top = root / folder.relative_to(root).parts[0]
    archives = [
        path
        for place in (root, top, *folder.parents)
        if place.is_dir() and place.is_relative_to(root)
        for path in listed(place, "*")
        if path.suffix in ARCHIVES
    ]
    candidates, others = [], ""
    for place, folders, _ in os.walk(root):
        here = Path(place)
        kinds = [what for start, what in source.lookalikes.items() if here.name.startswith(start)]
        if kinds:
            others += f"; {here} is there, which is {kinds[0]}"
        elif here.name.lower() == folder.name.lower() and here != folder and _holds(here, suffixes):
            candidates.append(here)
        deep = len(here.relative_to(root).parts) >= _DEPTH
        folders[:] = [] if kinds or deep else sorted(folders)
    if candidates:
        found = max(candidates, key=lambda other: len(_common_end(other, folder)))
        return f", but {found} is there: move it, or link it: {_link(found, folder, root)}{others}"
    if archives:
        names = some_of(list(dict.fromkeys(str(path) for path in archives)))
        return f"; these archives are not unpacked: {names}{others}"
    return others


def _holds(folder: Path, suffixes: Sequence[str]) -> bool:
    """Whether such files are in a folder or, as cities are, in one below it."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    files = itertools.chain(folder.glob("*"), folder.glob("*/*"))
    return any(path.name.lower().endswith(endings) for path in files)


def _common_end(one: Path, other: Path) -> list[str]:
    """The names that two paths end with alike, the last one first."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return [name for name, same in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _link(found: Path, wanted: Path, root: Path) -> str:
    """The command that puts a folder in its place: with all beside it if nothing is there yet."""
    while (
        found.name == wanted.name
        and not wanted.parent.exists()
        and found.parent != root
        and not wanted.is_relative_to(found.parent)
    ):
        found, wanted = found.parent, wanted.parent
    if wanted.exists():
        return f"mv {_quoted(found)}/* {_quoted(wanted)}"
    made = "" if wanted.parent.exists() else f"mkdir -p {_quoted(wanted.parent)} && "
    return f"{made}ln -s {_quoted(found.absolute())} {_quoted(wanted)}"


def _spread(items: Sequence[T], count: int) -> list[T]:
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places)]


def _add_sample(report: DataReport, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Read the labels of some images and their labels."""
    row, rules = report.benchmark, report.benchmark.rules
    report.sample = sample = LabelSample(len(pairs))
    colours, damaged, sizes, outside = [], [], [], []
    for image, path in pairs:
        try:
            values = read_any_labels(path, rules.colours)
            labels, unknown = rules.class_ids(values, len(row.classes))
        except WrongLabelMode as error:
            colours.append(str(error))
            continue
        except ValueError as error:
            damaged.append(str(error))
            continue
        sample.wide |= values.dtype == np.uint16
        stored = labels if rules.colours else values
        sample.pixels += np.bincount(stored.ravel(), minlength=len(sample.pixels))
        if unknown.any() and not rules.unknown_ignored:
            outside.append(f"{path}: {unknown_values(row, values, unknown)}")
        if (text := pair_problem(image, path, rules.colours)) is not None:
            sizes.append(text)
    own = row.key not in SOURCES
    for texts in (colours, damaged, sizes, outside if own else []):
        if texts:
            more = f" ({len(texts)} of {len(pairs)} in the sample)"
            report.problems.append(texts[0] + more)
    if outside and not own:
        name = Path(outside[0].partition(": ")[0]).name
        report.problems.append(_explain_outside(row, sample.pixels, name))
    elif not own and benchmark_is_empty(row, sample.pixels):
        held = ", ".join(map(str, sample.shares()))
        report.warnings.append(
            f"the {sample.num_labels} labels looked at hold only {held}: no class at all"
        )
    elif not own and (text := _explain_shift(row, sample)):
        report.warnings.append(text)


def benchmark_is_empty(benchmark: Benchmark, pixels: np.ndarray) -> bool:
    """Whether the sampled pixels of a benchmark hold no class, or only the background."""
    first = int(benchmark.background or benchmark.rules.shift < 0)
    return bool(pixels.sum() and not pixels[first:IGNORED].any())


def _explain_shift(benchmark: Benchmark, sample: LabelSample) -> str | None:
    """A sentence if the values are probably those of the published labels less or plus one."""
    shares = sample.shares()
    ignored, most = shares.get(IGNORED, 0.0), SOURCES[benchmark.key].most_ignored
    if ignored > most:
        return (
            f"{100 * ignored:.0f} % of the pixels are {IGNORED}, in the published labels "
            f"{f'less than {100 * most:.0f} %' if most else 'none'}: were they reduced by one "
            "already (0 became 255)? Then every class is off by one. Use the published files"
        )
    common = benchmark.background or benchmark.rules.shift < 0
    if common and 0 not in shares and sample.num_labels >= _ENOUGH_LABELS:
        return "no label holds 0, which most published ones do: are all values off by one?"
    return None


def _explain_outside(benchmark: Benchmark, pixels: np.ndarray, name: str) -> str:
    known = benchmark.rules.known(len(benchmark.classes))
    first, last = int(known[0]), int(known[-1])
    values = [v for v in np.flatnonzero(pixels).tolist() if v > last and v != IGNORED]
    shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    text = (
        f"labels hold values that are no class ({shown}; allowed are {first} to {last} and "
        f"{IGNORED}), for example {name}"
    )
    if values == [last + 1] and not pixels[0]:
        return text + ": no label holds 0, so all values seem one too high. Use the published files"
    if benchmark.key == "cityscapes" and max(values) <= CITYSCAPES_LAST_ID:
        return text + ": these are labelIds under the name of TrainIds; remove and convert them"
    if benchmark.key in ("coco_stuff", "coco_object"):
        return text + ": these are raw COCO-Stuff ids, not TrainIds; remove and convert them"
    if benchmark.key.startswith("context"):
        return text + ": these are the 459 labels of PASCAL Context; convert trainval_merged.json"
    if benchmark.key == "ade20k":
        return text + ": these are not the 150 classes of ADEChallengeData2016"
    return text
