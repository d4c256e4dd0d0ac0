"""A data set as one YAML file: where its images and labels are, and what the labels mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.benchmarks.data.labels import LabelRules
from talk2dino.benchmarks.metrics import WIDE_IGNORED
from talk2dino.config import build, check_name
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
_KEYS = (
    *("name", "title", "images", "labels", "image_suffix", "label_suffix", "split", "classes"),
    *("ignore", "shift", "reduce_zero_label", "values", "unknown", "background", "bg_thresh"),
    *("palette", "protocol", "data_root", "type", "readme_name", "clean_background"),
    "class_file",
)


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
    content = _ours(read_yaml(path), source)
    own = str(_text(content, "data_root", source) or "")
    folders = tuple(dict.fromkeys(base / own for base in (path.parent, Path(data_root))))
    name = _text(content, "name", source) or path.stem
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(
            f"{source}: the name {name!r} becomes part of file names: letters, digits, . _ and - "
            "only. Give another one with `name:`."
        )
    classes, words, ids = _classes(content, source, folders)
    background = _flag(content, "background", source)
    if background and "background" in map(str.lower, classes[1:]):
        raise ValueError(f"{source}: with `background: true`, class 0 alone is the background.")
    sizes = content.get("protocol") or {}
    threshold = content.get("bg_thresh")
    if threshold is not None and not background:
        raise ValueError(f"{source}: bg_thresh without `background: true` means nothing.")
    if threshold is not None and not isinstance(threshold, int | float):
        raise ValueError(f"{source}: bg_thresh must be a number, found {threshold!r}.")
    suffixes = content.get("image_suffix", ".jpg")
    suffixes = tuple(suffixes) if isinstance(suffixes, list) else (suffixes,)
    if not suffixes or not all(isinstance(suffix, str) and suffix for suffix in suffixes):
        raise ValueError(f"{source}: image_suffix must be text or a list of it, like .jpg.")
    return Benchmark(
        key=name,
        title=_text(content, "title", source) or name,
        images=_text(content, "images", source, needed=True),
        labels=_text(content, "labels", source, needed=True),
        classes=classes,
        words=words,
        class_file=_text(content, "class_file", source),
        palette=_palette(content.get("palette"), len(classes), source, folders),
        readme_name=_text(content, "readme_name", source) or name,
        dataset=_text(content, "type", source),
        split=_text(content, "split", source) or None,
        image_suffixes=suffixes,
        label_suffix=_text(content, "label_suffix", source) or ".png",
        rules=_rules(content, ids, len(classes), source),
        background=background,
        bg_thresh=None if threshold is None else float(threshold),
        clean_background=_flag(content, "clean_background", source),
        protocol=build(Protocol, sizes, f"{source}: protocol"),
        sizes=tuple(sizes.items()),
        folders=folders,
    )


def _ours(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """With our keys in place of MMSegmentation's."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        parts = {key: value}
        if key in ("data_prefix", "metainfo"):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {key} must hold 'key: value' lines, found {value!r}")
            parts = {f"{key}.{inner}": part for inner, part in value.items()}
        for name, part in parts.items():
            known = _SYNONYMS.get(name, name)
            try:
                check_name("key", str(known), _KEYS, similar=[*_KEYS, *_SYNONYMS])
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
            if known in flat:
                raise ValueError(f"{source}: {known} is given twice, once as {name}. Keep one.")
            flat[known] = part
    return flat


def _text(content: Mapping[str, Any], key: str, source: str, needed: bool = False) -> str:
    value = content.get(key)
    if isinstance(value, str) and value.strip():
        return value
    if value is None and not needed:
        return ""
    raise ValueError(f"{source}: {key} must be text, found {value!r}.")


def _flag(content: Mapping[str, Any], key: str, source: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{source}: {key} must be true or false, found {value!r}.")
    return value


def _is_label(value: Any) -> bool:
    return type(value) is int and 0 <= value <= WIDE_IGNORED


def _classes(
    content: Mapping[str, Any], source: str, folders: Sequence[Path]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Names, words, and the ids if they are not 0, 1, 2, ..."""
    given, ids = content.get("classes"), ()
    where = f"{source}: classes"
    if isinstance(given, str):
        listing = find_text(given, folders, where)
        numbered = [(n, line.strip()) for n, line in enumerate(_lines(listing), start=1)]
        lines = [(f"line {n}", line) for n, line in numbered if line and not line.startswith("#")]
        where = str(listing)
    elif isinstance(given, dict) and given and all(_is_label(key) for key in given):
        lines = [(f"id {key}", given[key]) for key in sorted(given)]
        ids = tuple(sorted(given))
        ids = () if ids == tuple(range(len(ids))) else ids
    elif isinstance(given, list):
        lines = [(f"class {place}", line) for place, line in enumerate(given)]
    else:
        raise ValueError(
            f"{where} must be a list of names, the path of a text file, or a mapping of ids "
            f"(0 to {WIDE_IGNORED}) to names, found {given!r}."
        )
    if not 0 < len(lines) <= WIDE_IGNORED:
        raise ValueError(f"{where}: {len(lines)} classes; 1 to {WIDE_IGNORED} can be evaluated.")
    owners: dict[str, str] = {}
    words = []
    line: Any
    for place, line in lines:
        if not isinstance(line, str):
            hint = " Write it in quotes." if isinstance(line, bool | int | float) else ""
            raise ValueError(f"{where}, {place}: a class name is text, found {line!r}.{hint}")
        # A name alone is kept as it is: MMSegmentation's "bed " is in recorded results.
        found = tuple(word.strip() for word in line.split(";")) if ";" in line else (line,)
        if not all(map(str.strip, found)):
            raise ValueError(f"{where}, {place}: an empty word in {line!r}.")
        for word in found:
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
    given: Any, count: int, source: str, folders: Sequence[Path]
) -> tuple[tuple[int, int, int], ...]:
    where = f"{source}: palette"
    if isinstance(given, str):
        lines = [line.split() for line in _lines(find_text(given, folders, where))]
        given = [[int(n) if n.isdecimal() else n for n in line] for line in lines if line]
    for colour in given or ():
        _check_colour(colour, where)
    if given and len(given) != count:
        raise ValueError(f"{where} has {len(given)} colours for {count} classes.")
    return tuple(map(tuple, given or ()))


def _check_colour(colour: Any, where: str) -> None:
    fits = isinstance(colour, list) and len(colour) == 3
    if not fits or not all(type(part) is int and 0 <= part <= 255 for part in colour):
        raise ValueError(f"{where}: a colour is [r, g, b] of 0 to 255, found {colour!r}.")


def _rules(content: Mapping[str, Any], ids: tuple[int, ...], count: int, source: str) -> LabelRules:
    ignore, shift, values = (content.get(key) for key in ("ignore", "shift", "values"))
    unknown = content.get("unknown")
    if unknown not in (None, "ignore"):
        raise ValueError(f"{source}: unknown must be `ignore` or absent, found {unknown!r}.")
    if unknown is not None and values is None:
        raise ValueError(f"{source}: unknown says what is in no `values`, which are absent.")
    if shift is not None and type(shift) is not int:
        raise ValueError(f"{source}: shift must be a whole number, found {shift!r}.")
    if ignore is not None:
        ignore = ignore if isinstance(ignore, list) else [ignore]
        if not all(map(_is_label, ignore)):
            raise ValueError(f"{source}: ignore must be label values, found {ignore!r}.")
    if _flag(content, "reduce_zero_label", source):
        if shift is not None or values is not None:
            raise ValueError(
                f"{source}: reduce_zero_label is a shift of -1 and ignores 0. Leave it out, or "
                "shift and values."
            )
        shift = -1
    zero = (0,) if content.get("reduce_zero_label") else ()
    return LabelRules(
        ignore=zero + tuple(ignore or ()),
        default_ignored=ignore is None,
        shift=shift or 0,
        values=() if values is None else _values(values, source),
        others_shifted=shift is not None or values is None,
        unknown_ignored=unknown is not None,
        ids=ids,
    )


def _values(given: Any, source: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """What is said of single values: a mapping of grey ones, or pairs of colours and ids."""
    where = f"{source}: values"
    if isinstance(given, dict):
        pairs = [([value], label) for value, label in given.items()]
    elif isinstance(given, list) and all(isinstance(p, list) and len(p) == 2 for p in given):
        pairs = [(colour, label) for colour, label in given]
        for colour, _ in pairs:
            _check_colour(colour, where)
    else:
        raise ValueError(
            f"{where} must be a mapping of file values to class ids, or a list of "
            f"[[r, g, b], class id], found {given!r:.80}."
        )
    for value, label in pairs:
        if not _is_label(value[0]) or not _is_label(label):
            raise ValueError(f"{where}: {value[0]!r}: {label!r} are no label value and class id.")
    check_once([tuple(value) for value, _ in pairs], where)
    return tuple((tuple(value), label) for value, label in pairs)
