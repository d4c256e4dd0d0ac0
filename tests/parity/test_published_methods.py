"""The published method names give the published numbers, from BGR windows as they were recorded."""

import pytest
import torch

from talk2dino import Talk2DINO

from .conftest import MASK_TOLERANCE


@pytest.fixture(scope="module")
def recording(recorded):
    return recorded("seg/generate_masks.npz")


@pytest.fixture(scope="module")
def model():
    return Talk2DINO.from_pretrained("toy", device="cpu")


def largest_difference(ours, recorded):
    return float((ours - torch.as_tensor(recorded)).abs().max())


@pytest.mark.parametrize(("clean", "refine"), [(0, 1), (1, 0)])
def test_masks_and_cosines_of_a_bgr_window(model, recording, clean, refine):
    names = [str(name) for name in recording["classes"]]
    tokens = model.build_dataset_class_tokens("sub_imagenet_template", names)
    embeddings = model.build_text_embedding(tokens)
    assert largest_difference(embeddings, recording["text_embedding"]) <= MASK_TOLERANCE
    segmenter = model.segmenter.variant(clean_background=bool(clean))
    cleaned = Talk2DINO(segmenter, model.loaded)
    window = torch.from_numpy(recording["window_bgr"]).float()
    masks, cosines = cleaned.generate_masks(
        window, None, embeddings, names, apply_pamr=bool(refine)
    )
    assert largest_difference(cosines, recording["simmap"]) <= MASK_TOLERANCE
    expected = recording[f"masks_bgclean{clean}_pamr{refine}"]
    step = 448 // expected.shape[-1]
    assert largest_difference(masks[..., ::step, ::step], expected) <= MASK_TOLERANCE
