"""The page with a model that has groups: OVSegmentor."""

import gradio as gr
import numpy as np
import pytest
import torch

from talk2dino.app.handlers import Handlers, Service
from talk2dino.app.inputs import Limits
from talk2dino.app.models import Models, find_entry, named_entry
from talk2dino.app.results import Results
from talk2dino.app.view import Look, heat_of, look_at
from talk2dino.app.work import Request, segment
from talk2dino.group_maps import draw_groups
from talk2dino.images import read_rgb, rgb_tensor
from talk2dino.inference import BenchmarkWindows, ClassQuery, whole_image_scores

CPU = torch.device("cpu")
NAME = "ovsegmentor_toy"
LIMITS = Limits(max_side=320)
GROUPS_TAB, GROUPS = -2, -1


@pytest.fixture(scope="module")
def both():
    """Both methods, OVSegmentor first."""
    return Models([find_entry(f"{NAME}=seeded:0", CPU), named_entry("toy", CPU)], CPU)


def result_of(request, models):
    *_, last = segment(request, models, LIMITS)
    return last.result


def test_scores_and_groups_are_those_of_the_demo(small_photo, both):
    request = Request(small_photo, "cup, spoon", NAME, background=True, threshold=0.4)
    result = result_of(request, both)
    pixels = read_rgb(small_photo.path)
    with both.use(NAME) as segmenter:
        query = ClassQuery(segmenter.embed_classes(["cup", "spoon"]), 0.4)
        scores = whole_image_scores(BenchmarkWindows(segmenter), rgb_tensor(pixels), query)
        (groups,) = draw_groups(segmenter, np.asarray(pixels))
    assert result.segmentation.scores.equal(scores)
    assert result.segmentation.names == ("background", "cup", "spoon")
    assert [np.asarray(picture).tolist() for picture in result.groups] == [
        np.asarray(groups).tolist()
    ]
    assert not result.segmentation.settings["refine"]  # it has no refinement
    assert "class scores, one scale" in heat_of(result).scale


def test_another_threshold_waits_for_the_next_request(small_photo, both, tmp_path):
    request = Request(small_photo, "cup, spoon", NAME, background=True, threshold=0.4)
    results = Results(tmp_path)
    key = results.put(result_of(request, both))
    legends = [look_at(results, key, Look(threshold)).legend for threshold in (0.4, 1.0)]
    assert legends[0] == legends[1]


def test_the_page_shows_groups_where_there_are_some(small_photo, both, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(small_photo.path.parent))
    handlers = Handlers(Service(both, Results(tmp_path / "results"), LIMITS))
    payload = {"path": str(small_photo.path), "orig_name": small_photo.name}
    *busy, last = handlers.on_run(payload, "cup", NAME, False, 0.5, True, 0.5, None)
    assert all(update[GROUPS] == gr.skip() == update[GROUPS_TAB] for update in busy)
    assert last[GROUPS_TAB].visible
    assert [caption for _, caption in last[GROUPS]] == ["stage 1"]
    *_, last = handlers.on_run(payload, "cup", "toy", False, 0.5, False, 0.5, None)
    assert not last[GROUPS_TAB].visible
    assert last[GROUPS] == []


def test_choosing_it_offers_what_it_can(both, tmp_path):
    handlers = Handlers(Service(both, Results(tmp_path), LIMITS))
    notice, threshold, refine = handlers.on_model(NAME)
    assert "untrained" in notice
    assert (threshold.minimum, threshold.maximum, threshold.value) == (0, 1, 0.95)
    assert "Press Segment" in threshold.info
    assert not refine.interactive
    _, threshold, refine = handlers.on_model("toy")
    assert (threshold.minimum, threshold.maximum, threshold.info) == (0.3, 0.8, None)
    assert refine.interactive


def test_weights_that_are_not_there_are_refused_before_the_page_opens(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_entry(f"{NAME}={tmp_path / 'nowhere'}", CPU)


def test_a_trained_toy_says_what_it_has_seen(monkeypatch):
    monkeypatch.setattr("talk2dino.registry.ovsegmentor.OVSegmentorMethod.check", lambda self: None)
    assert "nothing but drawn pictures of apple" in find_entry(f"{NAME}=folder", CPU).notice
    assert find_entry("ovsegmentor_vitb", CPU).notice is None
