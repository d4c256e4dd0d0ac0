import contextlib
import threading

import numpy as np
import pytest
import torch

from talk2dino.app.inputs import Limits
from talk2dino.app.models import Models, find_entry
from talk2dino.app.work import Outcome, Progress, Request, segment
from talk2dino.inference import picture_scores
from talk2dino.pictures.images import read_rgb, rgb_tensor
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE

CPU = torch.device("cpu")
LIMITS = Limits(max_side=320)


def outcome(request, models, limits=LIMITS):
    *before, last = segment(request, models, limits)
    assert all(isinstance(step, Progress) for step in before)
    assert isinstance(last, Outcome)
    return last


def test_a_request_gives_the_scores_of_the_segmenter(photo, models):
    request = Request(photo, "cat, blanket", "toy", background=True, threshold=0.51)
    found = outcome(request, models, Limits()).result.segmentation
    with models.use("toy") as model:
        segmenter = model.segmenter.variant(pamr=True, clean_background=True)
        query = ClassQuery.of_rows(segmenter.embed_classes(["cat", "blanket"]), 0.51)
        expected = picture_scores(segmenter, rgb_tensor(read_rgb(photo.path)), query, WHOLE)
    torch.testing.assert_close(found.scores, expected)
    assert found.names == ("background", "cat", "blanket")
    assert found.background == 0.51


def test_without_background_every_pixel_belongs_to_a_category(small_photo, models):
    done = outcome(Request(small_photo, "cup", "toy", refine=False), models)
    assert done.result.segmentation.names == ("cup",)
    assert np.unique(done.result.segmentation.labels).tolist() == [0]
    assert done.text.startswith("1 category in ")
    assert "60 × 40 pixels" in done.text


def test_a_large_picture_says_at_which_size_it_was_segmented(photo, models):
    text = outcome(Request(photo, "cat, dog", "toy"), models, Limits(max_side=64)).text
    assert "451 × 300" in text
    assert "64 × 43" in text


def test_loading_is_announced_once(small_photo):
    models = Models([find_entry("toy", CPU)], CPU)
    request = Request(small_photo, "cup, spoon", "toy", refine=False)
    texts = [[step.text for step in segment(request, models, LIMITS)][:-1] for _ in range(2)]
    assert texts == [
        ["Loading toy; this happens once.", "Looking for 2 categories …"],
        ["Looking for 2 categories …"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "no model “other” here, only toy, slow, ovsegmentor_toy"),
        ({"threshold": 1.5}, "threshold must lie between 0 and 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold must lie"),
        ({"threshold": "0.5"}, "threshold must lie"),
        ({"categories": ""}, "at least one category"),
        ({"upload": None}, "Choose a picture"),
    ],
)
def test_a_wrong_request_is_refused_before_a_model_is_used(changes, message, small_photo, models):
    values = {"upload": small_photo, "categories": "cup", "model": "toy", **changes}
    with pytest.raises(ValueError, match=message):
        next(segment(Request(**values), models, LIMITS))


def test_a_configured_model_is_loaded_as_configured(root):
    recipe = str(root / "configs" / "toy.yaml")
    models = Models([find_entry(recipe, CPU, "mine", weights="seeded:3")], CPU)
    with models.use("mine") as model:
        assert model.segmenter.config.projection_weights == "seeded:3"
    assert models.is_loaded("mine")


def test_two_requests_never_meet_inside_a_model(models):
    both = threading.Barrier(2)
    met = []

    def enter():
        with models.use("toy"), contextlib.suppress(threading.BrokenBarrierError):
            met.append(both.wait(timeout=1))  # alone it waits in vain, and the barrier breaks

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == []


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="offered twice: toy, toy"):
        Models([find_entry("toy", CPU)] * 2, CPU)
