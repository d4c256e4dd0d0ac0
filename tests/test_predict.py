"""The Python door: any method by name, and the same labels as `evaluate` writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import talk2dino
from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.benchmarks.table import find_benchmark
from talk2dino.cli.evaluate import Evaluate
from talk2dino.inference import picture_scores, score_labels
from talk2dino.methods.registry import find_method
from talk2dino.sizes import WHOLE

MINIATURES = Path(__file__).parent / "parity" / "data" / "seg" / "data"
PASCAL = MINIATURES / "VOCdevkit"
SEEDED = "seeded:0"
NAMES = ["cat", "sky", "train"]


def pixels(name="VOC2012/JPEGImages/2007_000000.jpg"):
    return np.asarray(Image.open(PASCAL / name).convert("RGB"))


@pytest.mark.parametrize(
    ("model", "key", "options", "flags"),
    [
        ("toy", "voc", {"clean_background": False}, ["--clean_background", "off"]),
        ("toy", "context59", {}, []),
        ("ovsegmentor_toy", "context59", {}, []),
    ],
)
def test_label_maps_are_those_of_evaluate(tmp_path, model, key, options, flags):
    pytest.importorskip("mmseg")
    words = ["--model", model, "--weights", SEEDED, "--benchmarks", key, "--device", "cpu"]
    words += ["--data_root", str(MINIATURES), "--output", str(tmp_path / "out")]
    assert Evaluate.main([*words, "--save_predictions", str(tmp_path / "maps"), *flags]) == 0
    segmenter = talk2dino.load_segmenter(model, SEEDED, benchmark=key, **options)
    method = find_method(model, {"weights": SEEDED})
    row = method.benchmark(find_benchmark(key))
    query = segmenter.query(EvaluationSet(row, MINIATURES).classes, method.threshold(row))
    written = sorted((tmp_path / "maps").rglob("*.png"))
    assert len(written) == 3
    for path in written:
        picture = MINIATURES / row.images / f"{path.stem}{row.image_suffixes[0]}"
        found = talk2dino.label_map(segmenter, np.asarray(Image.open(picture)), query)
        assert found.dtype == np.int64
        assert (found == np.asarray(Image.open(path))).mean() >= 0.9999


@pytest.mark.parametrize(("model", "threshold"), [("toy", 0.52), ("ovsegmentor_toy", 0.95)])
def test_a_model_segments_as_its_method_does_pictures(model, threshold):
    loaded = talk2dino.load_model(model, SEEDED)
    assert (loaded.name, loaded.threshold) == (model, threshold)
    for background in (False, True):
        result = loaded.segment(pixels(), NAMES, background)
        method = find_method(model, {"weights": SEEDED}).for_pictures(background)
        segmenter = method.load(torch.device("cpu"), loaded.segmenter)
        query = method.words().asked_of(segmenter, NAMES, threshold if background else None)
        scores = picture_scores(
            segmenter, torch.tensor(pixels()).permute(2, 0, 1), query, method.demo.protocol
        )
        assert torch.equal(result.labels, score_labels(scores))
        assert result.names == (("background",) if background else ()) + tuple(NAMES)


def test_a_benchmark_picks_options_vocabulary_and_protocol_and_settings_win():
    toy = talk2dino.load_segmenter("toy", SEEDED, benchmark="voc")
    assert (toy.config.pamr, toy.config.clean_background) == (False, True)
    assert (toy.protocol.short_side, toy.protocol.window) == (448, 448)
    settings = {"pamr": True, "clean_background": False}
    other = talk2dino.load_segmenter("toy", SEEDED, benchmark="voc", **settings)
    assert (other.config.pamr, other.config.clean_background) == (True, False)
    ours = talk2dino.load_segmenter("toy", SEEDED)
    assert (ours.config.pamr, ours.protocol) == (True, WHOLE)
    assert not talk2dino.load_segmenter("toy", SEEDED, pamr=False).config.pamr
    named = talk2dino.load_segmenter("ovsegmentor_toy", SEEDED, benchmark="voc")
    assert named.words.of("tvmonitor") == ("monitor",)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("toyy", {}, "unknown model 'toyy'.*'toy'"),
        ("toy", {"benchmark": "vox"}, "unknown benchmark 'vox'.*Did you mean 'voc'"),
        ("toy", {"pamrr": True}, "pamrr means nothing for toy.*No method has such"),
        ("ovsegmentor_toy", {"pamr": False}, "pamr means nothing for ovsegmentor_toy.*vitb"),
        ("toy", {"pamr": "off"}, "pamr must be bool or null, got 'off'"),
        ("ovsegmentor_toy", {"template": 3}, "template must be str, got 3"),
        ("toy", {"template": "ful"}, "Did you mean 'full'"),
        ("toy", {"device": "gpu7"}, "unknown device 'gpu7'"),
    ],
)
def test_wrong_names_and_settings_are_sentences(name, arguments, message):
    for door in (talk2dino.load_segmenter, talk2dino.load_model):
        if door is talk2dino.load_segmenter or "benchmark" not in arguments:
            with pytest.raises(ValueError, match=message):
                door(name, SEEDED, **arguments)


def test_weights_may_be_a_path_and_have_to_be_there(tmp_path):
    for name in ("toy", "ovsegmentor_toy"):
        with pytest.raises(FileNotFoundError, match="none.pth"):
            talk2dino.load_segmenter(name, tmp_path / "none.pth")


@pytest.mark.parametrize("image", [pixels() / 255, pixels()[..., 0], pixels()[:0]])
def test_other_images_are_refused(image):
    query = talk2dino.ClassQuery(("a",), torch.ones(1, 3))
    with pytest.raises(ValueError, match="an image is .H, W, 3. uint8 RGB, found"):
        talk2dino.label_map(None, image, query)


@pytest.mark.parametrize("side", [0, -5, 1.5])
def test_a_size_without_pixels_is_refused(side):
    with pytest.raises(ValueError, match="max_side is a number of pixels from 1"):
        talk2dino.load_model("toy", SEEDED).segment(pixels(), "cat", max_side=side)
