import json

import numpy as np
import pytest
from PIL import Image

from talk2dino.app import pictures
from talk2dino.app.inputs import Limits, Upload
from talk2dino.app.pictures import heat_of, look_at
from talk2dino.app.work import Request, Results, segment

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def kept(models, photos, tmp_path_factory):
    """A store with one result, with background, and its key."""
    upload = Upload(photos / "chelsea.png", "chelsea.png")
    request = Request(upload, f"cat, {MARKUP}", "toy", background=True, threshold=0.5, refine=())
    *_, done = segment(request, models, Limits(max_side=200))
    results = Results(tmp_path_factory.mktemp("results"))
    return results, results.put(done.result)


def test_the_files_hold_the_labels_at_full_size_and_the_legend(kept):
    results, key = kept
    shown = look_at(results, key, threshold=0.5)
    found = results.get(key).segmentation
    with Image.open(shown.mask_file) as mask:
        assert (mask.mode, mask.size) == ("P", (451, 300))
        assert set(np.unique(np.asarray(mask))) == set(np.unique(found.labels))
        assert json.loads(mask.info["talk2dino"])["model"] == "toy"
    with Image.open(shown.overlay_file) as overlay:
        assert overlay.width == 252  # as wide as its legend
        assert overlay.height > 133
        corner = np.asarray(overlay)[:133, :200]
    np.testing.assert_array_equal(corner, np.asarray(found.overlay(0.5, legend=False)))
    assert shown.overlay.size == (800, 532), "a small picture is enlarged on the screen"
    assert shown.mask_file.name == "chelsea_mask.png"


def test_opacity_and_threshold_change_the_picture(kept):
    results, key = kept
    plain = look_at(results, key, 0.5, opacity=0.0).overlay.reduce(4)
    difference = np.asarray(plain, float) - np.asarray(results.get(key).picture.image, float)
    assert np.abs(difference).mean() < 2
    everything = look_at(results, key, threshold=1.0)
    assert "100.0 %" in everything.legend
    assert everything.legend.index(">background<") < everything.legend.index(">cat<")


def test_a_chosen_pixel_is_marked_in_the_picture_but_not_in_the_files(kept):
    results, key = kept
    without = look_at(results, key, 0.5)
    files = [path.read_bytes() for path in (without.mask_file, without.overlay_file)]
    with_ring = look_at(results, key, 0.5, position="100, 60")
    assert np.any(np.asarray(with_ring.overlay) != np.asarray(without.overlay))
    assert [p.read_bytes() for p in (with_ring.mask_file, with_ring.overlay_file)] == files


def test_the_scores_at_a_pixel_are_those_of_the_result(kept):
    results, key = kept
    found = results.get(key).segmentation
    html = look_at(results, key, 0.5, position="7,9").pixel
    for name, score in zip(("background", "cat"), found.scores[:2, 9, 7].tolist(), strict=True):
        assert f"<span>{name}</span>" in html
        assert f"<em>{score:.3f}</em>" in html
    assert "column 7, row 9" in html


@pytest.mark.parametrize("position", ["", "7", "7,", "a, b", "-1, 2", "1, 2, 3", "1.5, 2"])
def test_an_unfinished_position_asks_for_no_pixel(kept, position):
    assert look_at(*kept, 0.5, position=position).pixel == pictures.PIXEL_HINT


def test_a_position_outside_is_moved_to_the_border(kept):
    assert "column 199, row 132" in look_at(*kept, 0.5, position="9999 9999").pixel


def test_markup_in_a_name_is_text_everywhere(kept):
    results, key = kept
    shown = look_at(results, key, 0.5, position="1, 1")
    pieces = [shown.legend, shown.pixel, pictures.status(MARKUP), pictures.notice(MARKUP)]
    for html in pieces:
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<b>" not in pictures.header("<b>")


def test_heat_maps_share_one_scale_and_leave_the_background_out(kept):
    results, key = kept
    result = results.get(key)
    maps, scale = heat_of(result)
    assert [name for _, name in maps] == ["cat", MARKUP]
    assert all(image.size == (200, 133) for image, _ in maps)
    scores = result.segmentation.scores[1:]
    assert f"{scores.min():.3f}" in scale
    assert f"{scores.max():.3f}" in scale


def test_many_scores_are_cut_after_the_best(models, photo):
    names = ", ".join(f"thing {index}" for index in range(11))
    *_, done = segment(Request(photo, names, "toy", refine=()), models, Limits(max_side=50))
    html = pictures.pixel_scores(done.result.segmentation, 0, 0)
    assert html.count("<li") == pictures.PIXEL_ROWS
    assert "and 3 lower ones" in html
    assert len(heat_of(done.result)[0]) == 11


@pytest.mark.parametrize("look", [{"threshold": 2}, {"opacity": -0.1}])
def test_a_look_out_of_range_is_refused(kept, look):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        look_at(*kept, **look)


def test_a_result_that_made_room_says_so(kept, tmp_path):
    results, _ = kept
    for key in ("unknown", None):
        with pytest.raises(ValueError, match="no longer kept"):
            look_at(results, key)


def test_a_result_that_vanishes_while_it_is_drawn_says_so(kept, tmp_path, monkeypatch):
    results, key = kept
    result = results.get(key)
    answers = iter([result, None])
    monkeypatch.setattr(results, "get", lambda key: next(answers))
    monkeypatch.setattr(results, "folder", lambda key: tmp_path / "removed" / "x")
    monkeypatch.setattr(pictures, "save_files", _fails)
    with pytest.raises(ValueError, match="no longer kept"):
        look_at(results, key)


def test_a_full_disk_is_not_taken_for_a_vanished_result(kept, monkeypatch):
    monkeypatch.setattr(pictures, "save_files", _fails)
    with pytest.raises(OSError, match="disk full"):
        look_at(*kept)


def _fails(*args):
    raise OSError("disk full")
