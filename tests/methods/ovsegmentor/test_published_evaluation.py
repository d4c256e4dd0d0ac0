"""A file in the published layout, and what it is converted to, are evaluated alike."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmseg")

from talk2dino.__main__ import main
from talk2dino.benchmarks.results import read_counts, read_result
from tests.methods.ovsegmentor.conftest import published_state

MINIATURES = Path(__file__).parents[2] / "parity" / "data" / "seg" / "data"


@pytest.fixture
def one_image(tmp_path):
    """VOC with the first image of the miniature alone."""
    voc = shutil.copytree(MINIATURES / "VOCdevkit", tmp_path / "data" / "VOCdevkit") / "VOC2012"
    names = voc / "ImageSets" / "Segmentation" / "val.txt"
    names.write_text(names.read_text().splitlines()[0] + "\n")
    return tmp_path / "data"


def evaluated(weights, data, output):
    """The result of the toy model with some weights, and its counts."""
    words = ["evaluate", "--model", "ovsegmentor_toy", "--weights", weights, "--device", "cpu"]
    words += ["--benchmarks", "voc", "--data_root", data, "--output", output]
    assert main([str(word) for word in words]) == 0
    (path,) = output.glob("voc_*.json")
    return read_result(path), read_counts(path)


def test_a_published_file_and_its_folder_are_evaluated_as_the_model_they_hold(
    tmp_path, publish, one_image, monkeypatch
):
    file, folder = publish(published_state()), tmp_path / "folder"
    for name in [name for name in sys.modules if name.split(".")[0] == "omegaconf"]:
        monkeypatch.delitem(sys.modules, name)  # the library of the file's configuration
    assert main(["convert", "ovsegmentor", str(file), str(folder)]) == 0
    expected, counts = evaluated("seeded:0", one_image, tmp_path / "seeded")
    another, _ = evaluated("seeded:1", one_image, tmp_path / "another")
    assert another["mIoU"] != expected["mIoU"]  # so that equal numbers mean the same weights
    for weights in (file, folder):
        result, found = evaluated(weights, one_image, tmp_path / f"of_{weights.name}")
        assert result["settings"]["segmenter"]["weights"] != "seeded:0"
        assert result["mIoU"] == expected["mIoU"]
        assert found.keys() == counts.keys()
        for name, value in counts.items():
            assert np.array_equal(found[name], value), name
