"""What OVSegmentor reads from one caption: its entities, its question and its answer.

Question and answer are those of masked entity completion (section 3.2 of the paper): the caption
with every entity masked, and a prompt that names them. The words looked for, and the 73 classes
they stand for, are those of appendix A. Nothing is downloaded for the singulars of nouns.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from talk2dino.config import check_name

_FILTER = """
people man men woman women girl boy lady kid child children baby student bride groom couple
prince princess car bus truck motorcycle train bicycle boat aeroplane airplane motorbike
bike cup bottle bowl knife spoon glass fork chair table bench clock laptop light vase plant
remote microwave toaster oven mouse keyboard sofa monitor desk tv TV couch flower
refrigerator house building hotel handbag umbrella book backpack phone shirt tie suitcase
T-shirt bag box sink bed toilet cat dog horse bird cow sheep elephant bear zebra giraffe
ball racket skateboard skis snowboard surfboard kite pizza cake apple banana sandwich orange
carrot donut
"""
FILTER_WORDS = tuple(_FILTER.split())
"""Captions with one of these are kept. `TV` and `tv` are both listed."""

_SYNONYMS = {
    "people": "people man men woman women girl boy lady kid child children baby student bride "
    "groom couple prince princess",
    "aeroplane": "airplane",
    "motorcycle": "motorbike",
    "bicycle": "bike",
    "tv": "TV",
    "table": "desk",
    "sofa": "couch",
    "house": "building hotel",
    "shirt": "T-shirt T-Shirt",
    "bag": "handbag",
}
SYNONYMS = {word: name for name, words in _SYNONYMS.items() for word in words.split()}
"""Word -> class, where they differ (and people, which stands for itself): 29 words."""

_CLASSES = """
people car bus truck motorcycle train bicycle boat aeroplane cup bottle bowl knife spoon
glass fork chair table bench clock laptop light vase plant remote microwave toaster oven
mouse keyboard sofa monitor tv flower refrigerator house bag umbrella book backpack phone
shirt tie suitcase box sink bed toilet cat dog horse bird cow sheep elephant bear zebra
giraffe ball racket skateboard skis snowboard surfboard kite pizza cake apple banana
sandwich orange carrot donut
"""
CLASSES = tuple(_CLASSES.split())
"""The classes, in the order of their indices 0 to 72."""


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


MASK = "[MASK]"
EMPTY, OTHER_SCRIPT, NO_ENTITY = "empty", "in another script", "without an entity"
"""Why a caption is not used."""

# Letters and digits; hyphens and apostrophes inside a word belong to it.
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_POSSESSIVE = re.compile(r"['’]s$", re.IGNORECASE)
_HAN = re.compile("[\u4e00-\u9fa5]")
# What NLTK's word tokeniser separates from a word, as far as it can touch a listed word.
_TREEBANK_GAPS = re.compile(r"[\s,;:?!()\[\]{}<>\"“”„‘’«»`*&$#@%–—]+|--+|\.\.+")
_TREEBANK_END = re.compile(r"(?:'(?:s|re|ve|ll|m|d)?)+$", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.?!])['\")\]]*\s+(?=[\"'(\[]*[A-Z0-9])")

_WORD_SET, _CLASS_SET = frozenset(FILTER_WORDS), frozenset(CLASSES)


@dataclass(frozen=True)
class EntityTable:
    """The words that count as entities, by their lower-case form."""

    words: Mapping[str, str]
    """-> the word as the list writes it."""
    classes: Mapping[str, str]
    """-> the class it stands for."""

    @classmethod
    def of(cls, words: Iterable[str]) -> EntityTable:
        """A list of one's own, each word its own class.

        Raises:
            ValueError: there is none, or one is no single word.
        """
        words = list(dict.fromkeys(words))
        wrong = [word for word in words if not _WORD.fullmatch(word)]
        if wrong or not words:
            raise ValueError(f"entities must be single words, got {(wrong or ['nothing'])[0]!r}")
        table = {word.lower(): word for word in reversed(words)}
        return cls(table, table)


PUBLISHED = EntityTable(
    {word.lower(): word for word in reversed(FILTER_WORDS)},  # `tv` wins over `TV`
    {word.lower(): SYNONYMS.get(word, word) for word in (*CLASSES, *FILTER_WORDS, *SYNONYMS)},
)
"""The 100 words of the paper, and the 73 classes they stand for."""


@dataclass(frozen=True)
class Masked:
    """A caption whose entities were taken out."""

    question: str
    """The caption with the mask token in place of every entity."""
    classes: tuple[str, ...]
    """The classes of the entities, each once, in order."""


@dataclass(frozen=True)
class CaptionReader:
    """Finds entities in captions."""

    lemma: Lemma
    """The singular of a lower-case noun."""
    compat: bool = False
    """Do what the published programs do, with their defects: see `published_question`."""
    mask: str = MASK
    """The tokeniser's mask token."""
    table: EntityTable = field(default=PUBLISHED)
    """The entities; under `compat` always the published ones."""

    def problem(self, caption: str, need_entity: bool = True) -> str | None:
        """EMPTY, OTHER_SCRIPT, NO_ENTITY, or None for a caption that can be used."""
        if not caption.strip():
            return EMPTY
        if _HAN.search(caption) or not (self.compat or _is_latin(caption)):
            return OTHER_SCRIPT
        if need_entity and not self.read(caption).classes:
            return NO_ENTITY
        return None

    def entities(self, caption: str) -> list[str]:
        """The words of the filter list in a caption, as the list writes them, each once."""
        if self.compat:
            found = [word for word in _treebank_words(caption) if word in _WORD_SET]
        else:
            words = (match.group() for match in _WORD.finditer(caption))
            found = [hit for word in words if (hit := self._look_up(word, self.table.words))]
        return list(dict.fromkeys(found))

    def read(self, caption: str) -> Masked:
        """Mask the entities of a caption.

        By default a word counts without its possessive 's, in any letter case, in the plural or
        the singular; punctuation stays. Under `compat`, see `published_question`.
        """
        if self.compat:
            return published_question(caption, self.lemma, self.mask)
        found: list[str] = []

        def replace(match: re.Match[str]) -> str:
            hit = self._look_up(match.group(), self.table.classes)
            if hit is None:
                return match.group()
            found.append(hit)
            return self.mask + match.group()[len(_stem(match.group())) :]

        question = _WORD.sub(replace, caption).strip()
        return Masked(question, tuple(dict.fromkeys(found)))

    def answer(self, classes: tuple[str, ...], template: str) -> str:
        """The prompt that names the classes; under `compat` what follows the names is lost."""
        names = " and ".join(classes)
        if self.compat:
            return template[: template.index("{}")] + names
        return template.format(names)

    def _look_up(self, word: str, table: Mapping[str, str]) -> str | None:
        word = _stem(word).lower()
        return table.get(word) or table.get(self.lemma(word))


def published_question(caption: str, lemma: Lemma, mask: str = MASK) -> Masked:
    """The question as the published data loader builds it.

    It strips every `'` and `s` from both ends of a word, so that `sofa`, `bus` or `skis` are
    missed and `sits` becomes `it`; of punctuation only full stops are taken off, for the look-up.
    """
    pieces: list[str] = []
    found: list[str] = []
    for word in caption.split(" "):
        word = word.strip("'s").strip(" ").strip("\n")
        name = lemma(word.replace(".", "").lower())
        name = SYNONYMS.get(name, name)
        if name in _CLASS_SET:
            found.append(name)
        pieces.append(mask if name in _CLASS_SET else word)
    return Masked(" ".join(pieces).replace("'", "").strip(), tuple(dict.fromkeys(found)))


def _stem(word: str) -> str:
    return _POSSESSIVE.sub("", word)


def _is_latin(caption: str) -> bool:
    """Whether at least half of the letters are Latin."""
    if caption.isascii():
        return True
    letters = [character for character in caption if character.isalpha()]
    latin = sum(unicodedata.name(character, "").startswith("LATIN") for character in letters)
    return 2 * latin >= len(letters)


def _treebank_words(caption: str) -> Iterator[str]:
    """The words of NLTK's `word_tokenize`, without its sentence model."""
    for sentence in _SENTENCE.split(caption):
        *inner, last = _TREEBANK_GAPS.split(sentence.rstrip(" \n\t'\")]}>”’»?!").removesuffix("."))
        for word in (*inner, last):
            yield _TREEBANK_END.sub("", word.lstrip("'"))
