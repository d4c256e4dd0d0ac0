"""Entities, questions and answers of captions, by default and as published."""

import sys

import pytest

from talk2dino.methods.ovsegmentor.data import words
from talk2dino.methods.ovsegmentor.data.words import (
    CLASSES,
    EMPTY,
    FILTER_WORDS,
    LEMMA_SOURCES,
    NO_ENTITY,
    OTHER_SCRIPT,
    SYNONYMS,
    CaptionReader,
    dictionary_lemma,
    find_lemmas,
    published_question,
)

PLURALS = {
    **{"man": "men", "woman": "women", "child": "children", "knife": "knives", "mouse": "mice"},
    **{"people": "people", "sheep": "sheep", "skis": "skis", "glass": "glasses", "bus": "buses"},
    **{"men": "men", "women": "women", "children": "children", "lady": "ladies", "baby": "babies"},
    **{"couch": "couches", "bench": "benches", "box": "boxes", "sandwich": "sandwiches"},
    "princess": "princesses",
}
# What step 1 of the published question strips away, from a run of the published rules.
MISSED_AS_PUBLISHED = {
    *("spoon", "sofa", "shirt", "suitcase", "sink", "sheep", "skateboard", "snowboard"),
    *("surfboard", "sandwich", "bus", "glass", "skis"),
}

reader = CaptionReader(dictionary_lemma)
published = CaptionReader(dictionary_lemma, compat=True)


def test_the_lists_have_the_papers_sizes():
    assert (len(set(FILTER_WORDS)), len(set(CLASSES)), len(SYNONYMS)) == (100, 73, 29)
    assert (CLASSES[0], CLASSES[41], CLASSES[72]) == ("people", "shirt", "donut")
    assert set(SYNONYMS.values()) <= set(CLASSES)


def test_every_word_of_the_filter_names_a_class():
    for word in (*FILTER_WORDS, *CLASSES, *SYNONYMS):
        assert reader.read(f"one {word} here")[1] == (SYNONYMS.get(word, word),), word


@pytest.mark.parametrize("change", [str, str.capitalize, str.upper])
def test_every_word_is_found_in_the_plural_and_in_any_case(change):
    for word in FILTER_WORDS:
        plural = PLURALS.get(word, word + "s")
        for form in (word, plural):
            question, classes = reader.read(f"two {change(form)}, here")
            assert classes == (SYNONYMS.get(word, word),), form
            assert question == "two [MASK], here"
            # `men` is listed itself, `TV` means the same as `tv`
            listed = plural if plural in FILTER_WORDS and form == plural else word
            expected = "tv" if word == "TV" else listed
            assert reader.look_at(f"two {change(form)}, here") == (None, [expected]), form


@pytest.mark.parametrize("word", ["sits", "lit", "training", "booked", "person", "ski", "dress"])
def test_other_words_and_verbs_are_no_entities(word):
    assert reader.read(word)[1] == () and reader.look_at(word) == (NO_ENTITY, [])


def test_question_and_answer_of_the_papers_kind():
    question, classes = reader.read("A man sits on a sofa near two dogs.")
    assert question == "A [MASK] sits on a [MASK] near two [MASK]."
    assert classes == ("people", "sofa", "dog")
    assert reader.answer(classes, "itap of a {}.") == "itap of a people and sofa and dog."


def test_punctuation_and_possessives_stay_outside_the_mask():
    question, classes = reader.read(
        'The dog\'s "cat"/(bus), a T-shirt and the women’s well-kept dog-house… '
    )
    assert question == (
        'The [MASK]\'s "[MASK]"/([MASK]), a [MASK] and the [MASK]’s well-kept dog-house…'
    )
    assert classes == ("dog", "cat", "bus", "shirt", "people")


def test_a_tokeniser_with_another_mask_token_gets_that():
    assert CaptionReader(dictionary_lemma, mask="<mask>").read("a cat")[0] == "a <mask>"


def test_the_published_rules_give_the_published_example():
    question, classes = published.read("A man sits on a sofa near two dogs.")
    assert question == "A [MASK] it on a ofa near two [MASK]"
    assert published.answer(classes, "a bad photo of a {}.") == ("a bad photo of a people and dog")
    assert published.answer((), "a bad photo of a {}.") == "a bad photo of a "


def test_the_published_rules_miss_the_classes_that_begin_or_end_with_s():
    missed = {name for name in CLASSES if not published.read(f"one {name} here")[1]}
    assert missed == MISSED_AS_PUBLISHED
    found = {name for name in missed if published.read(f"one {name.capitalize()} here")[1]}
    assert found == missed - {"bus", "glass", "skis"}
    assert {n for n in missed if published.read(f"one {n}. here")[1]} == {"bus", "glass"}
    assert published.read("a student")[1] == ()
    assert published.read("a cat, here")[1] == ()


def test_apostrophes_leave_the_published_question():
    assert published_question("it's a dog's 'day'", str)[0] == "it a [MASK] day"


def test_the_published_filter_matches_words_exactly():
    assert published.look_at("A Dog and dogs, a cat. The car's T-shirt; TV...tv! (bus)") == (
        None,
        [*("cat", "car", "T-shirt", "TV", "tv", "bus")],
    )
    assert published.look_at("a cat/dog on a sofa-bed, U.S.car") == (NO_ENTITY, [])


def test_entities_are_listed_once_in_their_order():
    assert reader.look_at("dogs, a cat and a Dog") == (None, ["dog", "cat"])
    assert reader.read("dogs, a cat and a Dog")[1] == ("dog", "cat")


@pytest.mark.parametrize(
    ("caption", "problem", "published_problem"),
    [
        ("", EMPTY, EMPTY),
        (" \t ", EMPTY, EMPTY),
        ("一只猫 cat", OTHER_SCRIPT, OTHER_SCRIPT),
        ("кошка и собака tv", OTHER_SCRIPT, None),
        ("ein Bär und ein tv", None, None),
        ("sunset over the sea", NO_ENTITY, NO_ENTITY),
        ("!?! 123", NO_ENTITY, NO_ENTITY),
        ("a cat", None, None),
    ],
)
def test_captions_that_cannot_be_used_say_why(caption, problem, published_problem):
    assert reader.look_at(caption)[0] == problem
    assert published.look_at(caption)[0] == published_problem


def test_an_unknown_source_of_lemmas_lists_the_known():
    with pytest.raises(ValueError, match="lemminflect"):
        find_lemmas("wordnett")


def test_without_wordnet_lemmas_come_from_the_dictionary(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert find_lemmas() == "lemminflect" and LEMMA_SOURCES["lemminflect"]("knives") == "knife"
    with pytest.raises(RuntimeError, match="pip install nltk"):
        find_lemmas("wordnet")


@pytest.fixture
def toy_nltk(tmp_path, monkeypatch):
    """An nltk package of a few lines; returns a function that installs its data."""
    for name in [name for name in sys.modules if name.split(".")[0] == "nltk"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "nltk"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "data.py").write_text(
        "installed = []\ndef find(place):\n    if place not in installed: raise LookupError\n"
    )
    (package / "stem.py").write_text(
        "class WordNetLemmatizer:\n    def lemmatize(self, word): return {'oxen': 'ox'}[word]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words.wordnet_lemma.cache_clear()
    yield lambda place: __import__("nltk.data").data.installed.append(place)
    words.wordnet_lemma.cache_clear()
    for name in ("nltk", "nltk.data", "nltk.stem"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("place", ["corpora/wordnet", "corpora/wordnet.zip"])
def test_wordnet_is_used_where_its_data_is_installed(toy_nltk, place):
    toy_nltk(place)
    assert find_lemmas() == find_lemmas("wordnet") == "wordnet"
    assert LEMMA_SOURCES["wordnet"]("oxen") == "ox"


def test_nltk_without_its_data_is_not_enough(toy_nltk):
    assert find_lemmas() == "lemminflect"
    with pytest.raises(RuntimeError, match=r"nltk\.downloader wordnet"):
        find_lemmas("wordnet")
