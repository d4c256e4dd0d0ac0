import pytest
import torch
from torch import nn

from talk2dino.backbones.clip_image import load_clip
from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.inference import picture_scores, resize_picture
from talk2dino.methods.clip_attention import (
    METHODS,
    PUBLISHED,
    SIZES,
    ClipAttentionSegmenter,
    neighbour_aware,
    neighbourhood,
    query_query,
    self_correlation,
)
from talk2dino.methods.clip_words import WITHOUT_BACKGROUND, class_words
from talk2dino.methods.registry import METHODS as MODELS
from talk2dino.methods.registry import find_method, load_segmenter
from talk2dino.pictures.vocabularies import find_vocabulary
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import Protocol

EXPANDING = [name for name, variant in METHODS.items() if variant.expands]


@pytest.fixture(scope="module")
def towers():
    return load_clip("toy", "seeded:0")


@pytest.fixture
def build(towers):
    def make(method, benchmark=None, refinements=()):
        return ClipAttentionSegmenter(*towers, method, benchmark, refinements)

    return make


def query_of(rows, owner=None, background=None):
    owner = None if owner is None else torch.tensor(owner)
    count = len(rows) if owner is None else int(owner.max()) + 1
    return ClassQuery(tuple(f"class {i}" for i in range(count)), rows, owner, background)


def random_query(count=4, **settings):
    generator = torch.Generator().manual_seed(0)
    rows = nn.functional.normalize(torch.randn(count, 512, generator=generator), dim=-1)
    return query_of(rows, **settings)


def logits(*probabilities):
    """Scores (Q, 1, pixels) whose softmax at a scale of 50 is this."""
    return torch.tensor(probabilities).log()[:, None] / 50


def test_neighbours_weigh_less_with_distance_on_any_grid():
    near = neighbourhood((2, 3), 5.0)
    expected = [
        [-((a // 3 - b // 3) ** 2 + (a % 3 - b % 3) ** 2) / 50 for b in range(6)] for a in range(6)
    ]
    torch.testing.assert_close(near, torch.tensor(expected).exp())


def test_attention_weights_are_the_published_ones():
    query, key = torch.randn(2, 1, 2, 7, 4).unbind()
    weights = {
        attention: attention(query, key, torch.eye(7).expand(1, 2, 7, 7), (2, 3))
        for attention in (self_correlation, query_query, neighbour_aware)
    }
    own = [(part @ part.mT / 2).softmax(-1) for part in (query, key)]
    torch.testing.assert_close(weights[query_query], own[0])
    torch.testing.assert_close(weights[self_correlation], own[0] + own[1])
    near = nn.functional.pad(neighbourhood((2, 3), 5.0), (1, 0, 1, 0))
    expected = (key @ key.mT / 2 + near).softmax(-1)
    torch.testing.assert_close(weights[neighbour_aware], expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_window_scores_alike_whatever_it_is_batched_with(build, method):
    segmenter, query = build(method), random_query()
    windows = torch.rand(3, 3, 70, 50) * 255
    together = segmenter.window_scores(windows, query)
    alone = torch.cat([segmenter.window_scores(window[None], query) for window in windows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together.shape == (3, 4, 70, 50)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_as_many_patches_in_another_grid_have_other_positions(build, method):
    segmenter = build(method)
    wide = segmenter.patch_features(torch.full((1, 3, 112, 448), 99.0))
    square = segmenter.patch_features(torch.full((1, 3, 224, 224), 99.0))
    assert wide.tokens.shape == square.tokens.shape and wide.grid == (7, 28)
    assert not torch.allclose(wide.tokens, square.tokens, atol=1e-3)


def test_what_fills_no_patch_is_dropped_or_padded_as_published(build):
    for method, variant in METHODS.items():
        grid = build(method).patch_features(torch.zeros(1, 3, 150, 235)).grid
        assert grid == ((10, 15) if variant.pads else (9, 14)), method


def test_one_pass_of_the_tower_serves_every_method_with_its_padding(build, towers):
    one, windows, query = build("maskclip"), torch.rand(1, 3, 64, 64) * 255, random_query()
    features = one.patch_features(windows)
    for method in METHODS:
        other = build(method)
        assert other.shares_features(one) == METHODS[method].pads
        torch.testing.assert_close(
            other.score_features(features, windows, query), other.window_scores(windows, query)
        )
    assert not one.shares_features(load_segmenter("maskclip_toy", "seeded:1"))
    assert not one.shares_features(object())


def test_the_best_word_counts_for_a_class_and_not_their_sum(build):
    query = random_query(3, owner=[0, 1, 1])
    final = build("clearclip").finalise(logits([0.4], [0.3], [0.3]), torch.zeros(3, 1, 1), query)
    torch.testing.assert_close(final.flatten(), torch.tensor([0.4, 0.3]))


def test_many_classes_and_words_take_memory_of_the_words_only(build):
    scores = torch.rand(113, 40, 30)
    owner = [*[0] * 26, *[1] * 8, *range(2, 81)]
    final = build("sclip").finalise(
        scores, torch.zeros(3, 40, 30), random_query(113, owner=owner, background=0.1)
    )
    assert final.shape == (81, 40, 30)


def test_where_no_class_is_probable_enough_the_background_is_the_best(build):
    scores = logits([0.1, 0.1], [0.5, 0.3], [0.4, 0.6])
    image = torch.zeros(3, 1, 2)
    final = build("clearclip").finalise(scores, image, random_query(3, background=0.55))
    assert final.argmax(dim=0).tolist() == [[0, 2]]
    final = build("clearclip").finalise(scores, image, random_query(3))
    assert final.argmax(dim=0).tolist() == [[1, 2]]


def test_a_class_with_a_small_share_of_the_foreground_is_dropped_on_voc_only(build):
    # Ten foreground pixels: nine of class 1 and one of class 2; background at one more.
    scores = torch.zeros(3, 1, 11)
    scores[1, :, :9], scores[2, :, 9], scores[0, :, 10] = 0.2, 0.2, 0.2
    image, query = torch.zeros(3, 1, 11), random_query(3, background=0.1)
    dropped = build("sclip", "voc").finalise(scores, image, query)
    assert (dropped[2] == 0).all()
    assert dropped.argmax(dim=0).flatten().tolist() == [*[1] * 9, 0, 0]
    for kept in (build("sclip", "context"), build("clearclip", "voc")):
        final = kept.finalise(scores, image, query)
        assert final.argmax(dim=0).flatten().tolist() == [*[1] * 9, 2, 0]
        assert kept.pixelwise
    assert not build("sclip", "voc").pixelwise


def test_a_picture_without_any_foreground_is_background(build):
    scores = torch.zeros(3, 2, 2)
    scores[0] = 0.2
    query = random_query(3, background=0.1)
    final = build("sclip", "voc").finalise(scores, torch.zeros(3, 2, 2), query)
    assert (final.argmax(dim=0) == 0).all() and final.isfinite().all()


def test_strips_of_rows_are_finalised_as_the_whole(build):
    segmenter, query = build("clip"), random_query(4, background=0.3)
    scores, image = torch.rand(4, 9, 5), torch.zeros(3, 9, 5)
    whole = segmenter.finalise(scores, image, query)
    strips = [segmenter.finalise(scores[:, r : r + 2], image, query) for r in range(0, 9, 2)]
    torch.testing.assert_close(torch.cat(strips, dim=1), whole)


def test_refinement_follows_the_resized_picture_and_needs_all_of_it(build):
    segmenter = build("naclip", refinements=None)
    assert not segmenter.pixelwise and not segmenter.follows_edges
    scores, image = torch.rand(4, 20, 20), torch.rand(3, 20, 20) * 255
    kept = scores.clone()
    refined = segmenter.finalise(scores, image, random_query())
    plain = build("naclip").finalise(scores, image, random_query())
    assert not torch.allclose(refined, plain, atol=1e-3)
    assert torch.equal(scores, kept)


@pytest.mark.parametrize("benchmark", WITHOUT_BACKGROUND)
def test_a_threshold_is_refused_where_there_is_no_background(build, benchmark):
    with pytest.raises(ValueError, match=f"{benchmark} has no background, found a threshold of"):
        build("sclip", benchmark).query(["cat"], 0.1)


def word_count(method, benchmark, vocabulary, background):
    names = find_vocabulary([vocabulary]).names
    lists = class_words(benchmark, METHODS[method].expands).lists(names, background)[1]
    return sum(map(len, lists))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_asks_for_the_published_number_of_words(method):
    counts = [
        word_count(method, "voc20", "voc", None),
        word_count(method, "voc", "voc", 0.1),
        word_count(method, "coco_object", "coco", 0.1),
    ]
    assert counts == ([30, 56, 113] if method in EXPANDING else [20, 21, 81])


def test_words_follow_the_published_lists():
    of = class_words("ade20k", True).of
    assert of("chest of drawers") == ("chestofdrawers",) and of("bed ") == ("bed",)
    assert class_words("coco_stuff", False).of("building-other") == ("building-other",)
    assert class_words("coco_object", True).of("traffic light") == ("traffic light",)
    assert class_words("voc", True).of("boat") == ("ship",)
    assert class_words("voc20", False).of("diningtable") == ("table",)
    assert class_words("context59", True).of("boat") == ("boat",)
    assert class_words("context", True).background == ("background",)
    assert class_words("coco_object", True).of("person")[-1] == "body"
    assert class_words("voc", True).of("person")[-1] == "person in jacket"
    assert class_words("voc", False).of("person") == ("person",)
    assert class_words(None, True).of("hot dog") == ("hot dog",)


def test_a_query_has_a_row_of_unit_length_per_word(build):
    query = build("sclip", "voc").query(["boat", "tvmonitor"])
    assert query.names == ("boat", "tvmonitor") and query.background is None
    assert query.owner.tolist() == [0, *[1] * 5]
    torch.testing.assert_close(query.rows.norm(dim=-1), torch.ones(6))
    query = build("clearclip", "voc").query(["boat"], 0.5, words=[["ship", "boat"]])
    assert query.names == ("background", "boat") and query.owner.tolist() == [0, 1, 1]


def test_protocols_are_the_published_ones(build):
    assert build("naclip", "voc").protocol == Protocol(short_side=336, window=None)
    assert build("naclip", "context59").protocol == Protocol(336, window=224, stride=112)
    assert build("sclip", "coco_stuff").protocol.short_side == 448
    assert build("sclip", "cityscapes").protocol.short_side == 560
    assert build("clearclip", "cityscapes").protocol == Protocol(window=224, stride=224)
    assert build("maskclip", "ade20k").protocol == Protocol()
    scales = {m: build(m, "voc").rules.logit_scale for m in METHODS}
    assert scales == {m: {"sclip": 65, "naclip": 40}.get(m, 50) for m in METHODS}
    thresholds = {m: build(m, "voc").rules.threshold for m in METHODS}
    assert thresholds == {
        m: {"sclip": 0.1, "naclip": 0.1, "clip": 0.2}.get(m, 0.5) for m in METHODS
    }


def test_naclip_refines_unless_it_is_refused_and_others_if_asked():
    refines = {m: find_method(f"{m}_toy").settings()["pamr"] for m in METHODS}
    assert refines == {m: m == "naclip" for m in METHODS}
    assert find_method("sclip_toy", {"pamr": True}).settings()["pamr"]
    assert not find_method("naclip_toy", {"pamr": False}).settings()["pamr"]


def test_rules_are_those_of_the_benchmark():
    method, voc = find_method("sclip_vitb"), BENCHMARKS["voc"]
    assert method.benchmark(voc).protocol.short_side == 336
    assert method.benchmark(method.benchmark(voc)) == method.benchmark(voc)
    assert method.threshold(voc) == 0.1 and method.threshold(BENCHMARKS["voc20"]) is None
    assert method.on(voc).settings()["area"] == 0.1 and method.settings()["area"] == 0
    assert method.published_miou(voc) == 59.63
    naclip = find_method("naclip_vitb")
    assert (naclip.published_miou(voc), naclip.demo.threshold) == (64.07, 0.1)
    assert find_method("naclip_vitb", {"pamr": False}).published_miou(voc) == 58.9
    keys = [row.key for row in find_method("maskclip_toy").published_on]
    assert keys == list(WITHOUT_BACKGROUND)
    assert len(method.published_on) == 8


def test_models_are_loaded_by_name():
    ours = MODELS["clip_attention:ClipAttentionMethod"]
    assert set(ours) == {f"{method}_{size}" for method in METHODS for size in SIZES}
    segmenter = load_segmenter("naclip_toy", "seeded:0", benchmark="voc", pamr=False)
    assert segmenter.variant is METHODS["naclip"] and not segmenter.refinements
    picture = torch.rand(3, 40, 60) * 255
    query = random_query(56, owner=[*[0] * 26, *range(1, 31)], background=0.1)
    assert picture_scores(segmenter, picture, query, segmenter.protocol).shape == (31, 40, 60)
    with pytest.raises(ValueError, match="unknown model 'naclp_toy'.*Did you mean 'naclip_toy'"):
        load_segmenter("naclp_toy")


def test_published_numbers_are_keyed_by_benchmark():
    assert (
        PUBLISHED["naclip_vitb_pamr"].miou["voc"] == 64.07
        and PUBLISHED["sclip_vitb"].miou["ade20k"] == 16.45
    )
    assert set(PUBLISHED["maskclip_vitb"].miou) == set(WITHOUT_BACKGROUND)
    assert PUBLISHED["maskclip_vitb"].miou["voc20"] == 74.9


@pytest.mark.parametrize("method", ["clearclip", "sclip", "naclip"])
@pytest.mark.parametrize("size_hw", [(150, 235), (70, 330)])
def test_evaluation_labels_pictures_as_the_plain_way_does(build, method, size_hw):
    # Sides that are no multiples of a patch, in windows that are.
    segmenter, protocol = build(method), Protocol(64, 2048, window=96, stride=48)
    generator = torch.Generator().manual_seed(0)
    picture = (torch.rand(3, *size_hw, generator=generator) * 255).to(torch.uint8)
    small = resize_picture(picture, protocol.scored_size(*size_hw))
    query = random_query(6, background=0.2)
    expected = picture_scores(segmenter, picture, query, protocol).argmax(dim=0)
    given = Picture(small, size_hw, [Task(segmenter, query)])
    [(_, [labels])] = label_pictures([given], protocol, Batching(), torch.device("cpu"))
    assert (labels == expected).float().mean() >= 0.999
    assert expected.unique().numel() > 2
