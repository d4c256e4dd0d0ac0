"""Class lists that the demo knows by name, with the colours of their data sets."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from talk2dino.config import as_texts
from talk2dino.files import shipped
from talk2dino.pictures.drawing import class_colours, palette
from talk2dino.pictures.word_lists import BACKGROUND, WordLists, read_word_lists
from talk2dino.textfiles import read_names, read_yaml


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is looked for; the background does not count."""

    names: tuple[str, ...]
    """Class names; those of a data set are MMSegmentation's."""
    colours: np.ndarray
    """(C, 3) uint8 RGB, one per name."""
    benchmark: str | None = None
    """Key of the benchmark that the names are of; methods may have other names for it."""
    lists: WordLists | None = None
    """Of a text file: the words of every class."""


def find_vocabulary(words: Sequence[str]) -> Vocabulary:
    """A known class list, or the given names as they are, in the colours of ADE20K's classes.

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
        return _known_list(words[0])
    if len(words) == 1 and Path(words[0]).suffix.lower() == ".txt":
        lists = read_word_lists(words[0])
        return replace(named_classes(lists.names), lists=lists)
    if len(words) == 1 and _looks_like_a_list(words[0]):
        raise ValueError(
            f"unknown vocabulary {words[0]!r}. Known: {', '.join(VOCABULARIES)}, or class names. "
            f"For a single class of this name: --textual_categories {words[0]!r}"
        )
    return named_classes(words)


def named_classes(words: Sequence[str]) -> Vocabulary:
    """Class names as they are given; a first `background` is left out.

    Raises:
        ValueError: see `class_names`.
    """
    words = as_texts(words)
    first = words[:1] and words[0].strip().lower() == BACKGROUND
    names = class_names(words[1:] if first else words, background=True)
    ade = palette("ade20k")
    colours = ade[: len(names)] if len(names) <= len(ade) else class_colours(len(names))
    return Vocabulary(tuple(names), colours)


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


def _looks_like_a_list(word: str) -> bool:
    key = word.lower()
    return key in _OTHER_LISTS or bool(difflib.get_close_matches(key, VOCABULARIES, cutoff=0.65))


@cache
def _known_list(name: str) -> Vocabulary:
    """One of VOCABULARIES, as the files of its data set have it."""
    benchmark, colours = VOCABULARIES[name]
    content = read_yaml(_FOLDER / f"{benchmark}.yaml")
    names = content["classes"]
    names = read_names(_FOLDER / names) if isinstance(names, str) else names
    names = tuple(names[bool(content.get("background")) :])
    return Vocabulary(names, palette(colours)[: len(names)], benchmark)


_FOLDER = shipped("configs/datasets")
VOCABULARIES = {
    "voc": ("voc", "voc20"),
    "coco": ("coco_object", "coco_stuff"),
    "ade": ("ade20k",) * 2,
    "drawn_world": ("toy",) * 2,
}
"""Name -> benchmark that the classes are of, and the one whose palette begins with theirs."""

_OTHER_LISTS = ("pascal", "context", "cityscapes", "stuff", "ade20k", "coco_object", "coco_stuff")
