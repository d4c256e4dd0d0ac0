"""A segmentation as pictures, numbers and files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.pictures.drawing import class_colours
from talk2dino.pictures.segmentation import Segmentation


@pytest.fixture
def result():
    """4 x 2 pixels: the left half is a cat, the upper right a dog, the lower right nothing."""
    scores = torch.zeros(3, 2, 4)
    scores[0] = 0.5
    scores[1, :, :2] = 0.9
    scores[2, 0, 2:] = 0.7
    picture = Image.new("RGB", (4, 2), (200, 100, 0))
    names = ("background", "cat", "dog")
    return Segmentation(picture, scores.argmax(0), scores, names, 0.5, {"model": "toy"})


def test_areas_are_percentages(result):
    assert result.areas() == {"background": 25.0, "cat": 50.0, "dog": 25.0}


def test_scores_at_a_pixel_come_best_first(result):
    assert list(result.scores_at(3, 0)) == ["dog", "background", "cat"]
    assert result.scores_at(0, 1)["cat"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match=r"pixel \(4, 0\) lies outside a picture of 4 x 2"):
        result.scores_at(4, 0)


def test_a_pixel_between_pixels_is_refused(result):
    assert result.scores_at(1.0, 1) == result.scores_at(1, 1)
    with pytest.raises(ValueError, match=r"whole column and row, found \(1.5, 1\)"):
        result.scores_at(1.5, 1)


def test_an_overlay_starts_with_the_picture_and_has_a_legend_below(result):
    plain, drawn = result.overlay(legend=False), result.overlay()
    assert plain.size == (4, 2) and drawn.height > 2
    assert np.array_equal(np.asarray(drawn)[:2, :4], np.asarray(plain))
    opaque = np.asarray(result.overlay(opacity=1, legend=False))
    assert np.array_equal(opaque, result.colours[result.labels.numpy()])
    with pytest.raises(ValueError, match="opacity"):
        result.overlay(opacity=2)


def test_a_mask_holds_the_labels(result):
    mask = result.mask()
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), result.labels.numpy())


def test_a_heat_map_is_red_where_the_class_is_and_blue_elsewhere(result):
    heat = np.asarray(result.heat_map("cat", opacity=1)).astype(int)
    assert heat[0, 0, 0] > heat[0, 0, 2] and heat[0, 3, 2] > heat[0, 3, 0]
    assert np.array_equal(np.asarray(result.heat_map("cat", opacity=0)), np.asarray(result.image))
    flat = np.asarray(result.heat_map("background", opacity=1))
    assert (flat == flat[0, 0]).all()
    with pytest.raises(ValueError, match="unknown class 'cow'"):
        result.heat_map("cow")


def test_the_name_of_a_file_decides_what_it_holds(result, tmp_path):
    overlay = result.save(tmp_path / "cat.png")
    assert np.array_equal(np.asarray(Image.open(overlay)), np.asarray(result.overlay()))
    mask = Image.open(result.save(tmp_path / "cat_mask.png"))
    assert np.array_equal(np.asarray(mask), result.labels.numpy())
    record = json.loads(mask.text["talk2dino"])
    assert record == {"classes": ["background", "cat", "dog"], "background": 0.5, "model": "toy"}
    with np.load(result.save(tmp_path / "cat.npz")) as arrays:
        assert np.array_equal(arrays["scores"], result.scores.numpy())
        assert list(arrays["classes"]) == ["background", "cat", "dog"]
        assert json.loads(str(arrays["settings"])) == record
    assert Image.open(result.save(tmp_path / "cat.jpg")).format == "JPEG"


def test_files_are_not_overwritten_and_wrong_suffixes_are_refused(result, tmp_path):
    result.save(tmp_path / "cat.png")
    with pytest.raises(FileExistsError, match="exists already"):
        result.save(tmp_path / "cat.png")
    result.save(tmp_path / "cat.png", overwrite=True)
    with pytest.raises(ValueError, match="written as .png, .jpg.* not .tiff"):
        result.save(tmp_path / "cat.tiff")


def test_parts_that_do_not_belong_together_are_refused(result):
    with pytest.raises(ValueError, match=r"2 names and a picture of 4 x 2 need scores \(2, 2, 4\)"):
        Segmentation(result.image, result.labels, result.scores, ("cat", "dog"))


@pytest.mark.parametrize("size", [(640, 480), (7, 5), (3000, 40)])
def test_the_overlay_keeps_every_pixel_in_place_and_names_every_class(size):
    width, height = size
    labels = torch.zeros(height, width).long()
    labels[:, width // 2 :] = 1
    names, colours = ("left", "right", "nowhere"), class_colours(3)
    found = Segmentation(
        Image.new("RGB", size, (10, 20, 30)), labels, torch.zeros(3, height, width), names
    )
    overlay = found.overlay()
    assert overlay.width >= width and overlay.height > height
    corner = np.asarray(overlay)[:height, :width]
    assert np.array_equal(corner, np.asarray(found.overlay(legend=False)))
    legend = np.asarray(overlay)[height:].reshape(-1, 3)
    assert all((legend == colour).all(axis=1).any() for colour in colours)
    assert found.overlay(1.0).getpixel((1, 1)) == tuple(colours[0])
    other = dataclasses.replace(found, palette=colours[::-1])
    assert other.overlay(1.0).getpixel((1, 1)) == tuple(colours[2])
    with pytest.raises(ValueError, match=r"opacity must lie in \[0, 1\], got 1\.5"):
        found.overlay(1.5)
