"""What OVSegmentor reads from one caption: its entities, its question and its answer.

Question and answer are those of masked entity completion (section 3.2 of the paper): the caption
with every entity masked, and a prompt that names them. The words looked for, and the 73 classes
they stand for, are those of appendix A. Nothing is downloaded for the singulars of nouns.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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

CLASSES = tuple(dict.fromkeys(SYNONYMS.get(word, word) for word in FILTER_WORDS))
"""The 73 classes, in the order of their published indices."""


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
        RuntimeError: WordNet is asked for, and NLTK or its data is not installed.
    """
    check_name("source of lemmas", name, LEMMAS)
    has_wordnet = name != DICTIONARY and _has_wordnet()
    if name == WORDNET and not has_wordnet:
        raise RuntimeError(
            "NLTK's WordNet is not installed: pip install nltk, then python -m nltk.downloader "
            f"wordnet; or use {DICTIONARY}."
        )
    return WORDNET if has_wordnet else DICTIONARY


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


LEMMA_SOURCES: Mapping[str, Lemma] = {DICTIONARY: dictionary_lemma, WORDNET: wordnet_lemma}
"""What `find_lemmas` returns -> its function, which can be pickled."""


def _has_wordnet() -> bool:
    for place in ("corpora/wordnet", "corpora/wordnet.zip"):
        with suppress(ImportError, LookupError):
            import nltk.data

            nltk.data.find(place)
            return True
    return False


MASK = "[MASK]"
EMPTY, OTHER_SCRIPT, NO_ENTITY = "empty", "in another script", "without an entity"
"""Why a caption is not used."""

# Letters and digits; hyphens and apostrophes inside a word belong to it.
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_HAN = re.compile("[\u4e00-\u9fa5]")
_CLASS_SET, _WORD_SET = frozenset(CLASSES), frozenset(FILTER_WORDS)
# What NLTK's word tokeniser separates from a word, as far as it can touch a listed word.
_TREEBANK_GAPS = re.compile(r"[\s,;:?!()\[\]{}<>\"“”„‘’«»`*&$#@%–—]+|--+|\.\.+")
_TREEBANK_END = re.compile(r"(?:'(?:s|re|ve|ll|m|d)?)+$", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.?!])['\")\]]*\s+(?=[\"'(\[]*[A-Z0-9])")

EntityTable = Mapping[str, tuple[str, str]]
"""The lower-case form of a word that counts as an entity -> the word as its list writes it, and the
class it stands for."""

PUBLISHED: EntityTable = {
    word.lower(): (word, SYNONYMS.get(word, word)) for word in reversed(FILTER_WORDS)
}
"""The 100 words of the paper (`tv` wins over `TV`), and the 73 classes they stand for."""


def own_entities(words: Iterable[str]) -> EntityTable:
    """A list of one's own, each word its own class.

    Raises:
        ValueError: there is none, or one is no single word.
    """
    words = list(words)
    wrong = [word for word in words if not _WORD.fullmatch(word)]
    if wrong or not words:
        raise ValueError(f"entities must be single words, got {(wrong or ['nothing'])[0]!r}")
    return {word.lower(): (word, word) for word in reversed(words)}


Masked = tuple[str, tuple[str, ...]]
"""A caption with the mask token for every entity, and their classes, each once, in order."""


@dataclass(frozen=True)
class CaptionReader:
    """Finds entities in captions."""

    lemma: Lemma
    """The singular of a lower-case noun."""
    compat: bool = False
    """Do what the published programs do, with their defects: see `published_question`."""
    mask: str = MASK
    """The tokeniser's mask token."""
    table: EntityTable = field(default_factory=lambda: PUBLISHED)
    """The entities; under `compat` always the published ones."""

    def look_at(self, caption: str) -> tuple[str | None, list[str]]:
        """Why a caption cannot be used, or None; and its entities, as their list writes them."""
        if not caption.strip():
            return EMPTY, []
        if _HAN.search(caption) or not (self.compat or _is_latin(caption)):
            return OTHER_SCRIPT, []
        if self.compat:
            found = (word for word in _treebank_words(caption) if word in _WORD_SET)
        else:
            hits = (self._look_up(word) for word in _WORD.findall(caption))
            found = (hit[0] for hit in hits if hit)
        entities = list(dict.fromkeys(found))
        return (None if entities else NO_ENTITY), entities

    def read(self, caption: str) -> Masked:
        """Mask the entities of a caption.

        By default a word counts without its possessive 's, in any letter case, in the plural or
        the singular; punctuation stays. Under `compat`, see `published_question`.
        """
        if self.compat:
            return published_question(caption, self.lemma, self.mask)
        found: list[str] = []

        def replace(match: re.Match[str]) -> str:
            hit = self._look_up(match.group())
            if hit is None:
                return match.group()
            found.append(hit[1])
            return self.mask + match.group()[len(_stem(match.group())) :]

        question = _WORD.sub(replace, caption).strip()
        return question, tuple(dict.fromkeys(found))

    def answer(self, classes: tuple[str, ...], template: str) -> str:
        """The prompt that names the classes; under `compat` what follows the names is lost."""
        names = " and ".join(classes)
        if self.compat:
            return template[: template.index("{}")] + names
        return template.format(names)

    def _look_up(self, word: str) -> tuple[str, str] | None:
        word = _stem(word).lower()
        return self.table.get(word) or self.table.get(self.lemma(word))


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
    return " ".join(pieces).replace("'", "").strip(), tuple(dict.fromkeys(found))


def _stem(word: str) -> str:
    """Without a possessive 's."""
    return word[:-2] if word[-2:].lower() in ("'s", "’s") else word


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
