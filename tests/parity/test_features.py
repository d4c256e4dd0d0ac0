"""Image features of three photographs agree with the recorded ones."""

import pytest
import torch

from talk2dino.backbones.checkpoints import load_strict
from talk2dino.backbones.seeded import seeded_state, seeded_tensor
from talk2dino.backbones.vision import (
    VisionBackbone,
    average_attention,
    create_toy,
    head_embeddings,
    load_vision,
    official_shapes,
    to_timm,
)
from talk2dino.pictures.images import read_rgb

from .conftest import TENSOR_TOLERANCE

RECORDINGS = {
    "dinov2_toy_reg4": ("toy", 7),
    "dinov2_toy_reg0": ("toy without registers", 7),
    "dinov2_vitb_reg4": ("dinov2_vitb14_reg", 37),
    "dinov3_vits16": ("vit_small_patch16_dinov3", 7),
}


def load_seeded(name):
    if name != "toy without registers":
        return load_vision(name, "seeded:0")
    model = create_toy(num_registers=0)
    load_strict(model, to_timm(seeded_state(0, official_shapes(model)), model), "seeded:0")
    return VisionBackbone(model, name, "seeded:0")


def test_seeded_weights_follow_the_recorded_rule(recorded):
    check = recorded("core/seeded_check.npz")
    tensors = {
        "cls_token": ("cls_token", (1, 1, 192)),
        "norm_weight": ("blocks.0.norm1.weight", (192,)),
        "qkv": ("blocks.0.attn.qkv.weight", (576, 192)),
        "gamma": ("blocks.0.ls1.gamma", (192,)),
    }
    for key, (name, shape) in tensors.items():
        values = seeded_tensor(0, name, shape).flatten()[:8]
        torch.testing.assert_close(values, torch.from_numpy(check[key]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_every_stored_feature_agrees(recording, recorded, relative_error, photos):
    name, step = RECORDINGS[recording]
    expected = recorded(f"core/features_{recording}.npz")
    backbone = load_seeded(name)
    transform = backbone.image_transform(448, 448)
    pixels = torch.stack([transform(read_rgb(photos / f)) for f in expected["image_names"]])
    images = backbone.normalise(pixels)
    with torch.inference_mode():
        features = backbone(images)
    logits, patches = features.attention_logits, features.patches
    ours = {
        "batch_mean": images.mean(dim=(2, 3)),
        "dino_features": features.cls,
        "avg_self_attn_out": average_attention(logits, patches),
        "disentangled_self_attn": head_embeddings(logits, patches),
        "second_last_out": features.penultimate_cls,
        "patch_tokens": patches[:, ::step],
        "self_attn_maps": logits.softmax(dim=-1)[:, :, ::step],
    }
    errors = {key: relative_error(value, expected[key]) for key, value in ours.items()}
    assert max(errors.values()) <= TENSOR_TOLERANCE, errors
