"""Names and shapes of every tensor are those of the published checkpoints."""

import math

import pytest
import torch

from talk2dino.backbones.checkpoints import state_shapes
from talk2dino.methods.ovsegmentor.config import get_preset
from talk2dino.methods.ovsegmentor.model import OVSegmentor


def linear(name, out, width):
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def mlp(name, width, hidden, out):
    return linear(f"{name}.fc1", hidden, width) | linear(f"{name}.fc2", out, hidden)


def attention_block(name, width):
    return (
        norm(f"{name}.norm1", width)
        | norm(f"{name}.norm2", width)
        | linear(f"{name}.attn.qkv", 3 * width, width)
        | linear(f"{name}.attn.proj", width, width)
        | mlp(f"{name}.mlp", width, 4 * width, width)
    )


def four_maps(name, width):
    shapes = {}
    for part in ("q_proj", "k_proj", "v_proj", "proj"):
        shapes |= linear(f"{name}.{part}", width, width)
    return shapes


def cross_block(name, width):
    return (
        four_maps(f"{name}.attn", width)
        | norm(f"{name}.norm2", width)
        | norm(f"{name}.norm_post", width)
        | mlp(f"{name}.mlp", width, 4 * width, width)
    )


def image_encoder(name, width):
    grouping = f"{name}.layers.0.downsample"
    shapes = {
        f"{name}.pos_embed": (196, width),
        f"{name}.patch_embed.proj.weight": (width, 3, 16, 16),
        f"{name}.patch_embed.proj.bias": (width,),
        f"{name}.layers.0.group_token": (1, 64, width),
    }
    for stage in (0, 1):
        for block in range(6):
            shapes |= attention_block(f"{name}.layers.{stage}.blocks.{block}", width)
    for part in ("norm_tokens", "norm_post_tokens", "norm_x", "norm_new_x"):
        shapes |= norm(f"{grouping}.{part}", width)
    shapes |= mlp(f"{grouping}.mlp_inter", 64, width // 2, 8)
    shapes |= cross_block(f"{grouping}.pre_assign_attn", width)
    shapes |= four_maps(f"{grouping}.assign", width)
    shapes |= mlp(f"{grouping}.mlp_channels", width, 4 * width, width)
    return shapes | norm(f"{name}.norm", width)


def text_encoder(vocabulary, positions, segments):
    name = "text_encoder.transformer"
    shapes = {
        f"{name}.embeddings.word_embeddings.weight": (vocabulary, 768),
        f"{name}.embeddings.position_embeddings.weight": (positions, 768),
        f"{name}.embeddings.token_type_embeddings.weight": (segments, 768),
    } | norm(f"{name}.embeddings.LayerNorm", 768)
    for index in range(12):
        layer = f"{name}.encoder.layer.{index}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{part}", 768, 768)
        shapes |= linear(f"{layer}.attention.output.dense", 768, 768)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", 768)
        shapes |= linear(f"{layer}.intermediate.dense", 3072, 768)
        shapes |= linear(f"{layer}.output.dense", 768, 3072)
        shapes |= norm(f"{layer}.output.LayerNorm", 768)
    return shapes | linear(f"{name}.pooler.dense", 768, 768)


def projector(name, width):
    shapes = {
        f"{name}.linear_hidden.0.weight": (4096, width, 1),
        f"{name}.linear_hidden.0.bias": (4096,),
        f"{name}.linear_hidden.1.num_batches_tracked": (),
        f"{name}.linear_out.weight": (256, 4096, 1),
        f"{name}.linear_out.bias": (256,),
    }
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.linear_hidden.1.{part}"] = (4096,)
    return shapes


def decoder(width):
    name = "multimodal_groupingblock.blocks.0"
    shapes = attention_block(f"{name}.post_attn", width) | four_maps(f"{name}.assign", width)
    for part in ("norm_tokens", "norm_x", "norm_new_x"):
        shapes |= norm(f"{name}.{part}", width)
    shapes |= cross_block(f"{name}.pre_assign_attn", width)
    return shapes | projector("bridge_projector", width)


def expected(name, stage):
    width = {"ovsegmentor_vitb": 768, "ovsegmentor_vits": 384}[name]
    shapes = {"logit_scale": ()} | image_encoder("img_encoder", width)
    if width == 768:
        shapes |= text_encoder(30522, 512, 2)
    else:
        shapes |= text_encoder(50265, 514, 1)
    shapes |= projector("img_projector", width) | projector("text_projector", 768)
    if stage != "evaluation":
        shapes |= decoder(width)
        if width == 384:
            shapes |= linear("align_proj_text", 384, 768)
    if stage == "stage2":
        shapes |= {"logit_scale_mask": ()} | image_encoder("img_encoder_momentum", width)
    return shapes


@pytest.mark.parametrize(
    ("name", "stage", "count"),
    [
        ("ovsegmentor_vitb", "evaluation", 408),
        ("ovsegmentor_vitb", "stage1", 459),
        ("ovsegmentor_vitb", "stage2", 650),
        ("ovsegmentor_vits", "evaluation", 408),
        ("ovsegmentor_vits", "stage1", 461),
        ("ovsegmentor_vits", "stage2", 652),
    ],
)
def test_names_and_shapes_are_the_published_ones(name, stage, count):
    with torch.device("meta"):
        shapes = state_shapes(OVSegmentor(get_preset(name), stage))
    assert shapes == expected(name, stage)
    assert len(shapes) == count


def test_the_sizes_of_the_parts_are_the_published_ones():
    with torch.device("meta"):
        shapes = state_shapes(OVSegmentor(get_preset("ovsegmentor_vitb"), "stage2"))
    sizes = {}
    for name, shape in shapes.items():
        part = name.split(".")[0]
        count, elements = sizes.get(part, (0, 0))
        sizes[part] = (count + 1, elements + math.prod(shape))
    assert sizes == {
        "logit_scale": (1, 1),
        "logit_scale_mask": (1, 1),
        "img_encoder": (190, 100_053_128),
        "img_encoder_momentum": (190, 100_053_128),
        "text_encoder": (199, 109_482_240),
        "img_projector": (9, 4_215_041),
        "text_projector": (9, 4_215_041),
        "bridge_projector": (9, 4_215_041),
        "multimodal_groupingblock": (42, 16_542_720),
    }
