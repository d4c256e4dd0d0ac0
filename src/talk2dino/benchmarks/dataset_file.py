"""A data set as one YAML file: where its images and labels are, and what the labels mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.benchmarks.data.labels import LabelRules, Value
from talk2dino.benchmarks.metrics import WIDE_IGNORED
from talk2dino.config import build
from talk2dino.sizes import Protocol
from talk2dino.textfiles import check_once, read_names, read_text, read_yaml

if TYPE_CHECKING:
    from talk2dino.segmenter import ClassWords

_SYNONYMS = {
    "img_suffix": "image_suffix",
    "seg_map_suffix": "label_suffix",
    "ann_file": "split",
    "ignore_index": "ignore",
    "data_prefix.img_path": "images",
    "data_prefix.seg_map_path": "labels",
    "metainfo.classes": "classes",
    "metainfo.palette": "palette",
}
"""Keys of MMSegmentation 1.x -> ours."""


@dataclass(frozen=True)
class Benchmark:
    """What is evaluated and where its files are; the keys of docs/data_sets.md."""

    key: str
    """What results call it: the file's `name`."""
    title: str
    """For tables."""
    images: str
    """Folder of the images below the root."""
    labels: str
    """Folder of the labels below the root."""
    classes: tuple[str, ...]
    """Names by id, the background included."""
    words: tuple[tuple[str, ...], ...] = ()
    """By which words classes are looked for, one tuple per class; none: by a method's own."""
    class_file: str = ""
    """File below the root whose names stand in place of `classes`, where it is there."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """RGB by id; none: generated."""
    readme_name: str = ""
    """What the published README and its configs folder call it."""
    dataset: str = ""
    """Class of MMSegmentation that `--reader mmseg` uses; none: its CustomDataset."""
    split: str | None = None
    """File that lists the images by stem, or None for all that have a label."""
    image_suffixes: tuple[str, ...] = (".jpg",)
    """What an image's file name ends with ..."""
    label_suffix: str = ".png"
    """... and by what it is replaced in its label's."""
    rules: LabelRules = field(default_factory=LabelRules)
    """What the values of a label file mean."""
    background: bool = False
    """Class 0 is the background, found by threshold."""
    bg_thresh: float | None = None
    """That threshold; None for the method's."""
    clean_background: bool = False
    """Background cleaning is part of the published protocol."""
    protocol: Protocol = field(default_factory=Protocol)
    """Sizes."""
    sizes: tuple[tuple[str, int], ...] = ()
    """Those of them that the file gives: no method changes them."""
    folders: tuple[Path, ...] = ()
    """Where the files of an own data set may be besides the data root; none for benchmarks."""

    @property
    def image_suffix(self) -> str:
        """The first one."""
        return self.image_suffixes[0]

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
        colours = [known.get(name) for name in names]
        palette = tuple(colour for colour in colours if colour is not None)
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


@dataclass(frozen=True)
class _Keys:
    """What a file may say; docs/data_sets.md has the meaning of every key."""

    images: str
    labels: str
    classes: str | list[Any] | dict[int, Any]
    name: str = ""
    title: str = ""
    data_root: str = ""
    image_suffix: str | list[str] = ".jpg"
    label_suffix: str = ".png"
    split: str | None = None
    ignore: int | list[int] | None = None
    shift: int | None = None
    reduce_zero_label: bool = False
    values: dict[int, int] | list[tuple[tuple[int, int, int], int]] | None = None
    unknown: str | None = None
    background: bool = False
    bg_thresh: float | None = None
    palette: str | list[tuple[int, int, int]] = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    type: str = ""
    class_file: str = ""
    readme_name: str = ""
    clean_background: bool = False

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):
            raise ValueError(
                f"the name {self.name!r} becomes part of file names: letters, digits, . _ and -"
            )
        if not self.image_suffix or not self.images or not self.labels:
            raise ValueError("images, labels and image_suffix must not be empty")
        if self.bg_thresh is not None and not self.background:
            raise ValueError("bg_thresh without `background: true` means nothing")
        if self.unknown not in (None, "ignore") or (self.unknown and self.values is None):
            raise ValueError("unknown may be `ignore`, of what is in no `values`, or absent")
        if self.reduce_zero_label and (self.shift, self.values) != (None, None):
            raise ValueError(
                "reduce_zero_label is a shift of -1 and ignores 0: no shift or values beside it"
            )
        grey = [label for value, _ in self.pairs for label in value if len(value) == 1]
        colours = [part for value, _ in self.pairs for part in value if len(value) == 3]
        for label in (*self.ignored, *grey, *(label for _, label in self.pairs)):
            if not 0 <= label <= WIDE_IGNORED:
                raise ValueError(f"ignore and values must be label values, found {label}")
        if not all(0 <= part <= 255 for part in colours):
            raise ValueError("values: a colour is [r, g, b] of 0 to 255")

    @property
    def ignored(self) -> tuple[int, ...]:
        """Label values without a class."""
        listed = self.ignore if isinstance(self.ignore, list) else [self.ignore]
        found = [label for label in listed if label is not None]
        return (0, *found) if self.reduce_zero_label else tuple(found)

    @property
    def pairs(self) -> tuple[tuple[Value, int], ...]:
        """`values`, of grey pixels and of coloured ones alike."""
        if isinstance(self.values, dict):
            return tuple(((value,), label) for value, label in self.values.items())
        return tuple(self.values or ())


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
    keys = build(_Keys, _ours(read_yaml(path), source), source)
    folders = tuple(dict.fromkeys(base / keys.data_root for base in (path.parent, Path(data_root))))
    classes, words, ids = _classes(keys.classes, f"{source}: classes", folders)
    if keys.background and "background" in map(str.lower, classes[1:]):
        raise ValueError(f"{source}: with `background: true`, class 0 alone is the background.")
    check_once([value for value, _ in keys.pairs], f"{source}: values")
    name, suffixes = keys.name or path.stem, keys.image_suffix
    shifted = keys.shift is not None or keys.values is None
    return Benchmark(
        key=name,
        title=keys.title or name,
        images=keys.images,
        labels=keys.labels,
        classes=classes,
        words=words,
        class_file=keys.class_file,
        palette=_palette(keys.palette, len(classes), f"{source}: palette", folders),
        readme_name=keys.readme_name or name,
        dataset=keys.type,
        split=keys.split,
        image_suffixes=(suffixes,) if isinstance(suffixes, str) else tuple(suffixes),
        label_suffix=keys.label_suffix,
        rules=LabelRules(
            ignore=keys.ignored,
            default_ignored=keys.ignore is None,
            shift=-1 if keys.reduce_zero_label else keys.shift or 0,
            values=keys.pairs,
            others_shifted=shifted,
            unknown_ignored=keys.unknown is not None,
            ids=ids,
        ),
        background=keys.background,
        bg_thresh=keys.bg_thresh,
        clean_background=keys.clean_background,
        protocol=build(Protocol, keys.protocol, f"{source}: protocol"),
        sizes=tuple(keys.protocol.items()),
        folders=folders,
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
    given: str | list[Any] | dict[int, Any], where: str, folders: Sequence[Path]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Names, words, and the ids if they are not 0, 1, 2, ..."""
    ids: tuple[int, ...] = ()
    lines: list[tuple[str, Any]]
    if isinstance(given, str):
        listing = find_text(given, folders, where)
        where = str(listing)
        numbered = [(n, line.strip()) for n, line in enumerate(_lines(listing), start=1)]
        lines = [(f"line {n}", line) for n, line in numbered if line and not line.startswith("#")]
    elif isinstance(given, dict):
        lines = [(f"id {key}", given[key]) for key in sorted(given)]
        ids = tuple(sorted(given))
        ids = () if ids == tuple(range(len(ids))) else ids
    else:
        lines = [(f"class {place}", line) for place, line in enumerate(given)]
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
    several = any(len(found) > 1 for found in words)
    return tuple(found[0] for found in words), tuple(words) if several else (), ids


def _lines(path: Path) -> list[str]:
    return re.split(r"\r\n?|\n", read_text(path))


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


def _palette(
    given: str | list[tuple[int, int, int]], count: int, where: str, folders: Sequence[Path]
) -> tuple[tuple[int, int, int], ...]:
    if isinstance(given, str):
        lines = _lines(find_text(given, folders, where)) if given else []
        given = [tuple(map(int, line.split())) for line in lines if line.strip()]  # type: ignore[misc]
    if given and (
        len(given) != count
        or not all(len(rgb) == 3 and 0 <= min(rgb) <= max(rgb) <= 255 for rgb in given)
    ):
        raise ValueError(f"{where}: {count} classes need as many [r, g, b] of 0 to 255.")
    return tuple(given)
