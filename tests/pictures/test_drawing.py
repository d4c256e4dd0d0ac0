"""Colours, indexed masks, overlays and legends."""

import numpy as np
import pytest
from PIL import Image

from talk2dino.pictures.drawing import (
    class_colours,
    colour_pixels,
    draw_legend,
    drawn_name,
    indexed_mask,
    legend_font,
    legend_font_size,
)


def present(image, colour):
    return bool((np.asarray(image) == np.array(colour)).all(axis=-1).any())


@pytest.mark.parametrize("count", [0, 1, 2, 21, 171, 256, 848])
@pytest.mark.parametrize("background", [False, True])
def test_colours_never_repeat_and_are_always_the_same(count, background):
    colours = class_colours(count, background)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours.tolist()}) == count
    assert np.array_equal(colours, class_colours(count, background))


def test_a_class_keeps_its_colour_when_others_are_added():
    assert np.array_equal(class_colours(5), class_colours(300)[:5])
    assert np.array_equal(class_colours(6, background=True)[1:], class_colours(5))


def test_few_classes_get_clearly_different_colours_and_none_looks_like_background():
    colours = class_colours(20, background=True).astype(int)
    gaps = np.abs(colours[:, None] - colours[None]).sum(axis=-1)
    assert colours[0].tolist() == [0, 0, 0]
    assert gaps[~np.eye(20, dtype=bool)].min() > 80


def test_an_indexed_mask_holds_labels_and_shows_colours(tmp_path):
    labels = np.array([[0, 1], [2, 255]])
    colours = class_colours(256, background=True)
    indexed_mask(labels, colours).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P" and np.asarray(mask).tolist() == labels.tolist()
        assert np.array_equal(np.asarray(mask.convert("RGB")), colours[labels])


def test_an_indexed_mask_of_too_many_classes_is_refused():
    with pytest.raises(ValueError, match="at most 256 classes, found 257"):
        indexed_mask(np.zeros((2, 2), int), class_colours(257))


def test_pixels_are_mixed_by_opacity():
    pixels = np.full((4, 4, 3), 200, dtype=np.uint8)
    labels = np.zeros((4, 4), int)
    colours = np.array([[100, 0, 250]], dtype=np.uint8)
    assert colour_pixels(pixels, labels, colours, 0.0).tolist() == pixels.tolist()
    assert colour_pixels(pixels, labels, colours, 1.0)[0, 0].tolist() == [100, 0, 250]
    assert colour_pixels(pixels, labels, colours, 0.5)[0, 0].tolist() == [150, 100, 225]


def test_borders_between_classes_have_the_full_colour():
    labels = np.zeros((3, 4), int)
    labels[:, 2:] = 1
    colours = class_colours(2)
    mixed = colour_pixels(np.zeros((3, 4, 3), np.uint8), labels, colours, 0.5)
    assert mixed[1, 1].tolist() == colours[0].tolist()
    assert mixed[1, 0].tolist() == (colours[0] // 2).tolist()


def test_many_names_grow_downwards_and_long_ones_sidewards():
    names = [f"class {i}" for i in range(171)]
    legend = draw_legend(names, class_colours(171), 400, 14)
    assert legend.width == 400 and legend.height > 500
    assert (np.asarray(legend)[:, -4:] == 255).all()  # nothing is cut off at the right
    assert all(present(legend, colour) for colour in class_colours(171))
    long = np.asarray(draw_legend(["x" * 100, "cat"], class_colours(2), 400, 14))
    assert long.shape[1] > 700 and (long[:, -4:] == 255).all()


def test_no_names_need_no_legend():
    assert draw_legend([], class_colours(0), 100, 14).height == 0


def test_text_grows_with_the_picture():
    assert legend_font_size(20, 20) == 14
    assert legend_font_size(4000, 3000) > 80
    assert legend_font_size(30_000, 100) == 160


def test_a_name_is_drawn_in_a_font_that_has_its_letters():
    assert drawn_name("ночь", 0) == ("ночь", legend_font(10).path)
    text, path = drawn_name("\ue0fa", 0)  # only in a mathematical font of matplotlib's
    assert text == "\ue0fa" and "STIX" in path


def test_names_that_no_font_has_are_said_and_told_apart(caplog):
    no_letters = ["\U000e0f1b", "\U000e0f1c", "\U000e0f1b cat"]
    assert [drawn_name(name, i)[0] for i, name in enumerate(no_letters)] == ["#0", "#1", "#2 cat"]
    for name in no_letters:
        assert repr(name) in caplog.text
    colours = class_colours(3)
    pictures = [draw_legend([name] * 3, colours, 200, 20).tobytes() for name in no_letters[:2]]
    assert pictures[0] == pictures[1]  # three numbers each, not three boxes
    legend = np.asarray(draw_legend(no_letters[:2], colours[:2], 400, 20))
    assert not np.array_equal(legend[:, 30:60], legend[:, 90:120])


def test_blanks_and_joiners_need_no_letter():
    assert drawn_name("a\u200d\u00a0b\u3000c", 5)[0] == "a\u200d\u00a0b\u3000c"
