"""Several words per class with every method: pooled before the method's own scale."""

import dataclasses

import pytest
import torch

from talk2dino import load_model, load_segmenter
from talk2dino.backbones import templates
from talk2dino.pictures.vocabularies import read_word_lists

MODELS = ("toy", "ovsegmentor_toy", "sclip_toy", "proxyclip_toy", "clip_dinoiser_toy", "freeda_toy")
WORDS = ["cat", "dog", "tree", "house"]


@pytest.fixture(scope="module", params=MODELS)
def segmenter(request):
    with pytest.MonkeyPatch.context() as patch:  # two prompts per word: 80 take their time
        patch.setattr(templates, "get_templates", lambda _: ("a photo of a {}.", "a {}."))
        found = load_segmenter(request.param, "seeded:0")
        background = found.words.background[:2]
        found.words = dataclasses.replace(found.words, background=background)
        yield found


@pytest.fixture(scope="module")
def windows():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 255


def final(segmenter, windows, query):
    """Scores of one window after everything that a method does to them."""
    scores = segmenter.window_scores(windows, query)[0]
    finalising = hasattr(segmenter, "finalise")
    return segmenter.finalise(scores, windows[0], query) if finalising else scores


def query_of(segmenter, words, pooling):
    query = segmenter.query([of_class[0] for of_class in words], None, words)
    return dataclasses.replace(query, pooling=pooling)


def test_the_best_word_decides_which_class_a_pixel_is(segmenter, windows):
    apart = final(segmenter, windows, segmenter.query(WORDS)).argmax(dim=0)
    pairs = query_of(segmenter, [WORDS[:2], WORDS[2:]], "max")
    same = final(segmenter, windows, pairs).argmax(dim=0) == apart // 2
    assert same.float().mean() > 0.8  # all, but where words of patches are pooled, then spread


def test_a_word_that_is_there_twice_counts_once_in_the_soft_maximum(segmenter, windows):
    once = final(segmenter, windows, segmenter.query(WORDS))
    twice = query_of(segmenter, [[word, word] for word in WORDS], "lse")
    found = final(segmenter, windows, twice)
    torch.testing.assert_close(found, once, atol=2e-5, rtol=1e-4)


def test_one_word_per_class_scores_as_without_a_vocabulary(segmenter, windows, monkeypatch):
    plain = final(segmenter, windows, segmenter.query(WORDS, 0.5))
    monkeypatch.setattr(
        segmenter, "words", read_word_lists(WORDS).class_words(segmenter.words, "lse")
    )
    assert torch.equal(final(segmenter, windows, segmenter.query(WORDS, 0.5)), plain)


def test_a_model_looks_for_the_words_of_its_vocabulary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("pet; cat; dog\nplant; tree\n")
    model = load_model("toy", "seeded:0", vocabulary=path)
    query = model.segmenter.query(["pet", "plant", "sky"])
    assert query.owner.tolist() == [0, 0, 0, 1, 1, 2] and query.pooling == "max"
    with pytest.raises(ValueError, match="unknown pooling 'mean'"):
        load_model("toy", "seeded:0", vocabulary=path, pooling="mean")
    with pytest.raises(ValueError, match="lists 2 classes"):
        load_segmenter("toy", "seeded:0", benchmark="voc", vocabulary=path)
