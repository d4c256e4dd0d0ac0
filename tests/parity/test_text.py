"""Text features of nine captions, odd ones included, agree with the recorded ones."""

import pytest
import torch

from talk2dino.backbones.text import load_text

from .conftest import TENSOR_TOLERANCE


@pytest.fixture(scope="module")
def encoder():
    return load_text("toy", "seeded:0")


@pytest.fixture
def expected(recorded):
    return recorded("core/text_features_clip_l3.npz")


def test_token_ids_are_equal(encoder, expected):
    tokens = encoder.tokenize([str(c) for c in expected["captions"]])
    assert tokens.tolist() == expected["tokens"].tolist()


def test_caption_vectors_agree_although_batches_are_trimmed(encoder, expected, relative_error):
    vectors = encoder.encode([str(c) for c in expected["captions"]])
    assert relative_error(vectors, expected["ann_feats"]) <= TENSOR_TOLERANCE


def test_dense_outputs_masks_and_end_positions_agree(encoder, expected, relative_error):
    tokens = torch.from_numpy(expected["tokens"]).long()
    with torch.no_grad():
        features = encoder(tokens, dense=True, penultimate=True)
    dense, second_last = features.tokens[:, ::5], features.penultimate[:, ::5]
    assert relative_error(dense, expected["clip_txt_out_tokens"]) <= TENSOR_TOLERANCE
    assert relative_error(second_last, expected["clip_second_last_out"]) <= TENSOR_TOLERANCE
    assert relative_error(features.pooled, expected["ann_feats"]) <= TENSOR_TOLERANCE
    assert features.mask.tolist() == expected["text_input_mask"].tolist()
    assert features.end_positions.tolist() == expected["text_argmax"].tolist()
