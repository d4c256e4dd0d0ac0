"""Exports, read back: by pycocotools, by Label Studio's rule, and as pictures."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.pictures.export import Export, brush_rle, coco_mask
from talk2dino.pictures.segmentation import Segmentation

NAMES = ("background", "cat", "a dog/wolf", "tree")


def segmentation(seed, names=NAMES):
    """Labels 0 to 2 in patches: there is no tree."""
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(random.integers(0, 3, (6, 8)).repeat(3, 0).repeat(4, 1))
    image = Image.fromarray(np.zeros((18, 32, 3), np.uint8))
    threshold = 0.5 if names[0] == "background" else None
    return Segmentation(image, labels, torch.zeros(len(names), 18, 32), names, threshold)


def exported(kind, path, *found):
    export = Export(kind, path, Path("photos").resolve())
    for number, segmented in enumerate(found):
        export.add(segmented, Path("photos") / "sub" / f"{number}.jpg")
    assert export.write() == path


def test_pycocotools_reads_every_mask_back(tmp_path):
    coco = pytest.importorskip("pycocotools.coco").COCO
    pictures = [segmentation(1), segmentation(2)]
    exported("coco", tmp_path / "coco.json", *pictures)
    with contextlib.redirect_stdout(io.StringIO()):
        read = coco(tmp_path / "coco.json")
    assert [c["name"] for c in read.loadCats(read.getCatIds())] == list(NAMES[1:])
    assert [image["file_name"] for image in read.loadImgs([1, 2])] == ["sub/0.jpg", "sub/1.jpg"]
    marks = read.loadAnns(read.getAnnIds())
    assert len(marks) == 4
    for mark in marks:
        mask = pictures[mark["image_id"] - 1].labels.numpy() == mark["category_id"]
        assert np.array_equal(read.annToMask(mark), mask)
        assert mark["area"] == mask.sum()
        left, top, wide, high = mark["bbox"]
        assert mask[top : top + high, left : left + wide].sum() == mask.sum()
        assert mask[top].any() and mask[:, left + wide - 1].any()


def decoded(rle):
    """Label Studio's reading of a brush: (N,) values of RGBA pixels."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    values = np.zeros(read(32), np.uint8)
    word = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    start = 0
    while start < len(values):
        run = read(1)
        end = start + 1 + read(sizes[read(2)])
        assert run and end <= len(values)
        values[start:end] = read(word)
        start = end
    return values


def test_a_brush_of_label_studio_is_read_back(tmp_path):
    found = segmentation(3)
    exported("labelstudio", tmp_path / "tasks.json", found)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"image": "sub/0.jpg"}
    results = task["predictions"][0]["result"]
    assert [mark["value"]["brushlabels"] for mark in results] == [["cat"], ["a dog/wolf"]]
    for label, mark in enumerate(results, start=1):
        assert (mark["original_width"], mark["original_height"]) == (32, 18)
        pixels = decoded(mark["value"]["rle"]).reshape(18, 32, 4)
        assert np.array_equal(pixels[..., 3], 255 * (found.labels.numpy() == label))


def test_runs_that_are_longer_than_a_brush_can_say_are_several():
    mask = np.ones((200, 300), bool)  # 240,000 values
    mask[0, 0] = False
    values = decoded(brush_rle(mask)).reshape(200, 300, 4)
    assert np.array_equal(values == 255, mask[..., None].repeat(4, axis=2))
    assert coco_mask(mask)["segmentation"]["counts"] == [1, 59_999]
    assert coco_mask(~mask)["segmentation"]["counts"] == [0, 1, 59_999]


def test_masks_are_a_picture_per_class_that_occurs(tmp_path):
    found = segmentation(4, NAMES[1:])
    exported("masks", tmp_path / "masks", found)
    files = sorted((tmp_path / "masks" / "sub" / "0.jpg").iterdir())
    assert [path.name for path in files] == ["000_cat.png", "001_a_dog_wolf.png", "002_tree.png"]
    for label, path in enumerate(files):
        mask = np.asarray(Image.open(path))
        assert np.array_equal(mask, 255 * (found.labels.numpy() == label))
