"""PASCAL Context masks from a small file in the layout of `trainval_merged.json`."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from talk2dino.benchmarks.data.convert import (
    CONTEXT_IDS,
    find_context_json,
    plan_context,
    run_conversions,
    write_lists,
)
from talk2dino.benchmarks.data.labels import read_labels
from talk2dino.benchmarks.table import BENCHMARKS


def run_lengths(mask):
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


@pytest.fixture
def annotations(tmp_path):
    """One validation and one training image, 4 x 6, with a person on grass and a boat."""
    person, grass = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    person[1:3, 2:4] = True
    grass[2:, :2] = True
    uncompressed = {"size": [4, 6], "counts": [0, 4, 20]}  # column by column: the first column
    image = {"height": 4, "width": 6}
    content = {
        "images": [
            image | {"file_name": "2008_000002.jpg", "image_id": 7, "phase": "val"},
            image | {"file_name": "2008_000003.jpg", "image_id": 8, "phase": "train"},
            image | {"file_name": "2008_000004.jpg", "image_id": 9, "phase": "test"},
        ],
        "annos_segmentation": [
            {"image_id": 7, "category_id": 284, "segmentation": run_lengths(person)},
            {"image_id": 7, "category_id": 187, "segmentation": run_lengths(grass)},
            {"image_id": 8, "category_id": 31, "segmentation": uncompressed},
        ],
    }
    path = tmp_path / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def test_the_59_classes_and_their_ids_are_in_alphabetical_order():
    names = BENCHMARKS["context59"].classes
    assert len(names) == len(CONTEXT_IDS) == 59
    assert list(names) == sorted(names) and list(CONTEXT_IDS) == sorted(set(CONTEXT_IDS))


def test_masks_and_lists_are_written(annotations):
    folder = annotations.parent
    assert find_context_json(folder) == annotations
    plan, lists = plan_context(annotations, folder)
    outcome = run_conversions(plan, workers=2)
    assert (outcome.written, outcome.failures) == (2, [])
    write_lists(folder, lists, overwrite=False)
    person, grass, boat = 37, 29, 8
    mask = read_labels(folder / "SegmentationClassContext" / "2008_000002.png")
    assert mask.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, person, person, 0, 0],
        [grass, grass, person, person, 0, 0],
        [grass, grass, 0, 0, 0, 0],
    ]
    mask = read_labels(folder / "SegmentationClassContext" / "2008_000003.png")
    assert (mask[:, 0] == boat).all() and not mask[:, 1:].any()
    assert (folder / "ImageSets/SegmentationContext/val.txt").read_text() == "2008_000002\n"
    write_lists(folder, lists, overwrite=False)  # the same lists: nothing to complain about


def test_another_list_is_not_overwritten_unasked(annotations):
    path = annotations.parent / "ImageSets" / "SegmentationContext" / "val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("2009_000001\n")
    _, lists = plan_context(annotations, annotations.parent)
    with pytest.raises(FileExistsError, match="lists other images"):
        write_lists(annotations.parent, lists, overwrite=False)
    write_lists(annotations.parent, lists, overwrite=True)
    assert path.read_text() == "2008_000002\n"


def test_a_category_outside_the_59_is_an_error(annotations):
    content = json.loads(annotations.read_text())
    content["annos_segmentation"][0]["category_id"] = 1
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="trainval_merged.json: category 1 is none of the 59"):
        plan_context(annotations, annotations.parent)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{}], "annos_segmentation": []}'])
def test_another_file_is_refused(annotations, text):
    annotations.write_text(text)
    with pytest.raises(ValueError, match="trainval_merged"):
        plan_context(annotations, annotations.parent)


@pytest.mark.parametrize("key", ["file_name", "image_id"])
def test_an_image_listed_twice_is_named(annotations, key):
    content = json.loads(annotations.read_text())
    content["images"][1][key] = content["images"][0][key]
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"json: {key} lists more than once: .* \\(2 times\\)"):
        plan_context(annotations, annotations.parent)


def test_a_list_with_a_mark_and_other_line_ends_is_the_same_list(tmp_path):
    write_lists(tmp_path, {"val": ["a", "b"]}, overwrite=False)
    (path,) = tmp_path.rglob("val.txt")
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    write_lists(tmp_path, {"val": ["a", "b"]}, overwrite=False)
    with pytest.raises(FileExistsError, match="lists other images"):
        write_lists(tmp_path, {"val": ["a", "c"]}, overwrite=False)
