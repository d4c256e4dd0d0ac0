"""The handlers of the page, called as Gradio calls them, and what they show."""

import json

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from talk2dino.app import pictures
from talk2dino.app.handlers import BUG, Handlers, on_click, on_failure, on_look, on_stop
from talk2dino.app.inputs import Limits
from talk2dino.app.models import Entry, Models
from talk2dino.app.work import segment
from talk2dino.methods.base import PictureRules

MARKUP = "<img src=x onerror=alert(1)>"
RULES = PictureRules(0.5)
OVERLAY, LEGEND, PIXEL, MASK_FILE, OVERLAY_FILE = range(5)
HEAT, SCALE, POSITION, RESULT, STATUS, RUN, STOP = range(5, 12)
pytestmark = pytest.mark.usefixtures("uploads")


def ask(models, upload, categories="cup, spoon", model="toy", background=False):
    """All updates of one request without refinement."""
    asked = (upload, categories, model, background, 0.5, [])
    return list(Handlers(models, Limits()).on_run(0.5, *asked))


def is_unchanged(value):
    return isinstance(value, dict) and value == gr.skip()


def test_a_request_shows_everything_and_can_be_stopped_meanwhile(models, small_photo):
    *busy, last = ask(models, small_photo)
    assert busy
    for update in busy:
        assert "t2d-busy" in update[STATUS]
        assert update[STOP].interactive
        assert not update[RUN].interactive
        assert is_unchanged(update[OVERLAY])
    assert "t2d-done" in last[STATUS]
    assert (last[RUN].interactive, last[STOP].interactive) == (True, False)
    assert last[OVERLAY].size == (720, 480)
    assert "spoon" in last[LEGEND]
    assert [name for _, name in last[HEAT]] == ["cup", "spoon"]
    assert last[POSITION] == ""
    assert last[MASK_FILE].value["path"].endswith("my_coffee_mask.png")


def test_a_wrong_request_says_why_and_keeps_what_is_shown(models):
    (update,) = ask(models, None)
    assert "t2d-error" in update[STATUS]
    assert 'role="alert"' in update[STATUS]
    assert "Choose a picture" in update[STATUS]
    assert all(is_unchanged(value) for value in update[:STATUS])
    assert (update[RUN].interactive, update[STOP].interactive) == (True, False)


def test_an_unexpected_error_is_logged_and_ends_in_a_sentence(small_photo, caplog):
    models = Models([Entry("broken", lambda: {}["secret"], RULES)], "cpu")
    *_, update = ask(models, small_photo, model="broken")
    assert BUG in update[STATUS]
    assert "secret" not in update[STATUS]
    assert "KeyError: 'secret'" in caplog.text


def test_a_model_that_cannot_be_loaded_says_so(small_photo):
    def find():
        raise FileNotFoundError("there are no weights at weights/vitb.pth")

    models = Models([Entry("vitb", find, RULES)], "cpu")
    *_, update = ask(models, small_photo, model="vitb")
    assert "no weights at weights/vitb.pth" in update[STATUS]


def test_a_click_shows_the_scores_there(models, small_photo):
    result = ask(models, small_photo)[-1][RESULT]
    event = gr.SelectData(None, {"index": [12 * 12 + 3, 7 * 12 + 11], "value": None})  # enlarged
    *shown, status, position = on_click(result, 0.5, 0.5, "toy", event)
    assert position == "12, 7"
    assert "column 12, row 7" in shown[PIXEL]
    assert is_unchanged(status)


def test_sliders_before_the_first_result_change_nothing():
    assert all(is_unchanged(value) for value in on_look(None, 0.5, 0.5, "", "toy"))


def test_what_cannot_be_drawn_is_said_and_changes_nothing(models, small_photo, monkeypatch):
    def fails(*args):
        raise OSError("disk full")

    result = ask(models, small_photo)[-1][RESULT]
    monkeypatch.setattr(pictures, "save_files", fails)
    *shown, status = on_look(result, 0.5, 0.5, "", "toy")
    assert all(is_unchanged(value) for value in shown)
    assert "disk full" in status


def test_choosing_a_model_brings_its_notice_and_what_it_can(models):
    handlers = Handlers(models, Limits())
    notice, threshold, refine = handlers.on_model("toy")
    assert "untrained" in notice
    assert threshold.value == models.entry("toy").rules.threshold
    assert (threshold.minimum, threshold.maximum, threshold.info) == (0.3, 0.8, None)
    assert refine.interactive
    _, threshold, refine = handlers.on_model("ovsegmentor_toy=seeded:0")
    assert (threshold.minimum, threshold.maximum, threshold.value) == (0, 1, 0.95)
    assert "Press Segment" in threshold.info
    assert not refine.interactive
    assert handlers.on_model("slow")[0] == ""
    assert all(is_unchanged(value) for value in handlers.on_model("<b>other"))


def test_only_a_request_that_was_not_stopped_is_told_that_too_many_wait():
    status, run, stop = on_failure("")
    assert "Too many requests" in status
    assert (run.interactive, stop.interactive) == (True, False)
    stopped, *_ = on_stop()
    assert all(is_unchanged(value) for value in on_failure(stopped))


@pytest.fixture(scope="module")
def result(models, photos):
    """One with a background."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(photos))
        upload = {"path": str(photos / "chelsea.png")}
        asked = (upload, f"cat, {MARKUP}", "toy", True, 0.5, ())
        *_, found = segment(models, Limits(max_side=200), *asked)
    return found


def look(result, threshold=0.5, opacity=0.5, position=""):
    """What is shown, as the page gets it."""
    *shown, status = on_look(result, threshold, opacity, position, "toy")
    assert is_unchanged(status)
    return shown


def files_of(shown):
    return [button.value["path"] for button in shown[MASK_FILE:]]


def test_the_files_hold_the_labels_at_full_size_and_the_legend(result):
    shown, found = look(result), result.segmentation
    mask_file, overlay_file = files_of(shown)
    with Image.open(mask_file) as mask:
        assert (mask.mode, mask.size) == ("P", (451, 300))
        assert set(np.unique(np.asarray(mask))) == set(np.unique(found.labels))
        assert json.loads(mask.info["talk2dino"])["model"] == "toy"
    with Image.open(overlay_file) as overlay:
        assert overlay.width == 252  # as wide as its legend
        assert overlay.height > 133
        corner = np.asarray(overlay)[:133, :200]
    np.testing.assert_array_equal(corner, np.asarray(found.overlay(0.5, legend=False)))
    assert shown[OVERLAY].size == (800, 532), "a small picture is enlarged on the screen"
    assert mask_file.endswith("/chelsea_mask.png")


def test_opacity_and_threshold_change_the_picture(result):
    plain = look(result, opacity=0.0)[OVERLAY].reduce(4)
    difference = np.asarray(plain, float) - np.asarray(result.picture.image, float)
    assert np.abs(difference).mean() < 2
    legend = look(result, threshold=1.0)[LEGEND]
    assert "100.0 %" in legend
    assert legend.index(">background<") < legend.index(">cat<")


def test_a_chosen_pixel_is_marked_in_the_picture_but_not_in_the_files(result):
    def seen(position):
        overlay, _, _, *files = look(result, position=position)
        return np.asarray(overlay), [open(f.value["path"], "rb").read() for f in files]

    (without, files), (marked, same) = seen(""), seen("100, 60")
    assert np.any(marked != without)
    assert files == same


def test_the_scores_at_a_pixel_are_those_of_the_result(result):
    found = result.segmentation
    html = look(result, position="7,9")[PIXEL]
    for name, score in zip(("background", "cat"), found.scores[:2, 9, 7].tolist(), strict=True):
        assert f"<span>{name}</span>" in html
        assert f"<em>{score:.3f}</em>" in html
    assert "column 7, row 9" in html


@pytest.mark.parametrize("position", ["", "7", "7,", "a, b", "-1, 2", "1, 2, 3", "1.5, 2"])
def test_an_unfinished_position_asks_for_no_pixel(result, position):
    assert look(result, position=position)[PIXEL] == pictures.PIXEL_HINT


def test_a_position_outside_is_moved_to_the_border(result):
    assert "column 199, row 132" in look(result, position="9999 9999")[PIXEL]


def test_markup_in_a_name_is_text_everywhere(result):
    shown = look(result, position="1, 1")
    pieces = [shown[LEGEND], shown[PIXEL], pictures.status(MARKUP), pictures.notice(MARKUP)]
    for html in pieces:
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<b>" not in pictures.header("<b>")


def test_heat_maps_share_one_scale_and_leave_the_background_out(result):
    maps, scale = pictures.heat_of(result)
    assert [name for _, name in maps] == ["cat", MARKUP]
    assert all(image.size == (200, 133) for image, _ in maps)
    scores = result.segmentation.scores[1:]
    assert f"{scores.min():.3f}" in scale
    assert f"{scores.max():.3f}" in scale


def test_many_scores_are_cut_after_the_best(models, photo):
    names = ", ".join(f"thing {index}" for index in range(11))
    *_, done = segment(models, Limits(max_side=50), photo, names, "toy", refine=())
    html = pictures.pixel_scores(done.segmentation, 0, 0)
    assert html.count("<li") == pictures.PIXEL_ROWS
    assert "and 3 lower ones" in html
    assert len(pictures.heat_of(done)[0]) == 11


@pytest.mark.parametrize("numbers", [(2, 0.5), (0.5, -0.1)])
def test_a_look_out_of_range_is_refused(result, numbers):
    *_, status = on_look(result, *numbers, "", "toy")
    assert "t2d-error" in status and "between 0 and 1" in status
