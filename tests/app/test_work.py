import contextlib
import threading

import numpy as np
import pytest
import torch

from talk2dino.app.inputs import Limits
from talk2dino.app.models import Models, find_entry
from talk2dino.app.work import Outcome, Request, segment
from talk2dino.inference import picture_scores
from talk2dino.pictures.images import read_rgb, rgb_tensor
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE, Sizes

CPU = torch.device("cpu")
LIMITS = Limits(max_side=320)


def outcome(request, models, limits=LIMITS):
    *before, last = segment(request, models, limits)
    assert all(isinstance(step, str) for step in before)
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
    done = outcome(Request(small_photo, "cup", "toy", refine=()), models)
    assert done.result.segmentation.names == ("cup",)
    assert np.unique(done.result.segmentation.labels).tolist() == [0]
    assert done.text.startswith("1 category in ")
    assert "60 × 40 pixels" in done.text


def test_a_large_picture_says_at_which_size_it_was_segmented(photo, models):
    text = outcome(Request(photo, "cat, dog", "toy"), models, Limits(max_side=64)).text
    assert "451 × 300" in text
    assert "64 × 43" in text


def test_refinements_and_sizes_are_the_visitor_s(small_photo, models):
    request = Request(small_photo, "cup", "toy", refine=["smoothing", "propagation"], window=30)
    settings = outcome(request, models).result.segmentation.settings
    assert settings["refine"] == ["smoothing", "propagation"]
    assert (settings["window"], settings["stride"]) == (30, 15)
    with models.use("toy") as model:
        method, segmenter = model.variant(["smoothing"], True, Sizes(window=30, stride=15), CPU)
        assert (segmenter.config.smoothing, segmenter.config.pamr) == (True, False)
        assert segmenter.config.clean_background
        assert method.demo.protocol.window == 30


def test_aliases_give_a_category_its_best_word(small_photo, models):
    def scores(words, pooling="max"):
        request = Request(small_photo, words, "toy", refine=[], pooling=pooling)
        return outcome(request, models).result.segmentation.scores

    both = scores("cup; mug, spoon")
    cup, mug = scores("cup, spoon"), scores("mug, spoon")
    torch.testing.assert_close(
        both[0], torch.maximum(cup[0], mug[0]), atol=2e-3, rtol=0
    )  # of patches
    assert not both[0].equal(cup[0])
    torch.testing.assert_close(both[1], cup[1])
    assert not scores("cup; mug, spoon", "lse").equal(both)


def test_a_request_of_too_many_windows_is_refused(photo, models):
    request = Request(photo, "cat", "toy", refine=[], short_side=320, window=16)
    with pytest.raises(ValueError, match=r"would have \d+ windows; at most 400"):
        outcome(request, models)


def test_loading_is_announced_once(small_photo):
    models = Models([find_entry("toy", CPU)], CPU)
    request = Request(small_photo, "cup, spoon", "toy", refine=())
    texts = [list(segment(request, models, LIMITS))[:-1] for _ in range(2)]
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
        ({"refine": ["pam"]}, "Did you mean 'pamr'"),
        ({"refine": True}, "found True"),
        ({"pooling": "mean"}, "unknown pooling"),
        ({"short_side": 0}, "short side must lie between 1 and 320 pixels, got 0"),
        ({"window": 321}, "window must lie"),
        ({"window": "1"}, "window must be int or null, got '1'"),
        ({"stitch": "glue", "window": 64}, "unknown stitch"),
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
