"""Captions name what is in a picture, and nothing else."""

import numpy as np
import pytest

from talk2dino.toy.captions import write_captions
from talk2dino.toy.objects import OBJECTS
from talk2dino.toy.scene import CLASS_NAMES
from talk2dino.toy.textures import TEXTURES


def named(sentence):
    words = sentence.replace(",", " ").replace(".", " ").split()
    return {name for name in CLASS_NAMES if name in words}


def captions(objects, texture, count=5, seed=0):
    return write_captions(objects, texture, count, np.random.default_rng(seed))


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("objects", [(), ("apple",), ("cat", "grapes"), ("lemon", "frog", "heart")])
def test_captions_never_name_what_is_not_there(objects, texture):
    for seed in range(20):
        for sentence in captions(objects, texture, seed=seed):
            assert named(sentence)
            assert named(sentence) <= {*objects, texture}


def test_the_first_caption_names_everything():
    assert named(captions(("lemon", "frog", "heart"), "snow")[0]) == {
        "lemon",
        "frog",
        "heart",
        "snow",
    }


def test_an_empty_ground_is_named_by_every_caption():
    assert all(named(sentence) == {"water"} for sentence in captions((), "water"))


def test_articles_fit_the_noun():
    text = " ".join(captions(tuple(OBJECTS), "grass", count=40))
    assert "an apple" in text
    assert "a apple" not in text
    assert "a cat" in text
    assert "a grapes" not in text


def test_captions_are_deterministic_and_as_many_as_asked():
    assert captions(("cat",), "snow", 7) == captions(("cat",), "snow", 7)
    assert len(captions(("cat",), "snow", 7)) == 7


def test_captions_of_one_picture_differ():
    assert len(set(captions(("lemon", "frog", "heart"), "snow", 5))) >= 4
