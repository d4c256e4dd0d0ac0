"""ProxyCLIP against recordings of the published code, corrected where that is wrong."""

import pytest
import torch

from talk2dino.inference import picture_scores, sliding_window_scores
from talk2dino.methods.clip_words import word_rows
from talk2dino.methods.proxyclip import ProxyClipSegmenter, proxy_attention
from talk2dino.methods.registry import load_segmenter
from talk2dino.segmenter import ClassQuery

from .conftest import TENSOR_TOLERANCE

# Entries at the edge of the mask may be kept by one program and dropped by another.
MASK_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded("peers/proxyclip_toy.npz")


@pytest.fixture(scope="module")
def pictures(recorded):
    return recorded("peers/proxyclip_toy_images.npz")


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter("proxyclip_toy", "seeded:0")


def query_of(rows, owner=None, background=None):
    rows = torch.as_tensor(rows)
    owner = None if owner is None else torch.as_tensor(owner)
    count = len(rows) if owner is None else int(owner.max()) + 1
    return ClassQuery(tuple(f"class {i}" for i in range(count)), rows, owner, background)


def check_window(segmenter, window, arrays, prefix, relative_error, tolerance, step=37):
    """Compare features and cosines of one window."""
    proxies = segmenter.vision(segmenter.vision.normalise(window[None])).patches[0]
    if f"{prefix}vfm" in arrays:
        thinned = proxies[:: 37 if len(arrays[f"{prefix}vfm"]) == 48 else 7]
        assert relative_error(thinned, arrays[f"{prefix}vfm"]) < TENSOR_TOLERANCE
    features = segmenter.patch_features(window[None])
    mean = float(arrays[f"{prefix}mean_similarity"])
    assert features.mean_similarities[0] == pytest.approx(mean, rel=1e-5)
    assert relative_error(features.patches[0, ::step], arrays[f"{prefix}dense"]) < tolerance
    rows = arrays["text_embeddings" if prefix == "" and "queries" not in arrays else "queries"]
    cosines = segmenter.patch_scores(features, query_of(rows))[0]
    expected = arrays[f"{prefix}cosines"]
    thin = cosines.shape[1] // expected.shape[1]
    assert relative_error(cosines[:, ::thin, ::thin], expected) < tolerance
    return proxies


def test_text(segmenter, arrays, relative_error):
    rows = word_rows(segmenter.text, [str(name) for name in arrays["text_names"]])
    assert relative_error(rows, arrays["text_embeddings"]) < TENSOR_TOLERANCE


def test_a_square_window(segmenter, arrays, resized, relative_error):
    window = resized(str(arrays["square_image"]))[:, :336, :336]
    proxies = check_window(segmenter, window, arrays, "square_", relative_error, TENSOR_TOLERANCE)
    attention, _ = proxy_attention(proxies)
    kept = float((attention > 0).float().mean())
    assert kept == pytest.approx(float(arrays["square_kept"]), rel=MASK_TOLERANCE)
    scores = segmenter.window_scores(window[None], query_of(arrays["queries"]))[0]
    assert relative_error(scores[::5, ::8, ::8], arrays["square_scores"]) < TENSOR_TOLERANCE


def test_a_window_that_is_not_square(segmenter, arrays, resized, relative_error):
    height, width = arrays["tall_size"]
    window = resized(str(arrays["tall_image"]))[:, :height, 40 : 40 + width]
    check_window(segmenter, window, arrays, "tall_", relative_error, MASK_TOLERANCE)


def test_a_window_in_which_everything_is_alike(segmenter, arrays, resized, relative_error):
    top, bottom, left, right = arrays["flat_box"]
    window = torch.full((3, 336, 336), 127.0)
    picture = resized(str(arrays["tall_image"]))
    window[:, top:bottom, left:right] = picture[:, top:bottom, left:right]
    check_window(segmenter, window, arrays, "flat_", relative_error, TENSOR_TOLERANCE)


def test_a_picture_smaller_than_a_window(segmenter, arrays, resized, relative_error):
    height, width = arrays["padded_size"]
    picture = resized(str(arrays["padded_image"]))[:, :height, :width]
    query = query_of(arrays["queries"])
    scores = sliding_window_scores(segmenter, picture, query, segmenter.protocol)
    assert relative_error(scores[::5, ::5, ::5], arrays["padded_scores"]) < MASK_TOLERANCE


@pytest.mark.parametrize("benchmark", ["voc20", "voc", "cityscapes"])
def test_labels(segmenter, arrays, pictures, photograph, resized, relative_error, benchmark):
    of_benchmark = ProxyClipSegmenter(segmenter.image, segmenter.text, segmenter.vision, benchmark)
    threshold = float(pictures[f"{benchmark}_threshold"])
    rows = pictures["queries"]
    query = {
        "voc20": query_of(rows[26:]),
        "voc": query_of(rows, arrays["query_class_voc21"], threshold),
        "cityscapes": query_of(rows[:19]),
    }[benchmark]
    assert benchmark != "voc" or of_benchmark.rules.threshold == threshold
    protocol, name = of_benchmark.protocol, str(pictures[f"{benchmark}_image"])
    cosines = sliding_window_scores(
        of_benchmark, resized(name, protocol.short_side), query, protocol
    )
    expected = pictures[f"{benchmark}_mean_cosines"]
    assert relative_error(cosines[:, ::12, ::12], expected) < TENSOR_TOLERANCE
    final = picture_scores(of_benchmark, photograph(name), query, protocol)
    equal = final.argmax(dim=0) == torch.as_tensor(pictures[f"{benchmark}_labels"])
    assert equal.float().mean() >= 0.999


def test_dinov2(recorded, resized, relative_error):
    arrays = recorded("peers/proxyclip_toy_dinov2.npz")
    window = resized(str(arrays["image"]))[:, :336, :336]
    segmenter = load_segmenter("proxyclip_toy_dinov2", "seeded:0")
    assert segmenter.multiple == 112
    check_window(segmenter, window, arrays, "", relative_error, TENSOR_TOLERANCE, step=7)


def test_the_full_size(recorded, resized, relative_error):
    arrays = recorded("peers/proxyclip_base.npz")
    segmenter = load_segmenter("proxyclip_vitb", "seeded:0")
    rows = word_rows(segmenter.text, [str(name) for name in arrays["text_names"]])
    assert relative_error(rows, arrays["text_embeddings"]) < TENSOR_TOLERANCE
    window = resized(str(arrays["image"]))[:, :336, :336]
    check_window(segmenter, window, arrays, "", relative_error, TENSOR_TOLERANCE)
