"""Names of models to methods, and what each method says of itself before it is loaded."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from talk2dino.benchmarks.table import BENCHMARKS, DRAWN_WORLD, STUFF_BACKGROUND
from talk2dino.files import content_digest
from talk2dino.methods.ovsegmentor.method import OVSegmentorMethod
from talk2dino.methods.registry import (
    MODEL_NAMES,
    find_method,
    load_segmenter,
    method_class,
    split_models,
    split_weights,
)
from talk2dino.methods.talk2dino.method import Talk2DinoMethod
from talk2dino.predict import label_map
from talk2dino.sizes import Protocol

TOYS = [name for name in MODEL_NAMES if "toy" in name.split("_")]
SEEDED = {"weights": "seeded:0"}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_name_has_a_method_that_can_be_described_as_json(name):
    method = find_method(name, SEEDED)
    assert method.model == name
    method.check()
    assert json.loads(json.dumps(method.settings())) == method.settings()
    text = method.text_settings()
    assert json.loads(json.dumps(text)) == text


def test_an_unknown_name_lists_all_models_of_all_methods():
    with pytest.raises(ValueError, match="unknown model 'ovsegmentor_vitl'.*vitb.*ovsegmentor_toy"):
        find_method("ovsegmentor_vitl")


def test_a_recipe_gives_the_model_that_is_named_after_it(root):
    assert find_method(str(root / "configs" / "toy.yaml"), SEEDED).model == "toy"


def test_talk2dino_is_published_on_eight_benchmarks_and_ovsegmentor_on_five():
    ours, other = find_method("toy", SEEDED), find_method("ovsegmentor_toy", SEEDED)
    assert list(ours.published_on) == list(BENCHMARKS.values())
    keys = [row.key for row in other.published_on]
    assert keys == ["voc", "context", "coco_object", "coco_stuff_bg", "ade20k"]


def test_ovsegmentor_has_its_own_thresholds_and_names():
    method = find_method("ovsegmentor_vitb", SEEDED)
    thresholds = [method.threshold(row) for row in method.published_on]
    assert thresholds == [0.95, 0.35, 0.9, 0.95, None]
    assert method.benchmark(BENCHMARKS["coco_stuff"]) is STUFF_BACKGROUND
    assert method.words(BENCHMARKS["voc"]).of("tvmonitor") == ("monitor",)
    assert method.words(BENCHMARKS["ade20k"]).of("bed ") == ("bed ",)
    assert method.settings()["template"] == "simple"
    other = dataclasses.replace(DRAWN_WORLD, background=True)
    assert method.threshold(other) == 0.95  # the demo's, where nothing was published


def test_talk2dino_keeps_names_and_cleans_where_published():
    method = find_method("vitl", SEEDED)
    assert method.words(BENCHMARKS["voc"]).of("tvmonitor") == ("tvmonitor",)
    assert method.threshold(BENCHMARKS["voc"]) == 0.54
    assert method.benchmark(BENCHMARKS["coco_stuff"]) is BENCHMARKS["coco_stuff"]
    assert method.threshold(STUFF_BACKGROUND) == 0.54  # nothing was published on 172 classes
    assert method.on(BENCHMARKS["voc"]).settings()["clean_background"] is True
    assert method.on(BENCHMARKS["context"]).settings()["clean_background"] is False


def test_settings_name_a_normalisation_other_than_imagenets():
    toy = find_method("toy", SEEDED)
    assert "mean" not in toy.settings()
    config = dataclasses.replace(toy.config, vision_model="vit_base_patch16_clip_224.openai")
    method = dataclasses.replace(toy, config=config)
    assert method.settings()["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert "mean" not in method.text_settings()


@pytest.mark.parametrize(
    ("key", "model", "pamr", "miou"),
    [
        ("voc", "vitb", False, 61.5),
        ("ade20k", "vitl", True, 22.9),
        ("voc20", "vitl", True, 89.8),
        ("coco_object", "vitb", True, 45.1),
        ("context59", "dinov3_vitb", False, None),
    ],
)
def test_published_numbers_of_talk2dino(key, model, pamr, miou):
    method = find_method(model, {"weights": "seeded:0", "pamr": pamr})
    assert method.published_miou(BENCHMARKS[key]) == miou
    assert method.published_miou(DRAWN_WORLD) is None


@pytest.mark.parametrize(
    ("model", "key", "miou"),
    [
        ("ovsegmentor_vitb", "voc", 53.8),
        ("ovsegmentor_vitb", "ade20k", 5.6),
        ("ovsegmentor_vits", "context", 18.3),
        ("ovsegmentor_vits", "coco_object", 19.0),
        ("ovsegmentor_vitb", "voc20", None),
        ("ovsegmentor_toy", "voc", None),
    ],
)
def test_published_numbers_of_ovsegmentor(model, key, miou):
    method = find_method(model, SEEDED)
    assert method.published_miou(BENCHMARKS[key]) == miou
    assert method.published_miou(STUFF_BACKGROUND) is None


def test_missing_weights_say_what_to_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ovsegmentor_vitb.pth.*convert ovsegmentor"):
        find_method("ovsegmentor_vitb").check()


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_works_without_a_file_and_says_that_it_is_untrained(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = find_method(name)
    method.check()
    assert "untrained; the colours will mean nothing" in method.describe()[1][0]


def test_a_converted_folder_is_found_by_name_and_known_by_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "ovsegmentor_toy").mkdir(parents=True)
    method = find_method("ovsegmentor_toy")
    assert isinstance(method, OVSegmentorMethod)
    assert method.weights == "weights/ovsegmentor_toy" and not method.untrained
    (tmp_path / "weights" / "ovsegmentor_toy" / "model.safetensors").write_bytes(b"one")
    first = content_digest(method.weights)
    assert first.startswith("sha256:")
    moved = (tmp_path / "weights" / "ovsegmentor_toy").rename(tmp_path / "elsewhere")
    assert content_digest(moved) == first
    (moved / "model.safetensors").write_bytes(b"three")
    assert content_digest(moved) != first


def test_options_of_the_other_method_are_named():
    options = {"weights": "seeded:0", "pamr": True, "template": "full"}
    assert find_method("toy", options).settings()["pamr"] is True
    with pytest.raises(ValueError, match="pamr means nothing for ovsegmentor_toy.*vitb, vitl"):
        find_method("ovsegmentor_toy", options)


def test_loaded_weights_are_used_again():
    for name in ("toy", "ovsegmentor_toy"):
        method = find_method(name, SEEDED)
        first = method.load(CPU)
        changed = find_method(name, {"weights": "seeded:0", "template": "identity"})
        second = changed.load(CPU, first)
        assert second.shares_features(first)
        one, other = (segmenter.embed_classes(["cat"]) for segmenter in (first, second))
        assert not torch.equal(one, other)


def test_a_file_is_read_once_however_often_it_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(b"content")
    first = content_digest(path)
    monkeypatch.setattr("builtins.open", pytest.fail)
    assert content_digest(path) == first
    assert content_digest("pretrained") == "pretrained"


def test_models_are_split_at_commas_unless_a_file_has_them_in_its_name(tmp_path):
    assert split_models("toy, ovsegmentor_toy,toy") == ["toy", "ovsegmentor_toy"]
    path = tmp_path / "a,b.yaml"
    path.touch()
    assert split_models(str(path)) == [str(path)]
    with pytest.raises(ValueError, match="no model named. Known: .*vitb"):
        split_models(" , ")


def test_weights_belong_to_the_model_they_name():
    both = ["toy", "ovsegmentor_toy"]
    assert split_weights(None, both) == {}
    assert split_weights(["seeded:0"], both) == {"toy": "seeded:0", "ovsegmentor_toy": "seeded:0"}
    assert split_weights(["a=b.pth"], ["toy"]) == {"toy": "a=b.pth"}
    given = split_weights(["seeded:0", "ovsegmentor_toy=folder"], both)
    assert given == {"toy": "seeded:0", "ovsegmentor_toy": "folder"}
    with pytest.raises(ValueError, match="Say whose they are: --weights toy=a.pth"):
        split_weights(["a.pth"], both)
    with pytest.raises(ValueError, match="vitb is none of --model toy,ovsegmentor_toy"):
        split_weights(["vitb=a.pth"], both)


def test_methods_are_equal_when_they_score_alike():
    assert find_method("toy", SEEDED) == find_method("toy", SEEDED)
    assert isinstance(find_method("toy", SEEDED), Talk2DinoMethod)


def test_the_unified_protocol_gives_every_method_the_same_sizes_and_words():
    for name in ("ovsegmentor_toy", "proxyclip_toy"):
        segmenter = load_segmenter(name, "seeded:0", benchmark="voc20", protocol="unified")
        assert segmenter.protocol == Protocol()
        assert segmenter.words.lists(["diningtable"], None) == (
            ("diningtable",),
            [("diningtable",)],
        )
        with pytest.raises(ValueError, match="threshold 0.3"):
            segmenter.query(["cat"], 0.3)
    with pytest.raises(ValueError, match="voc has a background, but .* is for voc20, context59"):
        load_segmenter("toy", "seeded:0", benchmark="voc", protocol="unified")


def test_settings_name_a_protocol_only_where_it_is_not_the_methods_own():
    native, plain = (find_method("toy", SEEDED | more) for more in ({"protocol": "native"}, {}))
    unified = find_method("toy", SEEDED | {"protocol": "unified"})
    assert native == plain and "protocol" not in native.settings()
    assert unified.settings() == {**native.settings(), "protocol": "unified"}
    assert unified.text_settings() == native.text_settings()
    with pytest.raises(ValueError, match="unknown protocol 'common'"):
        find_method("toy", SEEDED | {"protocol": "common"})


def test_what_the_unified_protocol_changes_is_said_in_words():
    stuff = find_method("ovsegmentor_toy", SEEDED | {"protocol": "unified"})
    changes = stuff.changes(BENCHMARKS["coco_stuff"], [])
    assert changes == ["coco_stuff in place of coco_stuff_bg"]
    naclip = find_method("naclip_toy", SEEDED | {"protocol": "unified"})
    changes = naclip.changes(BENCHMARKS["voc20"], ["boat", "dog"])
    assert "window 448 in place of all" in changes and changes[-1] == "boat in place of ship"
    assert find_method("naclip_toy", SEEDED).changes(BENCHMARKS["voc20"], ["boat"]) == []


@pytest.mark.parametrize("name", ["toy", "maskclip_toy", "proxyclip_toy", "clip_dinoiser_toy"])
def test_refinements_are_settings_of_a_run_which_names_only_what_is_on(name):
    row = BENCHMARKS["voc"]
    plain, same = find_method(name), find_method(name, {"refine": "", "propagation": False})
    refine = ["smoothing", "propagation"]
    found = find_method(name, {"refine": refine, "propagation_graph": "image"})
    assert plain.settings() == same.settings() and "propagation" not in plain.settings()
    more = {"smoothing": True, "propagation": True, "propagation_graph": "image"}
    assert found.settings() == plain.settings() | more
    assert found.published_miou(row) is None
    found = load_segmenter(name, "seeded:0", refine="propagation, smoothing", pamr=True)
    assert [refinement.name for refinement in found.refinements] == [*refine, "pamr"]


def test_what_refinements_cannot_be_is_a_sentence():
    for name, settings, message in (
        ("toy", {"refine": "propagate"}, "unknown refinement 'propagate'.*Did you mean"),
        ("toy", {"refine": True}, "found True"),
        ("toy", {"propagation_graph": "image"}, "means nothing without --refine propagation"),
        ("toy", {"refine": "propagation", "propagation_graph": "all"}, "Known: window, image"),
        ("freeda_toy", {"refine": "propagation"}, "means nothing for freeda_toy.*option of vitb"),
        ("ovsegmentor_toy", {"refine": "propagation"}, "option of vitb, .*proxyclip_vitb"),
    ):
        with pytest.raises(ValueError, match=message):
            find_method(name, settings)


@pytest.mark.parametrize("name", ["toy", "maskclip_toy", "freeda_toy", "ovsegmentor_toy"])
def test_sizes_belong_to_the_rows_and_settings_of_any_method(name):
    plain = find_method(name, SEEDED)
    found = find_method(name, SEEDED | {"short_side": 336, "window": 336, "stitch": "hann"})
    row = found.benchmark(BENCHMARKS["voc20"])
    own = plain.benchmark(BENCHMARKS["voc20"]).protocol
    expected = dataclasses.replace(own, short_side=336, window=336, stitch="hann")
    assert row.protocol == expected and row.protocol.recorded()["stitch"] == "hann"
    assert "stitch" not in own.recorded()
    assert found.published_miou(row) is None and found.threshold(row) == plain.threshold(row)
    sizes = {"short_side": 336, "window": 336, "stitch": "hann"}
    assert found.settings()["sizes"] == sizes
    text = plain.text_settings()
    assert found.text_settings() == text
    assert found.words(row).of("cat") == plain.words(row).of("cat")
    with pytest.raises(ValueError, match="window of 5 pixels is smaller than a patch of"):
        find_method(name, SEEDED | {"window": 5})


def test_talk2dino_sees_windows_at_their_own_size_or_the_nearest_of_whole_patches(caplog):
    segmenter = load_segmenter("toy", "seeded:0", window=112, stride=56, stitch="hann")
    assert segmenter.config.input_size == 112 and not caplog.records
    assert segmenter.protocol == Protocol(None, window=112, stride=56, stitch="hann")
    image = np.zeros((60, 130, 3), np.uint8)
    assert label_map(segmenter, image, segmenter.query(["cat", "dog"])).shape == (60, 130)
    assert load_segmenter("toy", "seeded:0", window=300).config.input_size == 294
    (record,) = caplog.records
    assert "windows of 300 pixels are resized to 294" in record.getMessage()
    with pytest.raises(ValueError, match="sizes: window must be int or null, got 'x'"):
        load_segmenter("toy", "seeded:0", window="x")


def test_sizes_go_with_the_unified_protocol():
    found = find_method("ovsegmentor_toy", SEEDED | {"protocol": "unified", "short_side": 500})
    rows = [found.benchmark(row) for row in found.published_on]
    assert {row.protocol.short_side for row in rows} == {500}
    assert found.settings()["protocol"] == "unified"


def test_half_a_name_suggests_a_model_that_is_no_toy():
    with pytest.raises(ValueError, match="Did you mean 'clearclip_vitb'"):
        method_class("clearclip")
