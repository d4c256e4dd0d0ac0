"""Pictures with their masks."""

import numpy as np
import pytest
from PIL import Image

from talk2dino.toy.examples import read_examples


@pytest.fixture
def voc(tmp_path):
    """Two pictures, left half black and right half white; one mask has a wrong quarter."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    wrong = mask.copy()
    wrong[:16, 16:] = 0
    wrong[:, 14:18] = 255
    for name, labels in (("a", mask), ("b", wrong)):
        Image.fromarray(image).save(tmp_path / "JPEGImages" / f"{name}.jpg", quality=100)
        Image.fromarray(labels).save(tmp_path / "SegmentationClass" / f"{name}.png")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n")
    (tmp_path / "class_names.txt").write_text("coal\nchalk\n")
    return tmp_path


def test_every_listed_picture_is_read_with_its_mask(voc):
    examples = list(read_examples(voc))
    assert [example.path.stem for example in examples] == ["a", "b"]
    assert examples[0].image.shape == (3, 32, 32)
    assert examples[1].mask.unique().tolist() == [0, 1, 255]
