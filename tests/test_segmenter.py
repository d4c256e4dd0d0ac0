"""The seam: queries with words and owners, backgrounds, and methods that finalise."""

import pytest
import torch

from talk2dino.segmenter import (
    ClassQuery,
    ClassWords,
    pool_words,
    with_background,
)


def embed(words):
    return torch.tensor([[float(len(word))] for word in words])


def test_the_best_word_of_a_class_is_its_score():
    query = ClassWords().query(["cat", "dog"], None, [["cat", "kitten"], ["dog"]], embed)
    assert query.owner.tolist() == [0, 0, 1] and query.first == 0
    scores = torch.tensor([[0.1, 0.5, 0.3], [0.4, 0.2, 0.0]])
    assert pool_words(scores, query).tolist() == [
        [0.5, pytest.approx(0.3)],
        [pytest.approx(0.4), 0],
    ]
    assert torch.equal(pool_words(scores.T, query, dim=0), pool_words(scores, query).T)


def test_a_background_without_words_has_no_row_and_one_with_words_has():
    query = ClassWords().query(["cat"], 0.5, [["cat", "kitten"]], embed)
    assert (query.names, query.owner.tolist(), query.first) == (("background", "cat"), [1, 1], 1)
    scores = pool_words(torch.tensor([[0.2, 0.4]]), query)[0]
    assert with_background(scores, query).tolist() == [0.5, pytest.approx(0.4)]
    own = ClassWords(background=("sky", "wall"))
    query = own.query(["cat"], 0.5, None, embed)
    assert (query.owner.tolist(), query.first) == ([0, 0, 1], 0)
    low, high = torch.tensor([[0.1, 0.2, 0.9], [0.7, 0.6, 0.9]])
    for scores, least in ((low, 0.5), (high, 0.7)):
        pooled = pool_words(scores[None], query)[0]
        assert with_background(pooled, query).tolist() == pytest.approx([least, 0.9])


def test_words_are_listed_per_label():
    words = ClassWords(lambda name: (name, f"a {name}"), background=("sky",))
    assert words.lists(["cat"], None) == (("cat",), [("cat", "a cat")])
    both = ("background", "cat"), [("sky",), ("cat", "a cat")]
    assert words.lists(["cat"], 0.5) == both
    assert words.lists(["background", "cat"], 0.5) == both
    given = words.lists(["background", "cat"], 0.5, [["wall"], ["kitten"]])
    assert given == (("background", "cat"), [("wall",), ("kitten",)])


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        ([], None, "class names are a list without empty ones"),
        ("cat", None, "found 'cat'"),
        (["cat", " "], None, "without empty ones"),
        (["cat"], [["a"], ["b"]], "words for 2 classes, and 1 names"),
        (["cat", "dog"], [["a"], []], "no word for 'dog'"),
        (["cat"], [["a", " "]], "an empty word for 'cat'"),
    ],
)
def test_words_that_do_not_fit_are_refused(names, words, message):
    with pytest.raises(ValueError, match=message):
        ClassWords().lists(names, None, words)


@pytest.mark.parametrize("words", [[[]], [[], ["cat"]]])
def test_a_first_class_without_words_is_refused_unless_it_is_the_background(words):
    names = ["cat", "dog"][: len(words)]
    with pytest.raises(ValueError, match="no word for 'cat'"):
        ClassWords().lists(names, None, words)


@pytest.mark.parametrize(
    ("owner", "background", "message"),
    [
        (None, None, "3 rows do not fit 2 names"),
        (torch.tensor([0, 1]), None, "with owners"),
        (torch.tensor([0, 1, 2]), None, "with owners"),
        (torch.tensor([-1, 0, 1]), None, "with owners"),
        (torch.tensor([0.0, 1.0, 1.0]), None, "with owners"),
        (torch.tensor([0, 1, 1]), "high", "a threshold or None, found 'high'"),
        (torch.tensor([0, 1, 1]), True, "a threshold or None, found True"),
    ],
)
def test_a_query_that_cannot_be_is_refused(owner, background, message):
    with pytest.raises(ValueError, match=message):
        ClassQuery(("a", "b"), torch.zeros(3, 4), owner, background)


def test_a_soft_maximum_is_of_the_mean_over_the_words_of_a_class():
    owner = torch.tensor([0, 0, 0, 1])
    query = ClassQuery(("a", "b"), torch.zeros(4, 2), owner, pooling="lse")
    scores = torch.tensor([[0.1, 0.3, 0.29, 0.7], [-0.2, -0.2, -0.2, 0.0]], dtype=torch.float64)
    expected = torch.stack([(40 * scores[:, :3]).exp().mean(1).log() / 40, scores[:, 3]], dim=1)
    torch.testing.assert_close(pool_words(scores, query, dim=-1), expected)
    assert pool_words(scores, query)[:, 1].equal(scores[:, 3])  # exactly
    assert query.to("cpu").pooling == "lse"
