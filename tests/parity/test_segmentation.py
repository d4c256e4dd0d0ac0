"""PAMR, class embeddings and soft masks against recordings of the published code.

The carried recordings are thinned: fewer classes for PAMR, every 16th pixel of the masks.
"""

import dataclasses

import pytest
import torch

from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.segmenter import build_segmenter, patch_cosines
from talk2dino.refine.pamr import pamr
from talk2dino.segmenter import ClassQuery

from .conftest import MASK_TOLERANCE

TOY_CONFIG = SegmenterConfig(
    projection=ProjectionConfig(hidden_layer=True, dino_embed_dim=192, num_attn_head=3),
    projection_weights="seeded:0",
    vision_model="toy",
    text_model="toy",
)


def largest_difference(ours, recorded):
    return float((ours - torch.as_tensor(recorded)).abs().max())


@pytest.fixture(scope="module")
def masks(recorded):
    return recorded("seg/generate_masks.npz")


@pytest.fixture(scope="module")
def segmenter():
    return build_segmenter(TOY_CONFIG)


@pytest.fixture(scope="module")
def window(masks):
    """(1, 3, 448, 448) RGB; the recording is BGR."""
    return torch.from_numpy(masks["window_bgr"][:, ::-1].copy()).float()


@pytest.fixture(scope="module")
def classes(segmenter, masks):
    return segmenter.embed_classes([str(name) for name in masks["classes"]])


@pytest.mark.parametrize(
    ("key", "settings"),
    [("refined", {}), ("refined_1iter_d1", {"iterations": 1, "dilations": [1]})],
)
def test_pamr(recorded, key, settings):
    recording = recorded("seg/pamr.npz")
    image, mask = torch.from_numpy(recording["image"]), torch.from_numpy(recording["mask"])
    assert largest_difference(pamr(image, mask, **settings), recording[key]) <= MASK_TOLERANCE


def test_class_embeddings(classes, masks):
    assert largest_difference(classes, masks["text_embedding"]) <= MASK_TOLERANCE


def test_cosine_map(segmenter, window, classes, masks):
    with torch.no_grad():
        cosines = patch_cosines(segmenter.patch_features(window).patches, classes)
    assert largest_difference(cosines.unflatten(-1, (32, 32)), masks["simmap"]) <= MASK_TOLERANCE


@pytest.mark.parametrize("clean", [0, 1])
@pytest.mark.parametrize("refine", [0, 1])
def test_soft_masks(segmenter, window, classes, masks, clean, refine):
    segmenter.config = dataclasses.replace(
        TOY_CONFIG, pamr=bool(refine), clean_background=bool(clean)
    )
    expected = masks[f"masks_bgclean{clean}_pamr{refine}"]
    step = 448 // expected.shape[-1]
    scores = segmenter.window_scores(window, ClassQuery.of_rows(classes))[..., ::step, ::step]
    assert largest_difference(scores, expected) <= MASK_TOLERANCE
