"""MaskCLIP, SCLIP, ClearCLIP and NACLIP against recordings of the published code."""

import dataclasses

import cv2
import pytest
import torch

from talk2dino.backbones.clip_image import load_clip
from talk2dino.inference import picture_scores, resize_picture, sliding_window_scores
from talk2dino.methods.clip_attention import METHODS, ClipAttentionSegmenter
from talk2dino.methods.clip_words import word_rows
from talk2dino.refine.refinement import PAMR
from talk2dino.segmenter import ClassQuery

from .conftest import TENSOR_TOLERANCE

RECORDED = [method for method in METHODS if method != "clip"]
VOC_OWNERS = [*[0] * 26, *range(1, 15), *[15] * 7, *range(16, 20), *[20] * 5]


@pytest.fixture(scope="module")
def toy():
    return load_clip("toy", "seeded:0")


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded("clip_family/toy.npz")


@pytest.fixture(scope="module")
def labels(recorded):
    return recorded("clip_family/labels.npz")


@pytest.fixture(scope="module")
def picture(shared_file):
    """The cut of a photograph that a recording names, (3, H, W) RGB."""

    def read(arrays, name):
        bgr = cv2.imread(str(shared_file(f"images/{arrays[f'{name}_image']}")))
        top, left, height, width = arrays[f"{name}_box"]
        cut = bgr[top : top + height, left : left + width, ::-1]
        return torch.from_numpy(cut.copy()).permute(2, 0, 1).float()

    return read


def dense_features(towers, method, pixels):
    segmenter = ClipAttentionSegmenter(*towers, method)
    return segmenter.dense_features(segmenter.patch_features(pixels[None]))[0]


def one_word_each(rows, background=None):
    rows = torch.as_tensor(rows)
    return ClassQuery(tuple(f"class {i}" for i in range(len(rows))), rows, None, background)


def of_voc(rows, background):
    names = ("background", *(f"class {i}" for i in range(1, 21)))
    return ClassQuery(names, torch.as_tensor(rows)[:56], torch.tensor(VOC_OWNERS), background)


def check_labels(segmenter, pixels, query, labels, prefix, relative_error, step=12):
    """Compare a whole picture; returns its final scores."""
    small = resize_picture(pixels, segmenter.protocol.scored_size(*pixels.shape[-2:]))
    assert tuple(small.shape[-2:]) == tuple(labels[f"{prefix}_resized"])
    means = small.float().mean(dim=(1, 2)).double()
    torch.testing.assert_close(means, torch.as_tensor(labels[f"{prefix}_resized_mean"]))
    if f"{prefix}_cosines" in labels:
        cosines = sliding_window_scores(segmenter, small, query, segmenter.protocol)
        thinned = cosines[::step, ::12, ::12]
        assert relative_error(thinned, labels[f"{prefix}_cosines"]) < TENSOR_TOLERANCE
    final = picture_scores(segmenter, pixels, query, segmenter.protocol)
    equal = final.argmax(dim=0) == torch.as_tensor(labels[f"{prefix}_labels"])
    assert equal.float().mean() >= 0.999
    return final


def test_text(toy, arrays, relative_error):
    rows = word_rows(toy[1], [str(name) for name in arrays["text_names"]])
    assert relative_error(rows, arrays["text"]) < TENSOR_TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["square", "oblong"])
def test_dense_features(toy, arrays, picture, relative_error, method, name):
    dense = dense_features(toy, method, picture(arrays, name))
    assert relative_error(dense[::7], arrays[f"{method}.{name}_dense"]) < TENSOR_TOLERANCE
    norm = torch.as_tensor(arrays[f"{method}.{name}_norm"])
    torch.testing.assert_close(dense.norm(), norm, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", RECORDED)
@pytest.mark.parametrize("name", ["square", "oblong", "odd"])
def test_scores_of_a_window(toy, arrays, picture, relative_error, method, name):
    segmenter = ClipAttentionSegmenter(*toy, method)
    query = one_word_each(arrays[f"{method}.queries"])
    scores = segmenter.window_scores(picture(arrays, name)[None], query)[0]
    expected = arrays[f"{method}.{name}_scores"]
    assert relative_error(scores[::8, ::8, ::8], expected) < TENSOR_TOLERANCE


def test_the_full_size(recorded, picture, relative_error):
    arrays = recorded("clip_family/vitb.npz")
    towers = load_clip("ViT-B/16", "seeded:0")
    rows = word_rows(towers[1], [str(name) for name in arrays["text_names"]])
    assert relative_error(rows, arrays["text"]) < TENSOR_TOLERANCE
    for name in ("square", "oblong"):
        pixels = picture(arrays, name)
        features = ClipAttentionSegmenter(*towers, "clip").patch_features(pixels[None])
        for method in RECORDED:
            dense = ClipAttentionSegmenter(*towers, method).dense_features(features)[0]
            expected = arrays[f"{method}.{name}_dense"]
            assert relative_error(dense[::11], expected) < TENSOR_TOLERANCE, (method, name)


@pytest.mark.parametrize("method", RECORDED)
def test_labels_without_a_background(toy, arrays, labels, picture, relative_error, method):
    segmenter = ClipAttentionSegmenter(*toy, method, "context59", refinements=())
    query = one_word_each(arrays[f"{method}.queries"])
    pixels = picture(labels, "context59")
    check_labels(segmenter, pixels, query, labels, f"{method}.context59", relative_error)


def test_labels_with_pamr(toy, arrays, labels, picture, relative_error):
    segmenter = ClipAttentionSegmenter(*toy, "naclip", "context59")
    assert segmenter.refinements == (PAMR(10, (8, 16)),)
    query = one_word_each(arrays["naclip.queries"])
    pixels = picture(labels, "context59")
    check_labels(segmenter, pixels, query, labels, "naclip.context59_pamr", relative_error)


@pytest.mark.parametrize(
    ("method", "run", "threshold", "changes"),
    [
        ("sclip", "voc", 0.1, {}),
        ("sclip", "voc_high", 0.8, {"area": 0.0}),
        ("naclip", "voc_pamr", 0.1, {}),
        ("naclip", "voc_high", 0.5, {}),
        ("clearclip", "voc", 0.5, {}),
        ("maskclip", "voc", 0.5, {}),
        ("maskclip_reduced", "voc", 0.5, {}),
    ],
)
def test_labels_with_a_background(
    toy, arrays, labels, picture, relative_error, method, run, threshold, changes
):
    refinements = None if run == "voc_pamr" else ()
    segmenter = ClipAttentionSegmenter(*toy, method, "voc", refinements)
    assert run == "voc_high" or segmenter.rules.threshold == threshold
    segmenter.rules = dataclasses.replace(segmenter.rules, **changes)
    rows = arrays[f"{method}.queries"]
    if segmenter.variant.expands:
        query = of_voc(rows, threshold)
    else:
        query = one_word_each(rows[:21], threshold)
    prefix = f"{method}.{run}"
    pixels = picture(labels, "voc")
    check_labels(segmenter, pixels, query, labels, prefix, relative_error, step=18)
    # The recorded probabilities are from before the threshold.
    open_query = dataclasses.replace(query, background=0.0)
    final = picture_scores(segmenter, pixels, open_query, segmenter.protocol)
    if method == "naclip":
        final = final / final.sum(dim=0)
    expected = labels[f"{prefix}_prob"]
    assert relative_error(final[:, ::16, ::16], expected) < TENSOR_TOLERANCE
