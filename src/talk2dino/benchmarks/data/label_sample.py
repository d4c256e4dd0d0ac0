"""Look at some labels of a benchmark: how often each class occurs, and signs of wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from talk2dino.benchmarks.data.labels import (
    CITYSCAPES_LAST_ID,
    WrongLabelMode,
    forbidden,
    read_labels,
)
from talk2dino.benchmarks.data.sources import SOURCES
from talk2dino.benchmarks.metrics import IGNORED
from talk2dino.benchmarks.table import Benchmark
from talk2dino.pictures.images import check_image

_ENOUGH_LABELS = 3  # of which one holds a value that most labels hold


@dataclass(eq=False)
class LabelSample:
    """What some labels hold."""

    num_labels: int
    """Files looked at."""
    pixels: np.ndarray
    """(256,) int64, pixels of every value as stored."""
    problems: list[str] = field(default_factory=list)
    """Labels that cannot be used."""
    warnings: list[str] = field(default_factory=list)
    """Labels that look wrong."""

    def shares(self) -> dict[int, float]:
        """Stored value -> share of the pixels, the most frequent first."""
        total = max(int(self.pixels.sum()), 1)
        order = np.argsort(-self.pixels, kind="stable")
        return {int(v): float(self.pixels[v]) / total for v in order if self.pixels[v]}


def sample_labels(benchmark: Benchmark, root: Path, stems: Sequence[str]) -> LabelSample:
    """Read the labels of `stems` (paths below the folders, without suffix)."""
    sample = LabelSample(len(stems), np.zeros(256, dtype=np.int64))
    colours, damaged, sizes, outside = [], [], [], []
    for stem in stems:
        path = root / benchmark.labels / f"{stem}{benchmark.label_suffix}"
        try:
            labels = read_labels(path)
        except WrongLabelMode as error:
            colours.append(str(error))
            continue
        except ValueError as error:
            damaged.append(str(error))
            continue
        counts = np.bincount(labels.ravel(), minlength=256)
        sample.pixels += counts
        if counts[_outside(benchmark)].any():
            outside.append(path.name)
        image = root / benchmark.images / f"{stem}{benchmark.image_suffix}"
        if (text := _size_mismatch(image, path, labels)) is not None:
            sizes.append(text)
    for texts in (colours, damaged, sizes):
        if texts:
            more = f" ({len(texts)} of {len(stems)} in the sample)"
            sample.problems.append(texts[0] + more)
    if outside:
        sample.problems.append(_explain_outside(benchmark, sample.pixels, outside))
    elif benchmark_is_empty(benchmark, sample.pixels):
        sample.warnings.append(_explain_empty(sample))
    elif text := _explain_shift(benchmark, sample):
        sample.warnings.append(text)
    return sample


def benchmark_is_empty(benchmark: Benchmark, pixels: np.ndarray) -> bool:
    """Whether the sampled pixels (256,) hold no class, or only the background."""
    first = int(benchmark.background or benchmark.reduce_zero_label)
    return bool(pixels.sum() and not pixels[first:IGNORED].any())


def largest_label(benchmark: Benchmark) -> int:
    """Largest value that a label file may hold besides 255; VOC and Context share files."""
    return benchmark.num_classes - 1 + int(benchmark.reduce_zero_label)


def _outside(benchmark: Benchmark) -> slice:
    return slice(largest_label(benchmark) + 1, IGNORED)


def _size_mismatch(image: Path, label: Path, labels: np.ndarray) -> str | None:
    """A sentence if the image's header gives another size; images are checked elsewhere."""
    try:
        height, width = check_image(image)
    except PermissionError:
        return forbidden(image)
    except (ValueError, OSError) as error:
        return str(error)
    if (height, width) == labels.shape:
        return None
    return (
        f"{label} is {labels.shape[1]} x {labels.shape[0]} pixels, its image {width} x {height}: "
        "they do not belong together"
    )


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
    common = benchmark.background or benchmark.reduce_zero_label
    if common and 0 not in shares and sample.num_labels >= _ENOUGH_LABELS:
        return "no label holds 0, which most published ones do: are all values off by one?"
    return None


def _explain_outside(benchmark: Benchmark, pixels: np.ndarray, names: Sequence[str]) -> str:
    values = (np.flatnonzero(pixels[_outside(benchmark)]) + largest_label(benchmark) + 1).tolist()
    shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    first = int(benchmark.reduce_zero_label)
    text = (
        f"labels hold values that are no class ({shown}; allowed are {first} to "
        f"{largest_label(benchmark)} and {IGNORED}), for example {names[0]}"
    )
    if values == [largest_label(benchmark) + 1] and not pixels[0]:
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


def _explain_empty(sample: LabelSample) -> str:
    held = ", ".join(map(str, sample.shares()))
    return f"the {sample.num_labels} labels looked at hold only {held}: no class at all"
