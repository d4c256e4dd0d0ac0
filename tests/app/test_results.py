import pytest
import torch
from PIL import Image

from talk2dino.app.inputs import Picture
from talk2dino.app.work import Result, Results
from talk2dino.methods.base import PictureRules
from talk2dino.pictures.segmentation import Segmentation


def result(background=None, side=4):
    image = Image.new("RGB", (side, side))
    scores = torch.full((2, side, side), 0.4)
    scores[0, 0, 0], scores[1, 0, 1] = 0.6, 0.55
    names = ("cat", "dog")
    if background is not None:
        scores = torch.cat([torch.full_like(scores[:1], background), scores])
        names = ("background", *names)
    found = Segmentation(image, scores.argmax(dim=0), scores, names, background)
    return Result(Picture(image, (side, side), "x"), found, PictureRules(0.5, redraws=True))


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


def test_results_are_found_under_their_own_key_only(tmp_path):
    results, first, second = Results(tmp_path), result(), result()
    keys = results.put(first), results.put(second)
    assert results.get(keys[0]) is first
    assert results.get(keys[1]) is second
    assert results.get("guess") is None
    assert results.get(None) is None


@pytest.mark.parametrize(
    "limit", [{"max_count": 2}, {"max_bytes": 2 * result().num_bytes}], ids=["count", "bytes"]
)
def test_the_result_unused_for_longest_makes_room_with_its_files(tmp_path, limit):
    results = Results(tmp_path, **limit)
    keys = [results.put(result()) for _ in range(2)]
    assert results.get(keys[0]) is not None  # used, so the other one is older now
    keys.append(results.put(result()))
    assert [results.get(key) is not None for key in keys] == [True, False, True]
    assert [results.folder(key).exists() for key in keys] == [True, False, True]


def test_a_single_result_is_kept_however_large(tmp_path):
    results = Results(tmp_path, max_bytes=1)
    assert results.get(results.put(result())) is not None


def test_a_replaced_result_is_gone_at_once(tmp_path):
    results = Results(tmp_path)
    key = results.put(result())
    results.discard(key)
    results.discard(key)
    results.discard(None)
    assert results.get(key) is None
    assert not any(tmp_path.iterdir())
