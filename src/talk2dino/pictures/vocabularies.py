"""Vocabularies: classes with their words, from text files, by name, or as they are given."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.config import as_texts
from talk2dino.files import shipped
from talk2dino.textfiles import read_lines, read_names, read_yaml

if TYPE_CHECKING:
    import numpy as np

    from talk2dino.segmenter import ClassWords

BACKGROUND = "background"  # as in segmenter.py, which needs PyTorch
VOCABULARIES = {"voc": "voc", "coco": "coco_object", "ade": "ade20k", "drawn_world": "toy"}
"""Name -> benchmark that the classes are of."""
_PALETTES = {"voc": "voc20", "coco_object": "coco_stuff", "toy": "toy"}  # those begin with theirs
_OTHER_LISTS = ("pascal", "context", "cityscapes", "stuff", "ade20k", "coco_object", "coco_stuff")


@dataclass(frozen=True)
class Vocabulary:
    """Classes in order; the background does not count."""

    names: tuple[str, ...]
    """Of the classes in results; those of a data set are MMSegmentation's."""
    words: tuple[tuple[str, ...], ...] | None = None
    """Per class those that it is looked for by, its name first; None: the method's own."""
    background: tuple[str, ...] = ()
    """Words that compete with the classes and stand for the background; none: the method's own."""
    source: str = "the vocabulary"
    """The file, for messages."""
    benchmark: str | None = None
    """Key of the benchmark that the names are of; methods may have other names for it."""

    @property
    def colours(self) -> np.ndarray:
        """(C, 3) uint8 RGB, one per name: those of the data set, or of ADE20K's classes."""
        from talk2dino.pictures.drawing import class_colours, palette

        known, count = palette(_PALETTES.get(self.benchmark or "", "ade20k")), len(self.names)
        return known[:count] if count <= len(known) else class_colours(count)

    def lines(self) -> list[str]:
        """As in a file, without blank ones and remarks."""
        if self.words is None:
            return list(self.names)
        first = [(BACKGROUND, *self.background)] if self.background else []
        return ["; ".join(words) for words in (*first, *self.words)]

    def class_words(self, own: ClassWords, pooling: str | None) -> ClassWords:
        """The words of a method, `own`, with these in their place.

        With one word per class there is nothing to pool, and the method scores as without them.
        """
        if self.words is None:
            return own
        found = dict(zip(map(_key, self.names), self.words, strict=True))
        several = bool(self.background) or any(len(of_class) > 1 for of_class in self.words)
        return dataclasses.replace(
            own,
            of=lambda name: found[_key(name)] if _key(name) in found else own.of(name),
            background=self.background or own.background,
            pooling=pooling if several else None,
        )

    def check_fits(self, benchmark: str, num_classes: int, background: bool) -> None:
        """Raise ValueError unless a benchmark has so many classes beside its background."""
        if len(self.names) != num_classes:
            beside = " beside its background" if background else ""
            raise ValueError(
                f"{self.source} lists {len(self.names)} classes, the last one {self.names[-1]!r}; "
                f"{benchmark} has {num_classes}{beside}. Write one line for each, in its order."
            )
        if self.background and not background:
            raise ValueError(
                f"{self.source} has words for a background, which {benchmark} has not. "
                "Leave that line out."
            )


def find_vocabulary(words: Sequence[str]) -> Vocabulary:
    """A known class list, or the given names as they are.

    Args:
        words: one of VOCABULARIES alone; or a text file (.txt) alone, see `read_word_lists`; or
            class names, which may hold anything. A first `background` is left out.

    Raises:
        ValueError: an empty or repeated name, none at all, or a single word that looks like the
            name of a class list but is none.
        FileNotFoundError: the text file is not there.
    """
    words = as_texts(words)
    if len(words) == 1 and words[0] in VOCABULARIES:
        benchmark, folder = VOCABULARIES[words[0]], shipped("configs/datasets")
        content = read_yaml(folder / f"{benchmark}.yaml")
        names = content["classes"]
        names = read_names(folder / names) if isinstance(names, str) else names
        return Vocabulary(tuple(names[bool(content.get("background")) :]), benchmark=benchmark)
    if len(words) == 1 and Path(words[0]).suffix.lower() == ".txt":
        return read_word_lists(words[0])
    key = words[0].lower() if len(words) == 1 else ""
    if key in _OTHER_LISTS or difflib.get_close_matches(key, VOCABULARIES, cutoff=0.65):
        raise ValueError(
            f"unknown vocabulary {words[0]!r}. Known: {', '.join(VOCABULARIES)}, or class names. "
            f"For a single class of this name: --textual_categories {words[0]!r}"
        )
    first = words[:1] and words[0].strip().lower() == BACKGROUND
    return Vocabulary(tuple(class_names(words[1:] if first else words, background=True)))


def class_names(names: str | Sequence[str], background: bool) -> list[str]:
    """Names of classes without needless spaces.

    Args:
        names: one or several.
        background: whether there is one, so that no class may be called so.

    Raises:
        ValueError: none at all, an empty or repeated one, or that of the background.
    """
    found = [" ".join(name.split()) for name in as_texts(names)]
    if not any(found):
        raise ValueError("no class names given. At least one is needed.")
    seen: set[str] = set()
    for place, name in enumerate(found, start=1):
        if not name:
            raise ValueError(f"class name number {place} is empty. Leave it out.")
        if name.lower() in seen:  # CLIP reads lower case only
            raise ValueError(
                f"the class name {name!r} is there twice. Every class may appear once."
            )
        if background and name.lower() == BACKGROUND:
            raise ValueError("'background' is added by itself. Leave it out.")
        seen.add(name.lower())
    return found


def read_word_lists(given: str | Path | Sequence[str]) -> Vocabulary:
    """A vocabulary of one class per line, `name; alias; alias`.

    Blank lines and those that begin with `#` do not count. The first line may begin with
    `background`: its other words are the background's.

    Args:
        given: a text file, or its lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no class, an empty word, or a word that is there twice; names the line.
    """
    if isinstance(given, str | Path):
        source, lines = str(given), read_lines(given)
    else:
        source, lines = "the vocabulary", list(given)
    classes: list[tuple[str, ...]] = []
    background: tuple[str, ...] | None = None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = tuple(" ".join(word.split()) for word in line.split(";"))
        if not all(words):
            raise ValueError(f"{source}, line {number}: an empty word in {line.strip()!r}.")
        is_background = background is None and not classes and _key(words[0]) == BACKGROUND
        if is_background:
            words = background = words[1:]
        else:
            classes.append(words)
        for word in words:
            if _key(word) in seen:
                raise ValueError(
                    f"{source}, line {number}: {word!r} is in line {seen[_key(word)]} already. "
                    "A word belongs to one class, once."
                )
            if _key(word) == BACKGROUND:
                raise ValueError(
                    f"{source}, line {number}: {word!r} may only be the first word of the first "
                    "line, for the words of the background."
                )
            seen[_key(word)] = number
    if not classes:
        raise ValueError(f"{source} lists no classes. Write one on each line: name; alias; alias")
    names = tuple(words[0] for words in classes)
    return Vocabulary(names, tuple(classes), background or (), source)


def _key(word: str) -> str:
    return " ".join(word.lower().split())
