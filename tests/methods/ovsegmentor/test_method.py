"""OVSegmentor behind the seam: prompts, window rule, background, groups."""

import pytest
import torch
import torch.nn.functional as F

from talk2dino.backbones.templates import get_templates
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.inference import sliding_window_scores
from talk2dino.methods.ovsegmentor.method import (
    OVSegmentorSegmenter,
    group_class_scores,
    normalise,
    paint_scores,
)
from talk2dino.methods.ovsegmentor.model import EncodedImages
from talk2dino.methods.registry import find_method
from talk2dino.segmenter import ClassQuery, FeatureSharing
from tests.methods.ovsegmentor.conftest import load_toy, save

# Three groups and seven classes; the first group is the best and owns no pixel below.
SCORES = torch.tensor([[[0.0, 0.9], [0.2, 0.5], [0.3, 0.1]]])


@pytest.fixture(scope="module")
def segmenter():
    return load_toy()


def test_classes_are_unit_rows_that_do_not_depend_on_each_other(segmenter):
    names = ["cat", "bed ", 'a "red", {round} naïve 日本', "dog"]
    classes = segmenter.embed_classes(names)
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(segmenter.embed_classes(names[::-1]).flip(0), classes)


def test_a_class_is_the_mean_of_its_prompts_vectors(segmenter):
    several = OVSegmentorSegmenter(segmenter.model, segmenter.tokenizer, "subset")
    prompts = [template.format("cat") for template in get_templates("subset")]
    vectors = segmenter.model.encode_texts(segmenter.tokenizer(prompts)).embedding
    expected = F.normalize(vectors.mean(dim=0, keepdim=True), dim=-1)
    torch.testing.assert_close(several.embed_classes(["cat"]), expected)


def test_missing_names_and_templates_are_refused(segmenter):
    with pytest.raises(ValueError, match="no class names given"):
        segmenter.embed_classes([])
    with pytest.raises(ValueError, match="an empty class name"):
        segmenter.embed_classes(["cat", " "])
    with pytest.raises(ValueError, match="unknown template 'simpel'"):
        OVSegmentorSegmenter(segmenter.model, segmenter.tokenizer, "simpel")


def test_a_window_does_not_depend_on_the_others_of_its_batch(segmenter):
    windows = 255 * torch.rand(2, 3, 64, 80)
    classes = segmenter.embed_classes(["cat", "dog", "bus"])
    together = segmenter.window_scores(windows, ClassQuery.of_rows(classes, 0.3))
    assert together.shape == (2, 4, 64, 80)
    for index in range(2):
        window = windows[index : index + 1]
        alone = segmenter.window_scores(window, ClassQuery.of_rows(classes, 0.3))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


def test_without_background_the_other_channels_are_the_same(segmenter):
    windows = 255 * torch.rand(1, 3, 64, 64)
    classes = segmenter.embed_classes(["cat", "dog", "bus"])
    with_background = segmenter.window_scores(windows, ClassQuery.of_rows(classes, 0.9))
    without = segmenter.window_scores(windows, ClassQuery.of_rows(classes))
    assert torch.equal(with_background[:, 1:], without)


def test_features_can_be_shared(segmenter):
    windows = 255 * torch.rand(1, 3, 64, 64)
    classes = segmenter.embed_classes(["cat", "dog"])
    other = OVSegmentorSegmenter(segmenter.model, segmenter.tokenizer, "subset")
    assert isinstance(segmenter, FeatureSharing) and segmenter.shares_features(other)
    assert not segmenter.shares_features(load_toy())
    query = ClassQuery.of_rows(classes)
    shared = segmenter.score_features(other.patch_features(windows), windows, query)
    assert torch.equal(shared, segmenter.window_scores(windows, query))


def test_windows_are_normalised_with_imagenets_statistics(segmenter):
    white = normalise(torch.full((1, 3, 2, 2), 255.0))
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert white[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"windows must be \(B, 3, h, w\)"):
        segmenter.window_scores(torch.zeros(3, 2, 2), segmenter.query(["cat"]))


def features_of(seed, num_groups=8):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(2, n, 16, generator=generator) for n in (1, num_groups)]
    return EncodedImages(rows[0][:, 0], rows[1], features=None)


def test_a_window_shows_at_most_five_classes():
    classes = F.normalize(torch.randn(12, 16), dim=-1)
    scores = group_class_scores(features_of(0), classes, torch.tensor(20.0))
    assert (scores.amax(dim=1) > 0).sum(dim=1).tolist() == [5, 5]


def test_with_five_classes_or_fewer_the_score_is_the_softmax_squared():
    classes = F.normalize(torch.randn(4, 16), dim=-1)
    features = features_of(1)
    scores = group_class_scores(features, classes, torch.tensor(10.0))
    softmax = (10 * F.normalize(features.groups, dim=-1) @ classes.T).softmax(dim=-1)
    torch.testing.assert_close(scores, softmax.square())


def test_a_window_is_all_background_only_if_its_best_group_is_empty():
    empty_best = torch.tensor([[[1, 2], [2, 1]]])
    painted = paint_scores(empty_best, SCORES, 0.95)
    assert painted[:, 0].eq(1).all()
    painted = paint_scores(torch.tensor([[[0, 2], [2, 1]]]), SCORES, 0.95)
    assert painted[0, 0].tolist() == [[0, 1], [1, 1]]
    assert painted[0, 1:, 1, 1].tolist() == pytest.approx([0.2, 0.5])


def test_a_lower_threshold_never_gives_more_background():
    labels = torch.tensor([[[0, 1], [2, 1]]])
    shares = [
        float(paint_scores(labels, SCORES, t)[:, 0].mean()) for t in (1.0, 0.9, 0.5, 0.4, 0.1)
    ]
    assert shares == [0.75, 0.75, 0.25, 0.25, 0]


@pytest.mark.parametrize("size", [448, 449, 671, 672, 673, 2048])
def test_sliding_windows_keep_a_constant(size):
    class Constant:
        def window_scores(self, windows, query):
            assert min(windows.shape[-2:]) <= 448
            return torch.full((len(windows), 2, *windows.shape[-2:]), 0.5)

    image = torch.zeros(3, 32, size)
    query = ClassQuery.of_rows(torch.zeros(2, 4))
    scores = sliding_window_scores(Constant(), image, query)
    assert scores.shape == (2, 32, size) and scores.eq(0.5).all()


def test_group_maps_share_every_pixel_among_the_groups(segmenter):
    (maps,) = segmenter.group_maps(255 * torch.rand(2, 3, 70, 50))
    assert maps.shape == (2, 8, 70, 50)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 70, 50))


def test_class_names_and_thresholds_are_the_published_ones():
    method = find_method("ovsegmentor_vitb")
    for key, names in (
        ("voc", {"diningtable": "table", "cat": "cat", "aeroplane": "aeroplane"}),
        ("voc20", {"pottedplant": "plant", "tvmonitor": "monitor"}),
        ("context", {"aeroplane": "airplane", "tvmonitor": "monitor"}),
        ("ade20k", {"bed ": "bed "}),
    ):
        words = method.words(BENCHMARKS[key])
        assert {name: words.of(name) for name in names} == {n: (w,) for n, w in names.items()}
    rows = [method.benchmark(BENCHMARKS[key]) for key in ("voc", "context", "coco_object")]
    rows += [method.benchmark(BENCHMARKS[key]) for key in ("coco_stuff", "ade20k")]
    assert [method.threshold(row) for row in rows] == [0.95, 0.35, 0.9, 0.95, None]


def test_a_saved_model_segments_like_the_one_it_came_from(tmp_path, segmenter):
    save(segmenter.model, tmp_path / "m", segmenter.tokenizer.tokenizer)
    loaded = load_toy(tmp_path / "m")
    windows, names = 255 * torch.rand(1, 3, 64, 64), ["cat", "dog"]
    ours, theirs = (s.window_scores(windows, s.query(names, 0.9)) for s in (loaded, segmenter))
    torch.testing.assert_close(ours, theirs)
