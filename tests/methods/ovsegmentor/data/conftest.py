"""A small metafile with images, and a tokeniser made on the spot."""

import csv

import numpy as np
import pytest
from PIL import Image

from talk2dino.methods.ovsegmentor.text import Tokenizer, toy_tokenizer

HEADER = ("image_id", "caption", "entity", "pairindex", "pairentity")
ROWS = [
    ("a.png", "A dog, on a sofa.", "dog,sofa", [1, 2], ["dog", "sofa"]),
    ("b.png", "Two dogs", "dog", [0, 1], ["dog", "dog"]),
    ("c.png", "a couch", "couch", [2], ["couch"]),
    ("d.png", "sunset", "", [3], ["x"]),
    ("sub/e.png", "three knives", "knife", [4, 0], ["knife", "knife"]),
    ("f.png", "", "", [0], ["dog"]),
]


def save_image(path, value, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_rows(path, rows, header=HEADER):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def images(tmp_path):
    for number, row in enumerate(ROWS):
        save_image(tmp_path / "images" / row[0], number)
    return tmp_path / "images"


@pytest.fixture
def metafile(tmp_path):
    return write_rows(tmp_path / "meta.csv", ROWS)


@pytest.fixture(scope="session")
def tokenizer():
    words = ["dog", "sofa", "a", "photo", "of", "itap", "knife"]
    return Tokenizer(toy_tokenizer(words), positions=96)
