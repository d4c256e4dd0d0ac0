"""A file in the published layout, and what it is converted to, segment alike."""

import sys

import numpy as np
import pytest

import talk2dino
from talk2dino.__main__ import main
from tests.methods.ovsegmentor.conftest import published_state


@pytest.fixture(scope="module")
def labels_of():
    """The labels of one picture by the toy model with some weights."""
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)

    def labels(weights):
        segmenter = talk2dino.load_segmenter("ovsegmentor_toy", weights)
        query = segmenter.query(["cat", "dog", "boat", "bus", "tree", "cup"], 0.3)
        return talk2dino.label_map(segmenter, image, query)

    return labels


def test_a_published_file_and_its_folder_segment_as_the_model_they_hold(
    tmp_path, publish, labels_of, monkeypatch
):
    file, folder = publish(published_state()), tmp_path / "folder"
    for name in [name for name in sys.modules if name.split(".")[0] == "omegaconf"]:
        monkeypatch.delitem(sys.modules, name)  # the library of the file's configuration
    assert main(["convert", "ovsegmentor", str(file), str(folder)]) == 0
    expected = labels_of("seeded:0")
    assert not np.array_equal(labels_of("seeded:1"), expected)  # so that equal means the same
    for weights in (file, folder):
        assert np.array_equal(labels_of(str(weights)), expected)
