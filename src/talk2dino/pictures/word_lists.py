"""Vocabularies with several words per class, from text files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.textfiles import read_text

if TYPE_CHECKING:
    from talk2dino.segmenter import ClassWords

BACKGROUND = "background"  # as in segmenter.py, which needs PyTorch


@dataclass(frozen=True)
class WordLists:
    """Classes in order, each with the words it is looked for by."""

    source: str
    """The file, for messages."""
    names: tuple[str, ...]
    """Of the classes in results: their first words."""
    words: tuple[tuple[str, ...], ...]
    """Per class; its name is the first."""
    background: tuple[str, ...] = ()
    """Words that compete with the classes and stand for the background; none: the method's own."""

    def lines(self) -> list[str]:
        """As in a file, without blank ones and remarks."""
        first = [(BACKGROUND, *self.background)] if self.background else []
        return ["; ".join(words) for words in (*first, *self.words)]

    def class_words(self, own: ClassWords, pooling: str) -> ClassWords:
        """The words of a method, `own`, with these in their place.

        With one word per class there is nothing to pool, and the method scores as without them.
        """
        found = {
            _key(name): of_class for name, of_class in zip(self.names, self.words, strict=True)
        }
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


def read_word_lists(given: str | Path | Sequence[str]) -> WordLists:
    """A vocabulary: one class per line, `name; alias; alias`.

    Blank lines and those that begin with `#` do not count. The first line may begin with
    `background`: its other words are the background's.

    Args:
        given: a text file, or its lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no class, an empty word, or a word that is there twice; names the line.
    """
    if isinstance(given, str | Path):
        return _parse(re.split(r"\r\n?|\n", read_text(given)), str(given))
    return _parse(list(given), "the vocabulary")


def _parse(lines: Sequence[str], source: str) -> WordLists:
    classes: list[tuple[str, ...]] = []
    background: tuple[str, ...] | None = None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *aliases = (" ".join(word.split()) for word in line.split(";"))
        if not all((name, *aliases)):
            raise ValueError(f"{source}, line {number}: an empty word in {line.strip()!r}.")
        first = background is None and not classes
        words = tuple(aliases) if first and _key(name) == BACKGROUND else (name, *aliases)
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
        if first and _key(name) == BACKGROUND:
            background = words
        else:
            classes.append(words)
    if not classes:
        raise ValueError(f"{source} lists no classes. Write one on each line: name; alias; alias")
    return WordLists(source, tuple(of[0] for of in classes), tuple(classes), background or ())


def _key(word: str) -> str:
    return " ".join(word.lower().split())
