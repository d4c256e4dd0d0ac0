"""Data sets as YAML files: where images and labels are, and what the labels mean; the benchmarks.

The benchmarks are the files of configs/datasets, which come with the project.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.benchmarks.data.labels import WIDE_IGNORED, LabelRules, Value
from talk2dino.config import build, check_between, check_name, naming, split_names
from talk2dino.files import listed, shipped
from talk2dino.sizes import Protocol
from talk2dino.textfiles import check_once, read_lines, read_names, read_yaml

if TYPE_CHECKING:
    from talk2dino.segmenter import ClassWords

_FOLDER = shipped("configs/datasets")
_SYNONYMS = {
    "image_suffix": "image_suffixes",
    "img_suffix": "image_suffixes",
    "seg_map_suffix": "label_suffix",
    "ann_file": "split",
    "ignore_index": "ignore",
    "data_prefix.img_path": "images",
    "data_prefix.seg_map_path": "labels",
    "metainfo.classes": "classes",
    "metainfo.palette": "palette",
}
"""Keys of MMSegmentation 1.x, and another spelling -> ours."""


@dataclass(frozen=True)
class Source:
    """What is publicly known about one benchmark's files, for `data check`."""

    counts: tuple[int, ...]
    """Official numbers of images; more than one where two lists are in use."""
    get: str
    """Where to get images and labels, and what to unpack where; {root} and {key} are replaced."""
    other_lists: dict[int, str]
    """Number of images of another list -> which list that is."""
    outside: str
    """What labels with values that are no class probably are."""
    raw_suffix: str = ""
    """Ending of the label files that `data convert` reads, in place of `label_suffix`."""
    lookalikes: dict[str, str] = field(default_factory=dict)
    """Beginning of a folder's name -> why what is in it cannot stand in."""
    most_ignored: float = 1.0
    """Largest share of 255 among the labels; more, if 0 was a class and has become 255."""


@dataclass(frozen=True)
class Benchmark:
    """What is evaluated and where its files are: the keys of docs/data_sets.md, and more."""

    name: str
    """What results call it: the file's stem unless it says another one."""
    images: str
    """Folder of the images below the root."""
    labels: str
    """Folder of the labels below the root."""
    classes: tuple[str, ...]
    """Names by id, the background included."""
    title: str = ""
    class_file: str = ""
    """File below the root whose names stand in place of `classes`, where it is there."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """RGB by id; none: generated."""
    readme_name: str = ""
    """What the published README and its configs folder call it."""
    type: str = ""
    """Class of MMSegmentation that `--reader mmseg` uses; none: its CustomDataset."""
    split: str | None = None
    """File that lists the images by stem, or None for all that have a label."""
    image_suffixes: tuple[str, ...] = (".jpg",)
    """What an image's file name ends with ..."""
    label_suffix: str = ".png"
    """... and by what it is replaced in its label's."""
    background: bool = False
    """Class 0 is the background, found by threshold."""
    bg_thresh: float | None = None
    """That threshold; None for the method's."""
    clean_background: bool = False
    """Background cleaning is part of the published protocol."""
    protocol: Protocol = field(default_factory=Protocol)
    source: Source | None = field(default=None, compare=False)
    """Where it comes from; a name in a file is that of another file, which has it."""
    words: tuple[tuple[str, ...], ...] = ()
    """By which words classes are looked for, one tuple per class; none: by a method's own."""
    rules: LabelRules = field(default_factory=LabelRules)
    """What the values of a label file mean."""
    sizes: tuple[tuple[str, int], ...] = ()
    """Those of the protocol that the file gives: no method changes them."""
    folders: tuple[Path, ...] = ()
    """Where the files of an own data set may be besides the data root; none for benchmarks."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):
            raise ValueError(
                f"the name {self.name!r} becomes part of file names: letters, digits, . _ and -"
            )
        if not all((self.images, self.labels, *self.image_suffixes)) or not self.image_suffixes:
            raise ValueError("images, labels and image_suffix must not be empty")
        if self.bg_thresh is not None:
            check_between(0, 1, bg_thresh=self.bg_thresh)
            if not self.background:
                raise ValueError("bg_thresh without `background: true` means nothing")
        if self.background and "background" in map(str.lower, self.classes[1:]):
            raise ValueError("with `background: true`, class 0 alone is the background")
        colours = [part for colour in self.palette for part in colour]
        if colours and (len(self.palette) != len(self.classes) or not _are_bytes(colours)):
            raise ValueError(f"palette: {len(self.classes)} classes need as many [r, g, b] to 255")

    @property
    def key(self) -> str:
        return self.name

    def with_protocol(self, protocol: Protocol) -> Benchmark:
        """With the sizes of a method, where the file gives none."""
        sizes: dict[str, Any] = dict(self.sizes)
        return dataclasses.replace(self, protocol=dataclasses.replace(protocol, **sizes))

    def with_own_names(self, data_root: str | Path) -> Benchmark:
        """With the class names that the data themselves bring, in the same colours."""
        listing = Path(data_root, self.class_file)
        if not self.class_file or not listing.is_file():
            return self
        names = read_names(listing, numbered=True)
        known = dict(zip(self.classes, self.palette, strict=bool(self.palette)))
        palette = tuple(known[name] for name in names if name in known)
        palette = palette if len(palette) == len(names) else ()
        return dataclasses.replace(self, classes=tuple(names), palette=palette)

    def class_words(self, words: ClassWords) -> ClassWords:
        """A method's words, but this data set's own where it has aliases."""
        own = {n: w for n, w in zip(self.classes, self.words, strict=False) if len(w) > 1}
        if not own:
            return words
        background = own.pop(self.classes[0], ())[1:] if self.background else ()
        return dataclasses.replace(
            words,
            of=lambda name: own.get(name) or words.of(name),
            background=background or words.background,
        )


_MADE = ("words", "rules", "sizes", "folders")
_KEYS = [name for name in Benchmark.__dataclass_fields__ if name not in _MADE]
"""What a file may say, besides the values of its labels."""


@dataclass(frozen=True)
class _LabelKeys:
    """What a file says of the values of labels."""

    ignore: int | list[int] | None = None
    shift: int | None = None
    reduce_zero_label: bool = False
    values: dict[int, int] | list[tuple[tuple[int, int, int], int]] | None = None
    unknown: str | None = None

    def rules(self, ids: tuple[int, ...]) -> LabelRules:
        """What that means for the classes of these ids."""
        if self.unknown not in (None, "ignore") or (self.unknown and self.values is None):
            raise ValueError("unknown may be `ignore`, of what is in no `values`, or absent.")
        if self.reduce_zero_label and (self.shift, self.values) != (None, None):
            raise ValueError(
                "reduce_zero_label is a shift of -1 and ignores 0: no shift or values beside it."
            )
        values = self.values or ()
        given: list[tuple[Value, int]] = (
            [((value,), label) for value, label in values.items()]
            if isinstance(values, dict)
            else list(values)
        )
        check_once([value for value, _ in given], "values")
        zero = [0] if self.reduce_zero_label else []
        ignore = zero + (self.ignore if isinstance(self.ignore, list) else [self.ignore or 0])
        ignore = zero if self.ignore is None else ignore
        for label in (*ignore, *(label for _, label in given), *(v[0] for v, _ in given)):
            if not 0 <= label <= WIDE_IGNORED:
                raise ValueError(f"ignore and values must be label values, found {label}.")
        if not _are_bytes([part for value, _ in given for part in value if len(value) == 3]):
            raise ValueError("values: a colour is [r, g, b] of 0 to 255.")
        return LabelRules(
            ignore=tuple(ignore),
            default_ignored=self.ignore is None,
            shift=-1 if self.reduce_zero_label else self.shift or 0,
            values=tuple(given),
            others_shifted=self.shift is not None or self.values is None,
            unknown_ignored=self.unknown is not None,
            ids=ids,
        )


def _are_bytes(numbers: Sequence[int]) -> bool:
    return all(0 <= number <= 255 for number in numbers)


def read_dataset(path: str | Path, data_root: str | Path = "data") -> Benchmark:
    """The data set of a YAML file; images and labels are not looked at.

    Args:
        path: the file; its keys are those of docs/data_sets.md, or MMSegmentation 1.x's.
        data_root: where its text files are looked for besides its own folder.

    Raises:
        FileNotFoundError: the file or one that it names is not there.
        ValueError: an unknown key, or a value that means nothing; says which.
    """
    path, source = Path(path), str(path)
    given = {"name": path.stem} | _ours(read_yaml(path), source)
    of_values = _LabelKeys.__dataclass_fields__
    with naming(source):
        for key in given:
            check_name("key", key, [*_KEYS, *of_values, "data_root"])
    own = given.pop("data_root", "")
    folders = tuple(dict.fromkeys(base / str(own) for base in (path.parent, Path(data_root))))
    names = [name for name in given if name in of_values]
    of_labels = build(_LabelKeys, {name: given.pop(name) for name in names}, source)
    words, ids = _classes(given.get("classes"), f"{source}: classes", folders)
    given["classes"] = [found[0] for found in words]
    if isinstance(given.get("palette"), str):
        lines = read_lines(find_text(given["palette"], folders, f"{source}: palette"))
        given["palette"] = [[int(n) for n in line.split()] for line in lines if line.strip()]
    if isinstance(given.get("image_suffixes"), str):
        given["image_suffixes"] = [given["image_suffixes"]]
    if isinstance(given.get("source"), str):
        other = find_text(given["source"], folders, f"{source}: source")
        given["source"] = read_yaml(other).get("source")
    with naming(source):
        rules = of_labels.rules(ids)
    row = build(Benchmark, given, source)
    return dataclasses.replace(
        row,
        title=row.title or row.name,
        readme_name=row.readme_name or row.name,
        words=words if any(len(found) > 1 for found in words) else (),
        rules=rules,
        sizes=tuple((given.get("protocol") or {}).items()),
        folders=() if path.resolve().parent == _FOLDER.resolve() else folders,
    )


def _ours(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """With our keys in place of MMSegmentation's."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        nested = key in ("data_prefix", "metainfo") and isinstance(value, dict)
        for inner, part in value.items() if nested else [(None, value)]:
            name = f"{key}.{inner}" if nested else str(key)
            known = _SYNONYMS.get(name, name)
            if known in flat:
                raise ValueError(f"{source}: {known} is given twice, once as {name}. Keep one.")
            flat[known] = part
    return flat


def _classes(
    given: Any, where: str, folders: Sequence[Path]
) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """The words of every class, its name first, and the ids if they are not 0, 1, 2, ..."""
    ids: tuple[int, ...] = ()
    lines: list[tuple[str, Any]]
    if isinstance(given, str):
        listing = find_text(given, folders, where)
        where = str(listing)
        numbered = [(n, line.strip()) for n, line in enumerate(read_lines(listing), start=1)]
        lines = [(f"line {n}", line) for n, line in numbered if line and not line.startswith("#")]
    elif isinstance(given, dict) and all(isinstance(key, int) for key in given):
        lines = [(f"id {key}", given[key]) for key in sorted(given)]
        ids = tuple(sorted(given))
        ids = () if ids == tuple(range(len(ids))) else ids
    elif isinstance(given, list):
        lines = [(f"class {place}", line) for place, line in enumerate(given)]
    else:
        raise ValueError(
            f"{where} must be a list of names, a text file, or ids with names, found {given!r:.80}."
        )
    if not 0 < len(lines) <= WIDE_IGNORED or not all(0 <= i <= WIDE_IGNORED for i in ids):
        raise ValueError(
            f"{where}: {len(lines)} classes; 1 to {WIDE_IGNORED} can be evaluated, with such ids."
        )
    owners: dict[str, str] = {}
    words = []
    for place, line in lines:
        if not isinstance(line, str):
            raise ValueError(
                f"{where}, {place}: a class name is text, found {line!r}. Write it in quotes."
            )
        # A name alone is kept as it is: MMSegmentation's "bed " is in recorded results.
        found = tuple(word.strip() for word in line.split(";")) if ";" in line else (line,)
        for word in found:
            if not word.strip():
                raise ValueError(f"{where}, {place}: an empty word in {line!r}.")
            if word in owners:
                raise ValueError(f"{where}, {place}: {word!r} is there twice, see {owners[word]}.")
            owners[word] = place
        words.append(found)
    return tuple(words), ids


def find_text(name: str, folders: Sequence[Path], where: str) -> Path:
    """A file that a YAML file names: below the first folder that has it.

    Raises:
        FileNotFoundError: none has.
    """
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    tried = " or ".join(str(folder / name) for folder in folders)
    raise FileNotFoundError(f"{where}: no file {tried}. Put it there, or choose --data_root.")


BENCHMARKS: dict[str, Benchmark] = {
    key: read_dataset(_FOLDER / f"{key}.yaml")
    for key in (
        *("voc", "context", "coco_object", "voc20", "context59", "coco_stuff", "cityscapes"),
        "ade20k",
    )
}
"""Key -> row, in the order of the paper's table."""

DRAWN_WORLD = read_dataset(_FOLDER / "toy.yaml")
"""The quickstart's own data, in VOC layout; no part of `all`."""

STUFF_BACKGROUND = read_dataset(_FOLDER / "coco_stuff_bg.yaml")
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
    rows = {**BENCHMARKS, STUFF_BACKGROUND.key: STUFF_BACKGROUND, DRAWN_WORLD.key: DRAWN_WORLD}
    names = {row.type: row for row in rows.values() if row.type}
    names |= {row.readme_name: row for row in rows.values()} | rows
    files = {path.stem: path for path in listed(_FOLDER, "*.yaml")}
    known: dict[str, Benchmark | Path] = {**files, **names}
    found = Path(name) if Path(name).suffix in (".yaml", ".yml") else known.get(name)
    if found is None:
        keys = [*rows, *sorted(set(files).difference(rows))]
        others = [row.readme_name for row in rows.values() if row.readme_name not in keys]
        check_name("benchmark", name, [*keys, *others, "or a YAML file"], similar=[*keys, *others])
    assert found is not None, "check_name accepts only what was found"
    row = read_dataset(found, data_root) if isinstance(found, Path) else found
    if row.folders and row.key in files:
        raise ValueError(
            f"{found}: {row.key} is the name of a benchmark, with which its results would "
            "be mixed up. Give another one with `name:`."
        )
    return row if row.folders else row.with_own_names(data_root)


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


def check_data_root(root: str | Path) -> None:
    """Raise FileNotFoundError unless the folder of all benchmarks is there."""
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"there is no data folder {root}. Choose it with --data_root; `python -m talk2dino "
            "data check` says what belongs there and where to get it. (The drawn world is in "
            "quickstart/data after `python -m talk2dino quickstart`.)"
        )
