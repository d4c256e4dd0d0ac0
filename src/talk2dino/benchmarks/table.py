"""The benchmarks: YAML files of configs/datasets that come with the project."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from talk2dino.benchmarks.dataset_file import Benchmark, read_dataset
from talk2dino.config import check_name, split_names
from talk2dino.files import listed, shipped

__all__ = ["BENCHMARKS", "Benchmark", "find_benchmark", "find_benchmarks"]

_FOLDER = shipped("configs/datasets")


def _shipped(key: str, data_root: str | Path = "data") -> Benchmark:
    """The data set of a file that comes with the project: all else is below the data root."""
    row = read_dataset(_FOLDER / f"{key}.yaml", data_root)
    return dataclasses.replace(row, folders=())


BENCHMARKS: dict[str, Benchmark] = {
    key: _shipped(key)
    for key in (
        *("voc", "context", "coco_object", "voc20", "context59", "coco_stuff", "cityscapes"),
        "ade20k",
    )
}
"""Key -> row, in the order of the paper's table."""

DRAWN_WORLD = _shipped("toy")
"""The quickstart's own data, in VOC layout; no part of `all`."""

STUFF_BACKGROUND = _shipped("coco_stuff_bg")
"""COCO-Stuff where unlabelled pixels are a class; the same files."""


def find_benchmark(name: str, data_root: str | Path = "data") -> Benchmark:
    """The data set of a key, a README name, a dataset class or a YAML file.

    Keys come first: `voc` and `context` are the ones with background, which the README calls
    `voc_bg` and `context_bg`.

    Args:
        name: as above; what ends in .yaml or .yml is a file.
        data_root: where class names are looked for: those of the drawn world, and a file's.

    Raises:
        ValueError: no benchmark has this name; a file that means nothing, or whose data set has
            the name of a benchmark.
        FileNotFoundError: the file is not there, or one that it names.
    """
    rows = [*BENCHMARKS.values(), STUFF_BACKGROUND, DRAWN_WORLD]
    names = {row.type: row for row in rows if row.type}
    names |= {row.readme_name: row for row in rows}
    names |= {row.key: row for row in rows}
    if name in names:
        return names[name].with_own_names(data_root)
    files = {path.stem: path for path in listed(_FOLDER, "*.yaml")}
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.stem not in files or not path.exists() or not path.samefile(files[path.stem]):
            row = read_dataset(path, data_root)
            if row.key in files:
                raise ValueError(
                    f"{path}: {row.key} is the name of a benchmark, with which its results would "
                    "be mixed up. Give another one with `name:`."
                )
            return row
        name = path.stem
    if name in names or name in files:
        row = names[name] if name in names else _shipped(name, data_root)
        return row.with_own_names(data_root)
    keys = [*(row.key for row in rows), *sorted(set(files).difference(row.key for row in rows))]
    others = [row.readme_name for row in rows if row.readme_name not in keys]
    check_name("benchmark", name, [*keys, *others, "or a YAML file"], similar=[*keys, *others])
    raise AssertionError("check_name accepts only what was handled above")


def find_benchmarks(names: str | Sequence[str], data_root: str | Path = "data") -> list[Benchmark]:
    """The benchmarks of a comma-separated list or of `all`, each once; see `find_benchmark`.

    Raises:
        ValueError: an unknown name, no name at all, or one name for two data sets.
    """
    words = split_names(names) if isinstance(names, str) else names
    found: dict[str, Benchmark] = {}
    for word in (word.strip() for word in words):
        if word == "all":
            found |= BENCHMARKS
        elif word:
            row = find_benchmark(word, data_root)
            if found.setdefault(row.key, row) != row:
                raise ValueError(f"two data sets are called {row.key}. Rename one with `name:`.")
    if not found:
        raise ValueError(f"no benchmark named. Known: all, {', '.join(BENCHMARKS)}.")
    return list(found.values())
