"""CLIP-DINOiser against recordings of the published code, corrected where that is wrong."""

import pytest
import torch

from talk2dino.inference import picture_scores, sliding_window_scores
from talk2dino.methods.clip_dinoiser import ClipDinoiserSegmenter, smooth
from talk2dino.methods.clip_words import word_rows
from talk2dino.methods.registry import load_segmenter
from talk2dino.segmenter import ClassQuery

from .conftest import TENSOR_TOLERANCE

# 100 * cosine in a softmax makes rounding larger.
PROBABILITY_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded("peers/dinoiser_toy.npz")


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter("clip_dinoiser_toy", "seeded:0")


def query_of(rows, background=None):
    rows = torch.as_tensor(rows)
    return ClassQuery(tuple(map(str, range(len(rows)))), rows, None, background)


def check_window(segmenter, window, arrays, prefix, step, relative_error):
    """Compare every step of one window of 448 pixels."""
    dense, middle = segmenter.dense_features(window[None])
    alike = segmenter.heads.alike(middle)
    correlation = alike[0] @ alike[0].T
    assert float(correlation.mean()) == pytest.approx(
        float(arrays[f"{prefix}mean_correlation"]), rel=1e-4
    )
    kept = float((correlation >= 0.2).float().mean())
    assert kept == pytest.approx(float(arrays[f"{prefix}kept"]), rel=1e-4)
    features = segmenter.patch_features(window[None])
    torch.testing.assert_close(features.patches, smooth(dense, alike))
    rows = arrays[f"{prefix}queries"]
    ours = {
        "inter": middle[0].flatten(1).T[::step],
        "dense": dense[0, ::step],
        "proj": alike[0, ::step],
        "refined": features.patches[0, ::step],
        "bkg": segmenter.heads.objectness(middle)[0],
        "prob": segmenter.patch_scores(features, query_of(rows))[0],
        "prob_found": segmenter.patch_scores(features, query_of(rows, 0.99))[0],
    }
    for name, value in ours.items():
        tolerance = PROBABILITY_TOLERANCE if name.startswith("prob") else TENSOR_TOLERANCE
        assert relative_error(value, arrays[f"{prefix}{name}"]) < tolerance, name


def test_text(segmenter, arrays, relative_error):
    rows = word_rows(segmenter.text, [str(name) for name in arrays["text_names"]])
    assert relative_error(rows, arrays["text_embeddings"]) < TENSOR_TOLERANCE


def test_a_window(segmenter, arrays, resized, relative_error):
    window = resized(str(arrays["square_image"]), 448)[:, :448, :448]
    check_window(segmenter, window, arrays, "square_", 7, relative_error)


def test_a_window_of_odd_size_is_cropped_and_not_stretched(
    segmenter, arrays, photograph, relative_error
):
    high, wide = arrays["odd_size"]
    window = photograph(str(arrays["odd_image"]))[None, :, :high, :wide]
    features = segmenter.patch_features(window)
    query, found = (query_of(arrays["odd_queries"], threshold) for threshold in (None, 0.99))
    scores = segmenter.score_features(features, window, found)[0, :, ::10, ::10]
    ours = {
        "prob": segmenter.patch_scores(features, query)[0],
        "prob_found": segmenter.patch_scores(features, found)[0],
        "scores": scores,
    }
    for name, value in ours.items():
        assert relative_error(value, arrays[f"odd_{name}"]) < PROBABILITY_TOLERANCE, name


@pytest.mark.parametrize(
    ("benchmark", "classes", "threshold"),
    [("voc20", 20, None), ("voc", 21, 0.99), ("context", 60, 0.0)],
)
def test_labels(
    segmenter, recorded, photograph, resized, relative_error, benchmark, classes, threshold
):
    pictures = recorded("peers/dinoiser_toy_images.npz")
    parts = (segmenter.image, segmenter.text, segmenter.heads)
    of_benchmark = ClipDinoiserSegmenter(*parts, benchmark)
    query = query_of(pictures["queries"][:classes], threshold)
    name = str(pictures[f"{benchmark}_image"])
    mean = sliding_window_scores(of_benchmark, resized(name, 448), query, of_benchmark.protocol)
    expected = pictures[f"{benchmark}_mean_prob"]
    assert relative_error(mean[:, ::12, ::12], expected) < PROBABILITY_TOLERANCE
    final = picture_scores(of_benchmark, photograph(name), query, of_benchmark.protocol)
    equal = final.argmax(dim=0) == torch.as_tensor(pictures[f"{benchmark}_labels"])
    assert equal.float().mean() >= 0.995


def test_the_full_size(recorded, resized, relative_error):
    arrays = recorded("peers/dinoiser_base.npz")
    segmenter = load_segmenter("clip_dinoiser", "seeded:0")
    rows = word_rows(segmenter.text, [str(name) for name in arrays["text_names"]])
    assert relative_error(rows, arrays["text_embeddings"]) < TENSOR_TOLERANCE
    window = resized(str(arrays["image"]), 448)[:, :448, :448]
    check_window(segmenter, window, arrays, "", 28, relative_error)
