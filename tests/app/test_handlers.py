"""The handlers of the page, called as Gradio calls them."""

import gradio as gr
import pytest

from talk2dino.app.handlers import BUG, Handlers, on_failure, on_stop, read_upload
from talk2dino.app.inputs import Limits
from talk2dino.app.models import GUESSED_THRESHOLD, Facts, ModelEntry, Models
from talk2dino.app.work import Results
from talk2dino.methods.base import PictureRules

RULES = PictureRules(0.5)
OVERLAY, LEGEND, PIXEL, MASK_FILE, OVERLAY_FILE = range(5)
HEAT, SCALE, POSITION, KEY, STATUS, RUN, STOP = range(5, 12)


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    """The folder of uploads, in which `small_photo` lies."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def handlers(models, tmp_path):
    """The handlers of a page."""
    return Handlers(models, Results(tmp_path / "results"), Limits())


def ask(handlers, upload, categories="cup, spoon", model="toy", background=False, old_key=None):
    """All updates of one request without refinement."""
    payload = {"path": str(upload.path), "orig_name": upload.name} if upload else None
    values = (payload, categories, model, background, 0.5, False, 0.5, old_key, True)
    return list(handlers.on_run(*values))


def is_unchanged(value):
    return isinstance(value, dict) and value == gr.skip()


def test_a_request_shows_everything_and_can_be_stopped_meanwhile(handlers, small_photo):
    *busy, last = ask(handlers, small_photo)
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


def test_a_wrong_request_says_why_and_keeps_what_is_shown(handlers):
    (update,) = ask(handlers, None)
    assert "t2d-error" in update[STATUS]
    assert 'role="alert"' in update[STATUS]
    assert "Choose a picture" in update[STATUS]
    assert all(is_unchanged(value) for value in update[:STATUS])
    assert (update[RUN].interactive, update[STOP].interactive) == (True, False)


def test_an_unexpected_error_is_logged_and_ends_in_a_sentence(small_photo, tmp_path, caplog):
    models = Models([ModelEntry("broken", lambda: {}["secret"], RULES, Facts(0.5))], "cpu")
    handlers = Handlers(models, Results(tmp_path), Limits())
    *_, update = ask(handlers, small_photo, model="broken")
    assert BUG in update[STATUS]
    assert "secret" not in update[STATUS]
    assert "KeyError: 'secret'" in caplog.text


def test_a_model_that_cannot_be_loaded_says_so(small_photo, tmp_path):
    def load():
        raise FileNotFoundError("there are no weights at weights/vitb.pth")

    models = Models([ModelEntry("vitb", load, RULES, Facts(0.5))], "cpu")
    handlers = Handlers(models, Results(tmp_path), Limits())
    *_, update = ask(handlers, small_photo, model="vitb")
    assert "no weights at weights/vitb.pth" in update[STATUS]
    assert not models.is_loaded("vitb")


def test_a_new_result_replaces_the_old_one(handlers, small_photo):
    first = ask(handlers, small_photo)[-1][KEY]
    second = ask(handlers, small_photo, old_key=first)[-1][KEY]
    assert handlers.results.get(first) is None
    assert handlers.results.get(second) is not None


def test_a_click_shows_the_scores_there(handlers, small_photo):
    key = ask(handlers, small_photo)[-1][KEY]
    event = gr.SelectData(None, {"index": [12 * 12 + 3, 7 * 12 + 11], "value": None})  # enlarged
    *shown, status, position = handlers.on_click(key, 0.5, 0.5, "toy", event)
    assert position == "12, 7"
    assert "column 12, row 7" in shown[PIXEL]
    assert is_unchanged(status)


def test_sliders_before_the_first_result_change_nothing(handlers):
    assert all(is_unchanged(value) for value in handlers.on_look(None, 0.5, 0.5, "", "toy"))


def test_sliders_after_a_result_made_room_say_so(handlers):
    *shown, status = handlers.on_look("gone", 0.5, 0.5, "", "toy")
    assert all(is_unchanged(value) for value in shown)
    assert "no longer kept" in status


def test_choosing_a_model_brings_its_notice_and_threshold(handlers):
    notice, threshold, refine, known = handlers.on_model("toy")
    assert "untrained" in notice
    assert threshold.value == handlers.models.threshold("toy")
    assert known
    assert refine.interactive
    notice, *_ = handlers.on_model("slow")
    assert notice == ""
    notice, *others = handlers.on_model("<b>other")
    assert "no model “&lt;b&gt;other”" in notice
    assert all(is_unchanged(value) for value in others)


def test_what_loading_tells_is_used_at_once_and_shown_afterwards(late, small_photo, tmp_path):
    handlers = Handlers(late, Results(tmp_path / "results"), Limits())
    notice, slider, _, known = handlers.on_model("late")
    assert "once it is loaded" in notice
    assert (slider.value, known) == (GUESSED_THRESHOLD, False)
    assert all(is_unchanged(value) for value in handlers.on_loaded(False, slider.value, "late"))

    payload = {"path": str(small_photo.path), "orig_name": small_photo.name}
    values = (payload, "cup, spoon", "late", True, slider.value, False, 0.5, None, known)
    *_, update = handlers.on_run(*values)
    assert handlers.results.get(update[KEY]).segmentation.background == 0.61
    notice, slider, known = handlers.on_loaded(False, slider.value, "late")
    assert "Only its weights tell this." in notice
    assert (slider.value, known) == (0.61, True)
    assert all(is_unchanged(value) for value in handlers.on_loaded(True, 0.7, "late"))
    assert "Only its weights" in handlers.on_model("late")[0]


def test_a_threshold_that_was_chosen_counts_also_for_an_unknown_model(late, small_photo, tmp_path):
    handlers = Handlers(late, Results(tmp_path / "results"), Limits())
    payload = {"path": str(small_photo.path), "orig_name": small_photo.name}
    values = (payload, "cup, spoon", "late", True, 0.4, False, 0.5, None, False)
    *_, update = handlers.on_run(*values)
    assert handlers.results.get(update[KEY]).segmentation.background == 0.4
    notice, slider, known = handlers.on_loaded(False, 0.4, "late")
    assert "Only its weights" in notice
    assert is_unchanged(slider)
    assert known


@pytest.mark.parametrize("payload", [None, {}, {"path": None}])
def test_no_file_is_no_upload(payload):
    assert read_upload(payload) is None


def test_an_upload_without_a_name_is_called_like_its_file(tmp_path):
    payload = {"path": str(tmp_path / "x" / "cat.png"), "orig_name": None}
    assert read_upload(payload).name == "cat.png"


@pytest.mark.parametrize("place", ["elsewhere", "behind a link", "above"])
def test_a_file_outside_the_folder_of_uploads_is_refused(handlers, photos, tmp_path, place):
    (tmp_path / "link.png").symlink_to(photos / "chelsea.png")
    paths = {
        "elsewhere": photos / "chelsea.png",
        "behind a link": tmp_path / "link.png",
        "above": f"{tmp_path}/../x.png",
    }
    update = next(handlers.on_run({"path": str(paths[place])}, "cat", "toy", *[0] * 6))
    assert "not uploaded" in update[STATUS]


def test_only_a_request_that_was_not_stopped_is_told_that_too_many_wait():
    status, run, stop = on_failure("")
    assert "Too many requests" in status
    assert (run.interactive, stop.interactive) == (True, False)
    stopped, *_ = on_stop()
    assert all(is_unchanged(value) for value in on_failure(stopped))
