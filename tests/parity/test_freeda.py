"""FreeDA against recordings of the published code; widths of the L models at a depth of 4."""

import cv2
import numpy as np
import pytest
import timm
import torch
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer

from talk2dino.backbones.checkpoints import load_strict, state_shapes
from talk2dino.backbones.clip_image import ClipImage
from talk2dino.backbones.seeded import seeded_state
from talk2dino.backbones.text import TextEncoder
from talk2dino.backbones.vision import VisionBackbone, official_shapes, to_timm
from talk2dino.inference import resize_picture, resize_scores, sliding_window_scores
from talk2dino.methods.freeda.bank import Bank
from talk2dino.methods.freeda.method import SETTINGS, FreeDASegmenter
from talk2dino.methods.registry import load_segmenter
from talk2dino.sizes import Protocol

from .conftest import TENSOR_TOLERANCE


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded("peers/freeda_toy.npz")


@pytest.fixture(scope="module")
def toy(arrays):
    return with_recorded_bank(load_segmenter("freeda_toy", "seeded:0", benchmark="voc20"), arrays)


@pytest.fixture(scope="module")
def photograph(shared_file):
    """A photograph by its file name, (3, H, W) RGB."""

    def read(name):
        bgr = cv2.imread(str(shared_file(f"images/{name}")))
        return torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1).float()

    return read


@pytest.fixture(scope="module")
def resized(photograph):
    """The same at the size at which it is scored."""

    def read(name):
        picture = photograph(str(name))
        return resize_picture(picture, Protocol().scored_size(*picture.shape[-2:])).float()

    return read


def with_recorded_bank(segmenter, arrays):
    keys, vectors = (torch.from_numpy(arrays[f"bank_{n}"]) for n in ("keys", "prototypes"))
    segmenter.bank, segmenter.neighbours = Bank(keys, vectors, "inner_product"), int(arrays["k"])
    return segmenter


def check_window(segmenter, window, arrays, relative_error):
    """Compare text, inputs, features and scores of the recorded window."""

    def close(ours, name):
        assert relative_error(ours, arrays[name]) < TENSOR_TOLERANCE, name

    names = [str(name) for name in arrays["class_names"]]
    texts = segmenter.embed_texts(names)
    close(texts, "text_embeddings")
    nearest = segmenter.bank.nearest(texts, segmenter.neighbours)
    assert (nearest.numpy() == arrays["indices"]).all()
    close(segmenter.bank.class_prototypes(texts, segmenter.neighbours, names), "prototypes")
    close(segmenter.clip_input(window[None])[0, :, ::7, ::7], "clip_input")
    dino_input = segmenter.dino_input(window[None])
    close(dino_input[0, :, ::14, ::14], "dino_input")
    close(segmenter.vision(dino_input).patches[0, ::37], "tokens")

    query, features = segmenter.query(names), segmenter.patch_features(window[None])
    close(features.embeddings[0], "clip_image_embedding")
    close(segmenter.dense_scores(features, query)[0, :, ::2, ::2], "dense")
    labels, pooled = features.regions[0]
    assert (labels.numpy() == arrays["superpixels"]).all()
    assert len(pooled) == int(arrays["superpixel_count"])
    fallback = np.unpackbits(arrays["fallback"]).reshape(labels.shape)
    assert ((~pooled.any(dim=1))[labels].numpy() == fallback).mean() >= 0.9999
    close(segmenter.local_scores(features, window[None], query)[0, :, ::8, ::8], "local")
    close(segmenter.score_features(features, window[None], query)[0, :, ::8, ::8], "score")


def test_a_window(toy, arrays, resized, relative_error):
    window = resized(arrays["image"])[:, :448, :448]
    check_window(toy, window, arrays, relative_error)


def test_all_keys_but_those_of_damaged_vectors(toy, arrays, relative_error):
    texts = torch.from_numpy(arrays["text_embeddings"][:2])
    prototypes = toy.bank.class_prototypes(texts, 350, ["aeroplane", "bicycle"])
    assert relative_error(prototypes, arrays["prototypes_k350"]) < TENSOR_TOLERANCE


def test_superpixels_of_every_setting(arrays, resized):
    settings = [SETTINGS[key] for key in ("voc20", "context59", "coco_stuff", "cityscapes")]
    assert SETTINGS["ade20k"] == SETTINGS["context59"]
    window = resized(arrays["image"])[:, :448, :448]
    found = [setting.of(window) for setting in settings]
    counts = [int(labels.max()) + 1 for labels in found]
    assert counts == list(arrays["superpixel_counts"][:, 0])
    assert (found[-1].numpy() == arrays["superpixels_city"]).all()


def test_a_window_that_is_not_square(toy, arrays, resized, relative_error):
    height, width = arrays["small_size"]
    window = resized(arrays["small_image"])[None, :, :height, :width]
    query = toy.query([str(name) for name in arrays["class_names"]])
    features = toy.patch_features(window)
    found = {
        "clip_image_embedding": features.embeddings[0],
        "tokens": toy.vision(toy.dino_input(window)).patches[0, ::37],
        "local": toy.local_scores(features, window, query)[0, :, ::8, ::8],
        "score": toy.score_features(features, window, query)[0, :, ::8, ::8],
    }
    for name, ours in found.items():
        assert relative_error(ours, arrays[f"small_{name}"]) < TENSOR_TOLERANCE, name
    assert len(features.regions[0][1]) == int(arrays["small_superpixel_count"])


@pytest.mark.parametrize("benchmark", ["voc", "stuff"])
def test_labels(toy, arrays, recorded, photograph, resized, relative_error, benchmark):
    pictures = recorded("peers/freeda_toy_images.npz")
    setting = SETTINGS["coco_stuff" if benchmark == "stuff" else "voc20"]
    parts = (toy.image, toy.text, toy.vision, toy.bank, toy.neighbours)
    segmenter = FreeDASegmenter(*parts, setting)
    threshold = float(pictures["voc_threshold"]) if benchmark == "voc" else None
    query = segmenter.query([str(name) for name in arrays["class_names"]], threshold)
    name = str(pictures[f"{benchmark}_image"])
    found = {benchmark: sliding_window_scores(segmenter, resized(name), query)}
    if benchmark == "voc":  # the same without the background, which is a channel of its own
        assert str(pictures["voc20_image"]) == name
        found["voc20"] = found["voc"][1:]
    for key, scores in found.items():
        expected = pictures[f"{key}_mean_scores"]
        assert relative_error(scores[:, ::12, ::12], expected) < TENSOR_TOLERANCE
        labels = resize_scores(scores, photograph(name).shape[-2:]).argmax(dim=0)
        assert (labels.numpy() == pictures[f"{key}_labels"]).mean() >= 0.999


def seeded(module, prefix=""):
    """The module with weights that are drawn for its names in a whole checkpoint."""
    shapes = {prefix + name: shape for name, shape in state_shapes(module).items()}
    state = seeded_state(0, shapes)
    load_strict(module, {k.removeprefix(prefix): v for k, v in state.items()}, "seeded:0")
    return module


def test_the_widths_of_the_published_models(recorded, resized, relative_error):
    arrays = recorded("peers/freeda_wide.npz")
    vision = timm.create_model(
        "vit_large_patch14_dinov2", depth=4, num_classes=0, dynamic_img_size=True
    )
    load_strict(vision, to_timm(seeded_state(0, official_shapes(vision)), vision), "seeded:0")
    shape = {"layers": 4, "output_dim": 768, "act_layer": QuickGELU}
    image = VisionTransformer(
        image_size=224, patch_size=14, width=1024, heads=16, mlp_ratio=4.0, **shape
    )
    text = TextTransformer(width=768, heads=12, **shape)
    segmenter = FreeDASegmenter(
        ClipImage(seeded(image, "visual."), "wide", "seeded:0"),
        TextEncoder(seeded(text), "wide", "seeded:0"),
        VisionBackbone(vision, "dinov2_vitl14", "seeded:0"),
        None,
        superpixels=SETTINGS["coco_stuff"],
    ).requires_grad_(False)
    window = resized(arrays["image"])[:, :448, :448]
    check_window(with_recorded_bank(segmenter, arrays), window, arrays, relative_error)
