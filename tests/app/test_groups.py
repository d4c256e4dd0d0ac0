"""The page with a model that has groups: OVSegmentor."""

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.app.page import Page
from talk2dino.app.pictures import heat_of
from talk2dino.app.request import Limits, Models, find_entry, segment
from talk2dino.inference import picture_scores
from talk2dino.methods.ovsegmentor.method import OVSegmentorMethod
from talk2dino.pictures.drawing import group_colours
from talk2dino.pictures.images import read_rgb, rgb_tensor
from talk2dino.predict import draw_groups
from talk2dino.segmenter import ClassQuery

CPU = torch.device("cpu")
NAME = "ovsegmentor_toy=seeded:0"
LIMITS = Limits(max_side=320)


pytestmark = pytest.mark.usefixtures("uploads")


def test_scores_and_groups_are_those_of_the_demo(small_photo, models):
    *_, result = segment(models, LIMITS, small_photo, "cup, spoon", NAME, True, 0.4)
    pixels = read_rgb(small_photo["path"])
    with models.use(NAME) as model:
        segmenter = model.segmenter
        query = ClassQuery.of_rows(segmenter.embed_classes(["cup", "spoon"]), 0.4)
        scores = picture_scores(segmenter, rgb_tensor(pixels), query)
        (groups,) = draw_groups(segmenter, pixels, CPU)
    assert result.segmentation.scores.equal(scores)
    assert result.segmentation.names == ("background", "cup", "spoon")
    assert [np.array_equal(picture, groups) for picture in result.groups] == [True]
    assert result.segmentation.settings["refine"] == []  # it has no refinement
    assert "class scores, one scale" in heat_of(result)[1]
    assert result.at(1.0) is result.segmentation, "another threshold waits for the next request"


def test_the_page_shows_groups_where_there_are_some(small_photo, models):
    page = Page(models, LIMITS)
    page.build()
    *busy, last = page.on_run(0.5, small_photo, "cup", NAME)
    assert not any(page.groups in update or page.groups_tab in update for update in busy)
    assert last[page.groups_tab].visible
    assert [caption for _, caption in last[page.groups]] == ["stage 1"]
    *_, last = page.on_run(0.5, small_photo, "cup", "toy")
    assert not last[page.groups_tab].visible
    assert last[page.groups] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ovsegmentor_toy={}/nowhere", "nowhere"),
        ("ovsegmentor_vitx=seeded:0", "ovsegmentor_vitx.*ovsegmentor_vitb"),
    ],
)
def test_wrong_weights_are_refused_before_the_page_opens(name, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_entry(name.format(tmp_path))


def test_two_weights_of_one_model_are_two_entries():
    entries = [find_entry(f"ovsegmentor_toy=seeded:{seed}") for seed in (0, 1)]
    assert list(Models(entries, CPU).entries) == [NAME, "ovsegmentor_toy=seeded:1"]


def test_a_trained_toy_says_what_it_has_seen(monkeypatch):
    monkeypatch.setattr(OVSegmentorMethod, "check", lambda self: None)
    assert "nothing but drawn pictures of apple" in find_entry("ovsegmentor_toy=folder").notice
    assert find_entry("ovsegmentor_vitb").notice == ""


class Corner:
    """A segmenter with two groups: the upper left quarter of a window, and the rest."""

    def group_maps(self, windows):
        self.size_hw = windows.shape[-2:]
        first = torch.zeros(windows[:, :1].shape)
        first[..., : windows.shape[-2] // 2, : windows.shape[-1] // 2] = 1
        return [torch.cat([first, 1 - first], dim=1)]


def test_groups_are_of_the_whole_picture_at_a_benchmarks_size():
    segmenter = Corner()
    (picture,) = draw_groups(segmenter, Image.new("RGB", (90, 60)), CPU)
    assert segmenter.size_hw == (448, 672)
    colours = group_colours(2) // 2
    assert np.asarray(picture)[[5, 55], [5, 85]].tolist() == colours.tolist()
