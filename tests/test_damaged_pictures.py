"""Pictures and label maps with flipped bytes or cut off, drawn with fixed seeds.

More of them by hand: `DAMAGES=5000 pytest tests/test_damaged_pictures.py`.
"""

import io
import os

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.data.labels import read_labels
from talk2dino.pictures import images
from talk2dino.pictures.images import check_image, check_whole, decode_rgb, read_rgb

DAMAGES = int(os.environ.get("DAMAGES", "150"))

FORMATS = {
    "rgb.png": ("RGB", {}),
    "grey.png": ("L", {}),
    "palette.png": ("P", {}),
    "photo.jpg": ("RGB", {"quality": 90}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "raw.tif": ("RGB", {}),
    "lzw.tif": ("RGB", {"compression": "tiff_lzw"}),
    "deflate.tif": ("RGB", {"compression": "tiff_adobe_deflate"}),
    "lossy.webp": ("RGB", {}),
    "lossless.webp": ("RGB", {"lossless": True}),
}


def encoded(name, side=24):
    mode, options = FORMATS[name]
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((side * 2, side * 2)).convert(mode)
    image.save(file, Image.registered_extensions()[name[name.index(".") :]], **options)
    return file.getvalue()


def damaged(data, seed):
    """The data with one to four other bytes, or cut; and whether it is cut."""
    random = np.random.default_rng(seed)
    if random.random() < 0.5:
        return data[: random.integers(len(data))], True
    changed = bytearray(data)
    for place in random.integers(len(data), size=random.integers(1, 5)):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed), False


@pytest.fixture(autouse=True)
def small_pictures_only(monkeypatch):
    """A header that promises more is refused before anything is decoded."""
    monkeypatch.setattr(images, "MAX_PIXELS", 2**18)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_picture_is_refused_or_whole(name, tmp_path):
    data = encoded(name)
    whole = decode_rgb(data, name).tobytes()
    path = tmp_path / name
    for seed in range(DAMAGES):
        spoiled, is_cut = damaged(data, seed)
        path.write_bytes(spoiled)
        read = []
        for function in (read_rgb, check_whole, check_image):
            try:
                read.append(function(path))
            except ValueError as error:
                assert name in str(error), seed
                read.append(error)
        picture, checked, _ = read
        assert isinstance(picture, ValueError) or checked is None, seed
        # Only PNGs hold checksums: elsewhere other bytes may be another intact picture.
        if not isinstance(picture, ValueError) and (is_cut or name.endswith(".png")):
            assert picture.tobytes() == whole, seed


@pytest.mark.parametrize("name", ["grey.png", "palette.png"])
def test_a_damaged_label_map_is_refused_or_whole(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(encoded(name))
    whole = read_labels(path)
    for seed in range(DAMAGES):
        path.write_bytes(damaged(encoded(name), seed)[0])
        try:
            labels = read_labels(path)
        except ValueError as error:
            assert name in str(error), seed
        else:
            assert np.array_equal(labels, whole), seed
