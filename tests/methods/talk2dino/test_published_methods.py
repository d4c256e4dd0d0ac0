"""What code that was written against the published class is told when its arguments do not fit."""

import numpy as np
import pytest
import torch

from talk2dino import Talk2DINO
from talk2dino.methods.talk2dino.hub.published import toy_config
from talk2dino.methods.talk2dino.segmenter import build_segmenter

NAMES = ["cup", "silver spoon"]


@pytest.fixture(scope="module")
def model():
    """The toy pair with a small input."""
    toy = Talk2DINO.from_pretrained("toy", device="cpu")
    small = Talk2DINO(toy.loaded)
    small.segmenter = toy.segmenter.variant(input_size=56)
    return small


@pytest.fixture(scope="module")
def tokens(model):
    return model.build_dataset_class_tokens("simple", NAMES)


@pytest.fixture(scope="module")
def classes(model, tokens):
    return model.build_text_embedding(tokens)


IMAGE = torch.zeros(1, 3, 28, 28)


def test_class_names_may_be_an_array(model, tokens):
    assert torch.equal(model.build_dataset_class_tokens("simple", np.array(NAMES)), tokens)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([1], r"class names are a list, as \['cat', 'dog'\], found 1 in it"),
        (np.array([1.5]), "found .*1.5.* in it"),
        (7, "found 7"),
        (None, "found None"),
        (np.array([], dtype=str), r"found array\(\[\]"),
        (["cup", " "], "an empty class name"),
    ],
)
def test_what_is_no_list_of_class_names_is_shown(model, names, message):
    with pytest.raises(ValueError, match=message):
        model.build_dataset_class_tokens("subset", names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.numpy(), r"tokens must be a PyTorch tensor, \(C, T, 77\).*found ndarray"),
        (lambda t: t[0], r"tokens must be \(C, T, 77\).*found \(1, 77\)"),
        (lambda t: t[:0], r"found \(0, 1, 77\)"),
        (lambda t: t[:, :0], r"found \(2, 0, 77\)"),
        (lambda t: torch.cat([t, t], dim=2), r"found \(2, 1, 154\)"),
        (
            lambda t: t.float(),
            "whole numbers, as build_dataset_.* makes them, found .* float32",
        ),
        (lambda t: t.bool(), "whole numbers, .* bool"),
        (lambda t: t + 1, "CLIP's ids from 0 to 49407, found 49408"),
        (lambda t: t - 1, "CLIP's ids from 0 to 49407, found -1"),
    ],
)
def test_what_are_no_tokens_of_clip_is_told(model, tokens, change, message):
    with pytest.raises(ValueError, match=message):
        model.build_text_embedding(change(tokens))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint16])
def test_tokens_may_be_whole_numbers_of_any_size(model, tokens, classes, kind):
    torch.testing.assert_close(model.build_text_embedding(tokens.to(kind)), classes)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.numpy(), r"image must be a PyTorch tensor, \(B, 3, H, W\) BGR, found ndarray"),
        (IMAGE[:0], r"image must be \(B, 3, H, W\) BGR, found \(0, 3, 28, 28\)"),
        (IMAGE[:, :, :0], r"found \(1, 3, 0, 28\)"),
    ],
)
def test_what_is_no_batch_of_windows_is_told(model, classes, image, message):
    with pytest.raises(ValueError, match=message):
        model.generate_masks(image, None, classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.numpy(), r"text_emb must be a PyTorch tensor, \(C, D\).*found ndarray"),
        (lambda c: c.tolist(), "found list"),
        (lambda c: c[:0], r"at least one class, .*found \(0, 192\)"),
        (lambda c: c.long(), r"fractions .*found \(2, 192\) int64"),
        (lambda c: torch.tensor(1.0), r"text_emb must be \(C, D\), .*found \(\)"),
    ],
)
def test_what_are_no_embeddings_of_classes_is_told(model, classes, change, message):
    with pytest.raises(ValueError, match=message):
        model.generate_masks(IMAGE, None, change(classes))


def test_embeddings_of_half_precision_are_compared_in_single(model, classes):
    masks, _ = model.generate_masks(IMAGE, None, classes.half())
    assert masks.dtype == torch.float32


def test_a_text_encoder_that_is_no_clip_has_no_tokens(model, tokens):
    class Bert(torch.nn.Module):
        name, embed_dim = "bert", 512

    segmenter = build_segmenter(toy_config())
    other = Talk2DINO(model.loaded)
    other.segmenter = type(segmenter)(
        segmenter.vision, Bert(), segmenter.projection, segmenter.config
    )
    with pytest.raises(ValueError, match="bert is no CLIP text encoder"):
        other.build_text_embedding(tokens)
