import contextlib
import gc
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.app.request import Limits, Models, Picture, Result, Results, find_entry, segment
from talk2dino.inference import picture_scores
from talk2dino.methods.base import PictureRules
from talk2dino.pictures.images import read_rgb, rgb_tensor
from talk2dino.pictures.segmentation import Segmentation
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE

CPU = torch.device("cpu")
LIMITS = Limits(max_side=320)
pytestmark = pytest.mark.usefixtures("uploads")


def result_of(models, *asked, limits=LIMITS, **options):
    *before, last = segment(models, limits, *asked, **options)
    assert all(isinstance(step, str) for step in before)
    assert isinstance(last, Result)
    return last


def test_a_request_gives_the_scores_of_the_segmenter(photo, models):
    asked = (photo, "cat, blanket", "toy", True, 0.51)
    found = result_of(models, *asked, limits=Limits()).segmentation
    with models.use("toy") as model:
        segmenter = model.segmenter.variant(pamr=True, clean_background=True)
        query = ClassQuery.of_rows(segmenter.embed_classes(["cat", "blanket"]), 0.51)
        expected = picture_scores(segmenter, rgb_tensor(read_rgb(photo["path"])), query, WHOLE)
    torch.testing.assert_close(found.scores, expected)
    assert found.names == ("background", "cat", "blanket")
    assert found.background == 0.51


def test_without_background_every_pixel_belongs_to_a_category(small_photo, models):
    done = result_of(models, small_photo, "cup", "toy", refine=())
    assert done.segmentation.names == ("cup",)
    assert np.unique(done.segmentation.labels).tolist() == [0]
    assert done.text.startswith("1 category in ")
    assert "60 × 40 pixels" in done.text


def test_a_large_picture_says_at_which_size_it_was_segmented(photo, models):
    text = result_of(models, photo, "cat, dog", "toy", limits=Limits(max_side=64)).text
    assert "451 × 300" in text
    assert "64 × 43" in text


def test_refinements_are_the_visitor_s(small_photo, models):
    result = result_of(models, small_photo, "cup", "toy", refine=["smoothing", "propagation"])
    assert result.segmentation.settings["refine"] == ["smoothing", "propagation"]
    plain = result_of(models, small_photo, "cup", "toy", refine=[])
    assert plain.segmentation.settings["refine"] == []
    assert not torch.equal(plain.segmentation.scores, result.segmentation.scores)


def test_aliases_give_a_category_its_best_word(small_photo, models):
    def scores(words, pooling="max"):
        result = result_of(models, small_photo, words, "toy", refine=[], pooling=pooling)
        return result.segmentation.scores

    both = scores("cup; mug, spoon")
    cup, mug = scores("cup, spoon"), scores("mug, spoon")
    torch.testing.assert_close(
        both[0], torch.maximum(cup[0], mug[0]), atol=2e-3, rtol=0
    )  # of patches
    assert not both[0].equal(cup[0])
    torch.testing.assert_close(both[1], cup[1])
    assert not scores("cup; mug, spoon", "lse").equal(both)


def test_loading_is_announced_once(small_photo):
    models = Models([find_entry("toy")], CPU)
    asked = (small_photo, "cup, spoon", "toy", False, None, ())
    texts = [list(segment(models, LIMITS, *asked))[:-1] for _ in range(2)]
    assert texts == [
        ["Loading toy; this happens once.", "Looking for 2 categories …"],
        ["Looking for 2 categories …"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "no model “other” here, only toy, slow, ovsegmentor_toy"),
        ({"threshold": 1.5}, "threshold between 0 and 1, found 1.5"),
        ({"threshold": float("nan")}, "threshold between 0 and 1"),
        ({"threshold": "0.5"}, "threshold between 0 and 1"),
        ({"categories": ""}, "at least one category"),
        ({"upload": None}, "Choose a picture"),
        ({"refine": ["pam"]}, "Did you mean 'pamr'"),
        ({"refine": True}, "found True"),
        ({"pooling": "mean"}, "unknown pooling"),
    ],
)
def test_a_wrong_request_is_refused_before_a_model_is_used(changes, message, small_photo, models):
    values = {"upload": small_photo, "categories": "cup", "model": "toy", **changes}
    with pytest.raises(ValueError, match=message):
        next(segment(models, LIMITS, **values))


def test_a_configured_model_is_loaded_as_configured(root):
    name = f"{root / 'configs' / 'toy.yaml'}=seeded:3"
    models = Models([find_entry(name)], CPU)
    with models.use(name) as model:
        assert model.segmenter.config.projection_weights == "seeded:3"
    assert models.entry(name).segmenter is not None


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
        Models([find_entry("toy")] * 2, CPU)


def result(background=None, side=4):
    image = Image.new("RGB", (side, side))
    scores = torch.full((2, side, side), 0.4)
    scores[0, 0, 0], scores[1, 0, 1] = 0.6, 0.55
    names = ("cat", "dog")
    if background is not None:
        scores = torch.cat([torch.full_like(scores[:1], background), scores])
        names = ("background", *names)
    found = Segmentation(image, scores.argmax(dim=0), scores, names, background)
    return Result(Picture(image, (side, side), "x"), found, "toy", PictureRules(0.5, redraws=True))


def test_another_threshold_gives_other_labels_of_the_same_scores():
    kept = result(background=0.5)
    assert kept.at(0.5) is kept.segmentation
    assert kept.at(0.58).labels[0, :2].tolist() == [1, 0]
    assert kept.at(0.3).labels[0, :2].tolist() == [1, 2]
    assert kept.at(0.6).labels[0, 0] == 0, "the background wins a tie"
    assert kept.segmentation.scores[0, 0, 0] == 0.5, "the kept scores are not changed"
    assert kept.at(0.58).background == 0.58


def test_without_background_a_threshold_changes_nothing():
    kept = result()
    assert kept.at(0.9) is kept.segmentation


def test_the_oldest_results_make_room_but_the_newest_is_kept_however_large():
    kept, results = [result() for _ in range(3)], Results(max_bytes=450)  # 256 bytes each
    for one in kept:
        results.add(one)
    assert [one.segmentation is None for one in kept] == [True, True, False]
    with pytest.raises(ValueError, match="no longer kept"):
        kept[0].at(0.5)


def test_a_result_that_nobody_keeps_takes_its_files_along():
    kept, results = result(), Results()
    results.add(kept)
    folder = kept.folder
    assert folder.is_dir()
    del kept
    gc.collect()
    assert not folder.exists()
