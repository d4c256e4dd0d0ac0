"""What of a benchmark's data is there, what is missing, and which common mistake explains it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from talk2dino.benchmarks.data.context import find_context_json
from talk2dino.benchmarks.data.label_sample import LabelSample, sample_labels
from talk2dino.benchmarks.data.sources import SOURCES, Source
from talk2dino.benchmarks.table import Benchmark
from talk2dino.files import listed
from talk2dino.pictures.images import other_pictures
from talk2dino.textfiles import read_names

ARCHIVES = (".zip", ".tar", ".gz", ".tgz")


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
        names = _some([f"{stem}{benchmark.image_suffix}" for stem in missing])
        report.problems.append(
            f"{len(missing)} of {len(stems)} images are not in {images}: {names}"
        )
    _check_count(len(stems), source, report)
    if not labels.is_dir():
        report.problems.append(_missing_labels(benchmark, root, source))
        return report
    labelled = [stem for stem in stems if (labels / f"{stem}{benchmark.label_suffix}").is_file()]
    report.num_labels = len(labelled)
    if len(labelled) < len(stems):
        report.problems.append(_unlabelled(benchmark, root, source, stems, set(labelled)))
    if labelled and sample_size:
        report.sample = sample_labels(benchmark, root, _spread(labelled, sample_size))
        report.problems += report.sample.problems
        report.warnings += report.sample.warnings
    return report


def _listed_stems(
    benchmark: Benchmark, root: Path, source: Source, report: DataReport
) -> list[str] | None:
    """The images to evaluate, as paths below the folder without suffix; None if unknown."""
    folder = root / benchmark.images
    get_images = _get(source.images, benchmark, root)
    if not folder.is_dir():
        report.problems.append(f"no folder {folder}{_explain_missing(folder, root)}. {get_images}")
        return None
    if benchmark.split is None:
        suffix = benchmark.image_suffix
        stems = sorted(name.removesuffix(suffix) for name in _files_below(folder, suffix))
        if not stems:
            other = _some(sorted(os.listdir(folder))) or "nothing"
            report.problems.append(
                f"{folder} holds no *{suffix} (found: {other}){_explain_missing(folder, root)}. "
                f"{get_images}"
            )
        elif left := pictures_left_out(folder, suffix):
            report.warnings.append(f"{folder}: pictures that do not end in {suffix}: {left}")
        return stems or None
    path = root / benchmark.split
    if not path.is_file():
        text = f"no list {path}. "
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
    return f"no folder {folder}{_explain_missing(folder, root)}. {text}"


def _context_step(root: Path, source: Source, benchmark: Benchmark) -> str:
    found = find_context_json(root / "VOCdevkit" / "VOC2010")
    if found is None:
        return _get(source.labels, benchmark, root)
    command = f"python -m talk2dino data convert --data_root {root} --benchmarks context"
    return f"{found} is there: run {command}"


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
                f"(*{source.conversion} is there, *{benchmark.label_suffix} is not). Run: python "
                f"-m talk2dino data convert --data_root {root} --benchmarks {benchmark.key}"
            )
    names = _some([f"{stem}{benchmark.label_suffix}" for stem in missing])
    text = _get(source.labels, benchmark, root)
    return f"{len(missing)} of {len(stems)} labels are not in {folder}: {names}. {text}"


def _get(text: str, benchmark: Benchmark, root: Path) -> str:
    """Fill in a text of SOURCES."""
    return "Get " + text.format(root=root, key=benchmark.key)


def _explain_missing(folder: Path, root: Path) -> str:
    """An archive that was not unpacked, or the same folder at another place, as a clause."""
    top = root / folder.relative_to(root).parts[0]
    archives = [
        path
        for place in (root, top, *folder.parents)
        if place.is_dir() and place.is_relative_to(root)
        for path in listed(place, "*")
        if path.suffix in ARCHIVES
    ]
    tail = folder.parts[-2:]
    for place, folders, _ in os.walk(root):
        depth = len(Path(place).relative_to(root).parts)
        candidate = Path(place, *tail)
        if candidate.is_dir() and candidate != folder and any(candidate.iterdir()):
            return f", but {candidate} is there: move it, or link it with ln -s"
        folders[:] = sorted(folders) if depth < 4 else []
    if archives:
        names = _some(list(dict.fromkeys(str(path) for path in archives)))
        return f"; these archives are not unpacked: {names}"
    return ""


def _files_below(folder: Path, suffix: str) -> list[str]:
    """Paths below `folder` of the files with this ending, with `/`."""
    return [
        Path(place, name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder, followlinks=True)  # as mmcv does
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    ]


def pictures_left_out(folder: Path, suffix: str) -> str:
    """Names of the pictures below a benchmark's folder that it passes over; empty if none."""
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return other_pictures(path for path in paths if not path.name.endswith(suffix))


def _spread(items: Sequence[str], count: int) -> list[str]:
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places)]


def _some(names: Sequence[str], shown: int = 3) -> str:
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text}, ... ({len(names)})"
