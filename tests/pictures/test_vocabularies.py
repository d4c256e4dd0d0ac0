"""Class lists by name, from files, and as they are given."""

import numpy as np
import pytest

from talk2dino.pictures.vocabularies import find_vocabulary, read_word_lists
from talk2dino.segmenter import ClassWords
from talk2dino.toy.scene import CLASS_NAMES, class_palette


def test_a_text_file_names_one_class_per_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffbackground\n wine glass \n\n\u732b\n", encoding="utf-8")
    found = find_vocabulary([str(path)])
    assert found.names == ("wine glass", "\u732b")
    assert np.array_equal(found.colours, find_vocabulary(["wine glass", "\u732b"]).colours)


def test_a_file_that_cannot_be_read_as_names_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cupp\.txt: no such file"):
        find_vocabulary(["cupp.txt"])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt lists no classes"):
        find_vocabulary([str(tmp_path / "empty.txt")])
    (tmp_path / "odd.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"odd\.txt is no text in UTF-8"):
        find_vocabulary([str(tmp_path / "odd.txt")])


def test_the_drawn_world_is_a_list_in_its_own_colours():
    found = find_vocabulary(["drawn_world"])
    assert found.names == CLASS_NAMES and found.benchmark == "toy"
    assert np.array_equal(found.colours, class_palette())


def test_a_file_has_a_class_with_its_aliases_on_each_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# of VOC\nbackground; sky ;  brick   wall\n\ncat; kitten\n  # no dogs\nsofa\n")
    found = read_word_lists(path)
    assert found.names == ("cat", "sofa")
    assert found.words == (("cat", "kitten"), ("sofa",))
    assert found.background == ("sky", "brick wall")


def test_a_background_alone_is_the_methods_own():
    own = ClassWords(background=("tree",))
    words = read_word_lists(["background", "cat; kitten"]).class_words(own, "lse")
    assert (words.background, words.pooling) == (("tree",), "lse")
    assert words.of("Cat") == ("cat", "kitten") and words.of("dog") == ("dog",)
    words = read_word_lists(["background; sky", "cat"]).class_words(own, "max")
    assert (words.background, words.pooling) == (("sky",), "max")
    assert read_word_lists(["cat", "dog"]).class_words(own, "lse").pooling is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat", "dog; Cat"], "line 2: 'Cat' is in line 1 already"),
        (["cat; kitten; kitten"], "line 1: 'kitten' is in line 1 already"),
        (["background; cat", "cat"], "line 2: 'cat' is in line 1 already"),
        (["cat; ; dog"], "line 1: an empty word in 'cat; ; dog'"),
        (["# x", "cat;"], "line 2: an empty word in 'cat;'"),
        (["cat", "background; sky"], "line 2: 'background' may only be the first word"),
        (["# nothing", "", "background; sky"], "lists no classes"),
    ],
)
def test_a_line_that_cannot_be_is_named(lines, message):
    with pytest.raises(ValueError, match=message):
        read_word_lists(lines)


def test_a_vocabulary_has_to_fit_its_benchmark():
    found = read_word_lists(["background; sky", "cat", "dog"])
    found.check_fits("voc", 2, True)
    with pytest.raises(ValueError, match=r"lists 2 classes, the last one 'dog'; voc has 20 beside"):
        found.check_fits("voc", 20, True)
    with pytest.raises(ValueError, match="words for a background, which voc20 has not"):
        found.check_fits("voc20", 2, False)
