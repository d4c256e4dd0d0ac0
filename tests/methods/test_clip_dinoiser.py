import numpy as np
import pytest
import torch
from torch import nn

from talk2dino import label_map
from talk2dino.backbones.text import clip_state
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.methods.clip_dinoiser import ClipDinoiserSegmenter, class_words, load_heads, smooth
from talk2dino.methods.registry import find_method, load_segmenter
from talk2dino.segmenter import BACKGROUND, ClassQuery
from talk2dino.sizes import WHOLE, Protocol


@pytest.fixture(scope="module")
def toy():
    return load_segmenter("clip_dinoiser_toy", "seeded:0")


def query_of(count, background=None):
    generator = torch.Generator().manual_seed(0)
    rows = nn.functional.normalize(torch.randn(count, 512, generator=generator), dim=-1)
    return ClassQuery(tuple(map(str, range(count))), rows, None, background)


def test_a_patch_becomes_the_mean_of_those_that_resemble_it():
    alike = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.1, 1.0]]), dim=-1)
    features = torch.tensor([[1.0], [10.0], [100.0]])
    found = smooth(features[None], alike[None])[0]
    weights = alike @ alike.T
    assert weights[0, 2] < 0.2  # too unlike to count
    first = (1.0 + weights[0, 1] * 10.0) / (1.0 + weights[0, 1])
    assert found[0, 0] == pytest.approx(float(first), rel=1e-5)
    torch.testing.assert_close(smooth(features[None], alike[None], rows=2)[0], found)


def test_a_window_scores_alike_whatever_it_is_batched_with(toy):
    windows = torch.rand(3, 3, 60, 90, generator=torch.Generator().manual_seed(1)) * 255
    windows[1] /= 4
    query = query_of(4, background=0.99)
    together = toy.window_scores(windows, query)
    alone = torch.cat([toy.window_scores(window[None], query) for window in windows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert together.shape == (3, 4, 60, 90)


def test_windows_are_padded_with_black_at_the_right_and_below(toy):
    window = torch.rand(1, 3, 60, 90) * 255
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :60, :90] = window
    query = query_of(3)
    scores = toy.window_scores(padded, query)[..., :60, :90]
    torch.testing.assert_close(toy.window_scores(window, query), scores)
    assert toy.window_scores(window[..., :3, :5], query).shape == (1, 3, 3, 5)


def test_the_background_is_where_no_class_is_sure_and_no_object(toy):
    features = toy.patch_features(torch.rand(1, 3, 64, 64) * 255)
    features = features._replace(objects=torch.arange(16).view(1, 4, 4) % 2 == 0)
    plain = toy.patch_scores(features, query_of(4))
    found = toy.patch_scores(features, query_of(4, background=1.0))
    unsure = ~features.objects & (plain.amax(dim=1) < 1)
    assert unsure.any() and (found[:, 0][unsure] == 1).all()
    torch.testing.assert_close(found[:, 0][~unsure], plain[:, 0][~unsure])
    torch.testing.assert_close(found[:, 1:], plain[:, 1:])
    assert torch.equal(toy.patch_scores(features, query_of(4, background=0.0)), plain)


def test_a_background_without_a_word_has_a_channel_too(toy):
    query = toy.query(["background", "cat"], 0.99, [(), ("cat",)])
    scores = toy.window_scores(torch.rand(1, 3, 32, 32) * 255, query)
    assert scores.shape == (1, 2, 32, 32)


@pytest.mark.parametrize("model", ["proxyclip_toy", "clip_dinoiser_toy", "freeda_toy"])
def test_a_picture_of_a_pixel_one_class_and_a_word_twice(model):
    segmenter = load_segmenter(model, "seeded:0")
    rows = segmenter.query(["cat", "cat"]).rows
    assert torch.allclose(rows[0], rows[1], atol=1e-6)  # sums of a batch differ in their last bits
    # The words of ProxyCLIP's background take seconds, and have tests of their own.
    query = segmenter.query(["cat"], None if model == "proxyclip_toy" else 0.5)
    for size_hw in ((1, 1), (5, 3)):
        labels = label_map(segmenter, np.full((*size_hw, 3), 99, np.uint8), query)
        assert labels.shape == size_hw and labels.max() < len(query.names)


def test_a_threshold_is_refused_where_a_benchmark_has_no_background(toy):
    segmenter = ClipDinoiserSegmenter(toy.image, toy.text, toy.heads, "voc20")
    with pytest.raises(ValueError, match="voc20 has no background"):
        segmenter.query(["cat"], 0.99)


@pytest.mark.parametrize(
    ("benchmark", "names", "words"),
    [
        ("voc20", ["diningtable", "pottedplant"], ["dining table", "potted plant"]),
        ("context", ["diningtable", "pottedplant"], ["diningtable", "potted plant"]),
        ("coco_object", ["airplane", "potted plant"], ["aeroplane", "potted plant"]),
        ("coco_stuff", ["airplane"], ["airplane"]),
        (None, ["pottedplant"], ["pottedplant"]),
    ],
)
def test_words_are_the_published_ones(benchmark, names, words):
    assert class_words(benchmark).lists(names, None)[1] == [(word,) for word in words]
    assert class_words(benchmark).background == (BACKGROUND,)


def test_thresholds_protocols_and_numbers_are_the_published_ones():
    method = find_method("clip_dinoiser")
    thresholds = {key: method.threshold(row) for key, row in BENCHMARKS.items() if row.background}
    assert thresholds == {"voc": 0.99, "context": 0.0, "coco_object": 0.99}
    assert {method.benchmark(row).protocol for row in BENCHMARKS.values()} == {Protocol()}
    assert (method.demo.protocol, method.demo.threshold) == (WHOLE, 0.99)
    assert method.published_miou(BENCHMARKS["voc"]) == 62.1
    refined = find_method("clip_dinoiser", {"pamr": True})
    assert refined.published_miou(BENCHMARKS["voc"]) == 64.6


def test_settings_tell_the_weights_of_both_models(tmp_path):
    settings = find_method("clip_dinoiser_toy", {"weights": "seeded:3"}).settings()
    assert (settings["weights"], settings["clip_weights"]) == ("seeded:3", "seeded:3")
    other = find_method("clip_dinoiser_toy", {"clip_weights": "seeded:4"}).settings()
    assert (other["weights"], other["clip_weights"]) == ("seeded:0", "seeded:4")
    assert find_method("clip_dinoiser").parts["clip_weights"][1] == "pretrained"


def test_the_published_file_loads_as_a_checkpoint_and_bare(toy, tmp_path):
    state = load_heads("seeded:5", toy.image).state_dict()
    for content in ({"epoch": 3, "model_state_dict": state}, dict(state)):
        torch.save(content, tmp_path / "last.pt")
        heads = load_segmenter("clip_dinoiser_toy", str(tmp_path / "last.pt")).heads
        assert set(heads.state_dict()) == set(state) and len(state) == 4
        assert all(torch.equal(state[name], value) for name, value in heads.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "holds no state dict"),
        (lambda state: {"fc.weight": torch.ones(1)}, "missing keys: obj_proj.weight.*fc.weight"),
        (lambda state: {**state, "extra.weight": torch.ones(1)}, "unexpected keys: extra.weight"),
        (
            lambda state: {**state, "obj_proj.bias": torch.ones(256)},
            r"obj_proj.bias is \(256,\), expected \(64,\)",
        ),
        (lambda state: {**state, "bkg_decoder.bias": torch.tensor([torch.nan])}, "not a number"),
    ],
)
def test_other_weights_are_refused_by_name(toy, tmp_path, change, message):
    path = tmp_path / "last.pt"
    torch.save(change(load_heads("seeded:0", toy.image).state_dict()), path)
    with pytest.raises(ValueError, match=rf"last.pt.*{message}"):
        load_heads(str(path), toy.image)


def test_missing_weights_are_said_before_anything_is_loaded(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"at 'absent.pt'. Put checkpoints/last.pt"):
        find_method("clip_dinoiser_toy", {"weights": "absent.pt"}).check()
    with pytest.raises(FileNotFoundError, match="no CLIP weights at 'clip.bin'"):
        options = {"weights": "seeded:0", "clip_weights": "clip.bin"}
        find_method("clip_dinoiser_toy", options).check()


def test_an_open_clip_file_is_read_with_both_towers(toy, tmp_path):
    towers = {"visual.": toy.image.model, "": toy.text.model}
    _, state = clip_state("toy-gelu", "seeded:2", towers)
    torch.save(state, tmp_path / "clip.pt")
    found = load_segmenter("clip_dinoiser_toy", "seeded:0", clip_weights=str(tmp_path / "clip.pt"))
    assert torch.equal(found.image.model.proj, state["visual.proj"])
    assert not found.shares_features(toy)
    assert toy.shares_features(ClipDinoiserSegmenter(toy.image, toy.text, toy.heads, "voc"))
