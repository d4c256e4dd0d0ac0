"""What code that was written against the published class is told when its arguments do not fit."""

import numpy as np
import pytest
import torch

from talk2dino import Talk2DINO

NAMES = ["cup", "silver spoon"]
IMAGE = torch.zeros(1, 3, 28, 28)


@pytest.fixture(scope="module")
def model():
    """The toy pair with a small input."""
    toy = Talk2DINO.from_pretrained("toy", device="cpu")
    return Talk2DINO(toy.segmenter.variant(input_size=56), toy.loaded)


@pytest.fixture(scope="module")
def tokens(model):
    return model.build_dataset_class_tokens("simple", NAMES)


@pytest.fixture(scope="module")
def classes(model, tokens):
    return model.build_text_embedding(tokens)


def test_class_names_may_be_an_array(model, tokens):
    assert torch.equal(model.build_dataset_class_tokens("simple", np.array(NAMES)), tokens)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint16])
def test_tokens_may_be_whole_numbers_of_any_size(model, tokens, classes, kind):
    torch.testing.assert_close(model.build_text_embedding(tokens.to(kind)), classes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t, c: m.build_dataset_class_tokens("subset", [1]), "found 1 in it"),
        (lambda m, t, c: m.build_dataset_class_tokens("subset", ["cup", " "]), "an empty class"),
        (lambda m, t, c: m.build_text_embedding(t.numpy()), r"a tensor \(C, T, 77\).* ndarray"),
        (lambda m, t, c: m.build_text_embedding(t[0]), r"\(C, T, 77\).*found \(1, 77\)"),
        (lambda m, t, c: m.build_text_embedding(t.float()), "whole numbers, found .*float32"),
        (lambda m, t, c: m.generate_masks(IMAGE[0], None, c), r"BGR, found \(3, 28, 28\)"),
        (lambda m, t, c: m.generate_masks(IMAGE, None, c[0]), r"text_emb must be .*\(192,\)"),
        (lambda m, t, c: m.generate_masks(IMAGE, None, c, text_is_token=True), "only False"),
    ],
)
def test_what_does_not_fit_is_told(model, tokens, classes, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, tokens, classes)


def test_embeddings_of_half_precision_are_compared_in_single(model, classes):
    masks, _ = model.generate_masks(IMAGE, None, classes.half())
    assert masks.dtype == torch.float32
