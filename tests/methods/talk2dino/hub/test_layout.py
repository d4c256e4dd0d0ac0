"""Which model a file holds, from its tensors alone."""

from pathlib import Path

import pytest
import timm
import torch

from talk2dino.backbones.checkpoints import looks_like
from talk2dino.backbones.text import create_text_tower
from talk2dino.backbones.vision import SHORT_NAMES, official_shapes
from talk2dino.methods.talk2dino.hub import layout
from talk2dino.methods.talk2dino.hub.find import PUBLISHED, _find_file, default_threshold
from talk2dino.methods.talk2dino.hub.layout import ModelParts, identify, read_parts
from talk2dino.methods.talk2dino.projection import build_projection, identify_projection

from .conftest import prefixed, projection_state


@pytest.fixture
def split(monkeypatch):
    """`read_parts` of what is in memory."""

    def read(state, path="f"):
        monkeypatch.setattr(layout, "read_state_dict", lambda _: state)
        return read_parts(path)

    return read


def vision_shapes(name):
    """A backbone's tensors without their memory: DINOv2's in hub naming, others in timm's."""
    with torch.device("meta"):
        settings = {"img_size": 518} if "dinov2" in name else {}
        timm_name = SHORT_NAMES.get(name, name)
        model = timm.create_model(timm_name, num_classes=0, pretrained=False, **settings)
        shapes = official_shapes(model) if "dinov2" in name else None
        return (
            {key: torch.empty(shape) for key, shape in shapes.items()}
            if shapes
            else dict(model.state_dict())
        )


@pytest.mark.parametrize("short", PUBLISHED)
def test_the_published_models_are_known_by_their_tensors(short, split):
    model = PUBLISHED[short]
    published = model.config("x")
    vision = vision_shapes(published.vision_model)
    with torch.device("meta"):
        text = create_text_tower("ViT-B/16").state_dict()
        projection = build_projection(published.projection).state_dict()
    state = prefixed("model.", vision) | prefixed("clip_model.", text)
    split(state | prefixed("proj.", projection))
    found = _find_file(Path("f"), None)
    config = found.config
    assert (config.vision_model, config.text_model) == (published.vision_model, "ViT-B/16")
    assert config.projection == published.projection
    assert found.background_threshold == default_threshold(config.projection.dino_embed_dim)


@pytest.mark.parametrize(("patches", "words"), [((7, 3, 32, 32), (3, 512)), ((3,), (3,))])
def test_other_models_are_told_by_their_shapes(patches, words):
    vision = {"patch_embed.proj.weight": torch.zeros(patches)}
    parts = ModelParts(vision, {"token_embedding.weight": torch.zeros(words)}, {})
    with pytest.raises(ValueError, match=r"f: no published backbone has patches \(\d.* 0 blocks"):
        identify(parts, "f")


def test_layer_scales_that_were_renamed_get_their_name_back(split):
    state = {
        "model.patch_embed.proj.weight": torch.zeros(1, 3, 14, 14),
        "model.blocks.0.ls1.weight": torch.zeros(1),
        "model.blocks.0.weight_2": torch.zeros(1),
        "model.blocks.0.norm1.weight": torch.zeros(1),
        "clip_model.token_embedding.weight": torch.zeros(1, 1),
        "proj.linear_layer.weight": torch.zeros(1, 1),
    }
    names = set(split(state).vision)
    assert {"blocks.0.ls1.gamma", "blocks.0.gamma_2", "blocks.0.norm1.weight"} < names


def test_older_and_deeper_projections_are_recognised():
    old = projection_state(192, hidden="linear_layer2")
    assert identify_projection(old, "f").hidden_layer == 1
    flat = {name: value for name, value in old.items() if "layer2" not in name}
    assert identify_projection(flat, "f").hidden_layer == 0
    with pytest.raises(ValueError, match=r"another projection than ProjectionLayer"):
        identify_projection({"visual_linear.weight": torch.zeros(2, 2)} | flat, "f")
    many = {f"layer{number}": torch.zeros(1) for number in range(8)}
    with pytest.raises(ValueError, match=r"\(layer0, .*layer5, .*8 in all\)\)"):
        identify_projection(many, "f")


def test_a_file_of_another_model_given_as_a_projection_is_recognised():
    state = {"blocks.0.attn.qkv.weight": torch.zeros(1), "patch_embed.proj.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="f is no Talk2DINO.*it looks like a vision transformer"):
        identify_projection(state, "f")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["text_model.encoder.layers.0.x", "vision_model.encoder.layers.0.x"], "CLIP model of tr"),
        (["visual.conv1.weight", "token_embedding.weight"], "CLIP model of OpenAI"),
        (["token_embedding.weight"], "text tower"),
        (["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"], "DINO or timm"),
        (["encoder.layer.0.x", "embeddings.patch_embeddings.projection.weight"], "of transformers"),
        (["bert.encoder.layer.0.x", "bert.embeddings.word_embeddings.weight"], "BERT"),
        (["linear_layer.weight"], "projection alone"),
        (["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"], "lang"),
        (["layer1.0.conv1.weight"], "ResNet"),
        (["base.lora_A.weight"], "LoRA"),
        (["down_blocks.0.x"], "diffusion"),
    ],
)
def test_the_file_of_another_model_is_recognised(names, kind):
    assert kind in looks_like(names)
    if "linear_layer.weight" not in names:
        state = {name: torch.zeros(1) for name in names}
        with pytest.raises(ValueError, match=f"no Talk2DINO model.*it looks like.*{kind}"):
            identify_projection(state, "other.safetensors")


def test_a_model_that_lacks_a_part_or_has_one_too_many_is_refused(split):
    projection = prefixed("proj.", projection_state(192))
    clip = {"clip_model.token_embedding.weight": torch.zeros(1, 1)}
    with pytest.raises(ValueError, match=r"no model\.patch_embed"):
        split(projection | clip)
    with pytest.raises(ValueError, match="unexpected decoder.weight"):
        split(projection | {"decoder.weight": torch.zeros(1)})
    assert looks_like(["some.weight"]) is None
