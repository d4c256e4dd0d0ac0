"""Small data sets in the benchmarks' layouts, and a segmenter whose result is known."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.benchmarks.job import Evaluation
from talk2dino.methods.registry import find_method

MINIATURES = Path(__file__).parents[1] / "parity" / "data" / "seg" / "data"


def evaluation_of(row):
    """Of a model that is never loaded."""
    return Evaluation(row, find_method("toy"), 0.5 if row.background else None)


class ByColour:
    """Scores class k by how close a pixel is to grey level 12 k; the background is a threshold."""

    def embed_classes(self, names):
        return torch.arange(len(names), dtype=torch.float32)[:, None] * 12

    def window_scores(self, windows, query):
        classes, background = query.rows, query.background
        grey = windows.mean(dim=1, keepdim=True)
        scores = 1 / (1 + (grey - classes[None, :, :, None]).abs())
        if background is None:
            return scores
        return torch.cat([torch.full_like(scores[:, :1], background), scores], dim=1)


@pytest.fixture
def by_colour():
    return ByColour()


@pytest.fixture
def miniatures(tmp_path):
    """A copy of the eight miniatures, to be spoilt."""
    return shutil.copytree(MINIATURES, tmp_path / "data")


@pytest.fixture
def make_voc(tmp_path):
    """Make a VOC folder of so many small images with smooth grey values and labels."""

    def make(count, size=(40, 56), root=tmp_path / "voc_data"):
        voc = root / "VOCdevkit" / "VOC2012"
        for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (voc / part).mkdir(parents=True)
        generator = np.random.default_rng(0)
        names = [f"{index:06d}" for index in range(count)]
        for name in names:
            labels = generator.integers(0, 21, (4, 6), dtype=np.uint8)
            labels = labels.repeat(size[0] // 4, axis=0).repeat(-(-size[1] // 6), axis=1)
            labels = labels[:, : size[1]]
            image = np.repeat(labels[..., None] * 12, 3, axis=2)
            noise = generator.integers(0, 9, image.shape, dtype=np.uint8)
            Image.fromarray(image + noise).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
            Image.fromarray(labels).save(voc / "SegmentationClass" / f"{name}.png")
        listing = voc / "ImageSets" / "Segmentation" / "val.txt"
        listing.write_text("".join(f"{name}\n" for name in names))
        return root

    return make
