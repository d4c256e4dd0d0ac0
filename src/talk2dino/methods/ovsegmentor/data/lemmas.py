"""The singular of a noun: from lemminflect, whose dictionary is part of the package, or from NLTK's
WordNet where its data is installed. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from talk2dino.config import check_name

Lemma = Callable[[str], str]
"""A lower-case word -> its singular, or the word itself."""

AUTO, DICTIONARY, WORDNET = "auto", "lemminflect", "wordnet"
LEMMAS = (AUTO, DICTIONARY, WORDNET)
"""`auto` is WordNet where its data is installed, and lemminflect elsewhere."""

_REMEMBERED = 2**16  # words; captions repeat a small vocabulary


def find_lemmas(name: str = AUTO) -> str:
    """The source of lemmas that `name` means on this machine: lemminflect or wordnet.

    Raises:
        ValueError: an unknown name.
        ImportError: the package is not installed.
        RuntimeError: WordNet is asked for, and its data is not installed.
    """
    check_name("source of lemmas", name, LEMMAS)
    if name != DICTIONARY:
        problem = _wordnet_problem()
        if problem is None:
            return WORDNET
        if name == WORDNET:
            raise RuntimeError(problem)
    try:
        import lemminflect  # noqa: F401
    except ImportError as error:
        raise ImportError("lemmas need lemminflect: pip install lemminflect") from error
    return DICTIONARY


def get_lemma(name: str) -> Lemma:
    """The function of a source of lemmas, as `find_lemmas` returned it. It can be pickled."""
    return wordnet_lemma if name == WORDNET else dictionary_lemma


@lru_cache(_REMEMBERED)
def dictionary_lemma(word: str) -> str:
    """The singular by lemminflect's dictionary; a noun it lacks loses a plain plural s."""
    from lemminflect import getLemma

    found = getLemma(word, upos="NOUN", lemmatize_oov=False)
    if found:
        return str(found[0])
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


@lru_cache(_REMEMBERED)
def wordnet_lemma(word: str) -> str:
    """The singular by NLTK's WordNet."""
    from nltk.stem import WordNetLemmatizer

    return str(WordNetLemmatizer().lemmatize(word))


@lru_cache(1)
def _wordnet_problem() -> str | None:
    """Why WordNet cannot be used, or None."""
    try:
        import nltk.data
    except ImportError:
        return "WordNet needs NLTK: pip install nltk"
    for place in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(place)
        except LookupError:
            continue
        return None
    return (
        "NLTK is installed, but not its WordNet data. Install it with python -m nltk.downloader "
        f"wordnet, or use {DICTIONARY}."
    )
