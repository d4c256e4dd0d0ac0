"""The handlers of the page, called as Gradio calls them, and what they show."""

import json
import re

import gradio as gr
import numpy as np
import pytest
from gradio.blocks import Block
from PIL import Image

from talk2dino.app import page, pictures
from talk2dino.app.page import BUG, Page
from talk2dino.app.request import Entry, Limits, Models, segment
from talk2dino.methods.base import PictureRules

MARKUP = "<img src=x onerror=alert(1)>"
RULES = PictureRules(0.5)
pytestmark = pytest.mark.usefixtures("uploads")


@pytest.fixture(scope="module")
def shown(models):
    """A page that nobody has opened."""
    return built(models)


def built(models):
    page = Page(models, Limits())
    page.blocks = page.build()
    return page


def ask(shown, upload, categories="cup, spoon", model="toy"):
    """All updates of one request without refinement, by the names of the components."""
    asked = (upload, categories, model, False, 0.5, [])
    return [named(shown, updates) for updates in shown.on_run(0.5, *asked)]


def named(shown, updates):
    parts = {part: name for name, part in vars(shown).items() if isinstance(part, Block)}
    return {parts[part]: value for part, value in updates.items() if not is_unchanged(value)}


def is_unchanged(value):
    return isinstance(value, dict) and value == gr.skip()


def test_a_request_shows_everything_and_can_be_stopped_meanwhile(shown, small_photo):
    *busy, last = ask(shown, small_photo)
    assert busy
    for update in busy:
        assert "t2d-busy" in update["status"]
        assert update["stop"].interactive and not update["run"].interactive
        assert set(update) == {"status", "run", "stop"}
    assert "t2d-done" in last["status"]
    assert (last["run"].interactive, last["stop"].interactive) == (True, False)
    assert last["overlay"].size == (720, 480)
    assert "spoon" in last["areas"]
    assert [name for _, name in last["heat"]] == ["cup", "spoon"]
    assert last["position"] == ""
    assert last["mask_file"].value["path"].endswith("my_coffee_mask.png")


def test_the_page_has_no_button_but_its_own(shown):
    buttons = [part for part in shown.blocks.blocks.values() if isinstance(part, gr.Button)]
    assert buttons == [shown.run, shown.stop]


def test_a_wrong_request_says_why_and_keeps_what_is_shown(shown):
    (update,) = ask(shown, None)
    assert set(update) == {"status", "run", "stop"}
    for text in ("t2d-error", 'role="alert"', "Choose a picture"):
        assert text in update["status"]
    assert (update["run"].interactive, update["stop"].interactive) == (True, False)


def test_an_unexpected_error_is_logged_and_ends_in_a_sentence(small_photo, caplog):
    broken = built(Models([Entry("broken", lambda: {}["secret"], RULES)], "cpu"))
    *_, update = ask(broken, small_photo, model="broken")
    assert BUG in update["status"] and "secret" not in update["status"]
    assert "KeyError: 'secret'" in caplog.text


def test_a_model_that_cannot_be_loaded_says_so(small_photo):
    def find():
        raise FileNotFoundError("there are no weights at weights/vitb.pth")

    broken = built(Models([Entry("vitb", find, RULES)], "cpu"))
    *_, update = ask(broken, small_photo, model="vitb")
    assert "no weights at weights/vitb.pth" in update["status"]


def test_a_click_shows_the_scores_there(shown, small_photo):
    result = ask(shown, small_photo)[-1]["result"]
    event = gr.SelectData(None, {"index": [12 * 12 + 3, 7 * 12 + 11], "value": None})  # enlarged
    update = named(shown, shown.on_click(result, 0.5, 0.5, "", "toy", event))
    assert update["position"] == "12, 7"
    assert "column 12, row 7" in update["pixel"]
    assert "status" not in update


def test_sliders_before_the_first_result_change_nothing(shown):
    assert named(shown, shown.on_look(None, 0.5, 0.5, "", "toy")) == {}


def test_what_cannot_be_drawn_is_said_and_changes_nothing(shown, small_photo, monkeypatch):
    def fails(*args):
        raise OSError("disk full")

    result = ask(shown, small_photo)[-1]["result"]
    monkeypatch.setattr(pictures, "save_files", fails)
    update = named(shown, shown.on_look(result, 0.5, 0.5, "", "toy"))
    assert set(update) == {"status"} and "disk full" in update["status"]


def test_choosing_a_model_brings_its_notice_and_what_it_can(shown):
    toy = named(shown, shown.on_model("toy"))
    assert "untrained" in toy["notice"]
    assert toy["threshold"].value == shown.models.entry("toy").rules.threshold
    assert (toy["threshold"].minimum, toy["threshold"].maximum) == (0.3, 0.8)
    assert toy["threshold"].info is None and toy["refine"].interactive
    other = named(shown, shown.on_model("ovsegmentor_toy=seeded:0"))
    slider = other["threshold"]
    assert (slider.minimum, slider.maximum, slider.value) == (0, 1, 0.95)
    assert "Press Segment" in slider.info and not other["refine"].interactive
    assert named(shown, shown.on_model("slow"))["notice"] == ""


def test_only_a_request_that_was_not_stopped_is_told_that_too_many_wait(shown):
    update = named(shown, shown.on_failure(""))
    assert "Too many requests" in update["status"]
    assert (update["run"].interactive, update["stop"].interactive) == (True, False)
    assert named(shown, shown.on_failure(pictures.PARTS.status(page.STOPPED))) == {}


@pytest.fixture(scope="module")
def result(models, photos):
    """One with a background."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(photos))
        upload = {"path": str(photos / "chelsea.png")}
        asked = (upload, f"cat, {MARKUP}", "toy", True, 0.5, ())
        *_, found = segment(models, Limits(max_side=200), *asked)
    return found


@pytest.fixture
def look(shown, result):
    """Draws it again, and gives what is shown then."""

    def again(threshold=0.5, opacity=0.5, position=""):
        return named(shown, shown.on_look(result, threshold, opacity, position, "toy"))

    return again


def files_of(update):
    return [update[name].value["path"] for name in ("mask_file", "overlay_file")]


def test_the_files_hold_the_labels_at_full_size_and_the_legend(result, look):
    update, found = look(), result.segmentation
    mask_file, overlay_file = files_of(update)
    with Image.open(mask_file) as mask:
        assert (mask.mode, mask.size) == ("P", (451, 300))
        assert set(np.unique(np.asarray(mask))) == set(np.unique(found.labels))
        assert json.loads(mask.info["talk2dino"])["model"] == "toy"
    with Image.open(overlay_file) as overlay:
        assert overlay.width == 252  # as wide as its legend
        assert overlay.height > 133
        corner = np.asarray(overlay)[:133, :200]
    np.testing.assert_array_equal(corner, np.asarray(found.overlay(0.5, legend=False)))
    assert update["overlay"].size == (800, 532), "a small picture is enlarged on the screen"
    assert mask_file.endswith("/chelsea_mask.png")


def test_opacity_and_threshold_change_the_picture(result, look):
    plain = look(opacity=0.0)["overlay"].reduce(4)
    difference = np.asarray(plain, float) - np.asarray(result.picture.image, float)
    assert np.abs(difference).mean() < 2
    legend = look(threshold=1.0)["areas"]
    assert "100.0 %" in legend
    assert legend.index(">background<") < legend.index(">cat<")


def test_a_chosen_pixel_is_marked_in_the_picture_but_not_in_the_files(look):
    def seen(position):
        update = look(position=position)
        return np.asarray(update["overlay"]), [open(f, "rb").read() for f in files_of(update)]

    (without, files), (marked, same) = seen(""), seen("100, 60")
    assert np.any(marked != without)
    assert files == same


def test_the_scores_at_a_pixel_are_those_of_the_result(result, look):
    found = result.segmentation
    html = look(position="7,9")["pixel"]
    for name, score in zip(("background", "cat"), found.scores[:2, 9, 7].tolist(), strict=True):
        assert f"<span>{name}</span>" in html
        assert f"<em>{score:.3f}</em>" in html
    assert "column 7, row 9" in html


@pytest.mark.parametrize("position", ["", "7", "7,", "a, b", "-1, 2", "1, 2, 3", "1.5, 2"])
def test_an_unfinished_position_asks_for_no_pixel(look, position):
    assert look(position=position)["pixel"] == page.PIXEL_HINT


def test_a_position_outside_is_moved_to_the_border(look):
    assert "column 199, row 132" in look(position="9999 9999")["pixel"]


def test_markup_in_a_name_is_text_everywhere(look):
    update, parts = look(position="1, 1"), pictures.PARTS
    pieces = [update["areas"], update["pixel"], parts.status(MARKUP), parts.notice(MARKUP)]
    for html in pieces:
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<b>" not in parts.header("<b>")


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


@pytest.mark.parametrize("wrong", [{"threshold": 2}, {"opacity": -0.1}])
def test_a_look_out_of_range_is_refused(look, wrong):
    status = look(**wrong)["status"]
    assert "t2d-error" in status and re.search(r"between 0 and 1|in \[0, 1\]", status)
