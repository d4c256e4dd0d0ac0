"""The projection and its variants: loading, naming, and what each needs."""

import pytest
import torch

from talk2dino.backbones.text import load_text
from talk2dino.methods.talk2dino.projection import (
    MODEL_CLASSES,
    CLIPLastLayer,
    DoubleMLP,
    ProjectionConfig,
    ProjectionLayer,
    VisualProjectionLayer,
    build_projection,
    load_projection,
)

SMALL = {"dino_embed_dim": 8, "clip_embed_dim": 64, "hidden_layer": True, "num_attn_head": 3}


def small(**settings):
    return ProjectionConfig(**{**SMALL, **settings})


def test_a_configuration_comes_from_a_file_a_dict_or_the_dataclass(root):
    from_file = ProjectionLayer.from_config(root / "configs" / "vitb_mlp_infonce.yaml")
    assert sum(p.numel() for p in from_file.parameters()) == 984_576  # the paper's count for B
    from_text = ProjectionLayer.from_config(str(root / "configs" / "vitb_mlp_infonce.yaml"))
    assert from_text.config == from_file.config
    assert ProjectionLayer.from_config(dict(SMALL)).config == small()
    assert ProjectionLayer.from_config(small()).config == small()
    with pytest.raises(ValueError, match="unknown key 'dino_dim'"):
        ProjectionLayer.from_config({"dino_dim": 3})


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_every_class_is_built_by_name(name):
    assert type(build_projection(small(model_class=name))).__name__ == name


def test_no_hidden_layer_and_no_activation_is_one_matrix():
    model = ProjectionLayer(small(hidden_layer=False, act=None))
    text = torch.randn(4, 64)
    torch.testing.assert_close(model.project_clip_txt(text), model.linear_layer(text))


def test_half_precision_text_is_projected_in_float32():
    model = ProjectionLayer(small())
    assert model.project_clip_txt(torch.randn(2, 64).half()).dtype == torch.float32


def test_cosine_false_leaves_the_vectors_as_they_are():
    visual, text = torch.randn(2, 8), torch.randn(2, 64)
    model = ProjectionLayer(small(cosine=False))
    torch.testing.assert_close(model(visual, text), model.project_clip_txt(text) @ visual.T)


def test_scores_are_cosines():
    model = ProjectionLayer(small())
    scores = model(torch.randn(5, 3, 8) * 100, torch.randn(5, 64) * 100)
    assert scores.shape == (5, 5)
    assert float(scores.detach().abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("loader", ["load_projection", "load_state_dict"])
def test_older_files_name_the_hidden_layer_differently(tmp_path, loader):
    model = load_projection(small(), "seeded:0")
    old = {k.replace("hidden_layers.0", "linear_layer2"): v for k, v in model.state_dict().items()}
    if loader == "load_projection":
        torch.save(old, tmp_path / "old.pth")
        loaded = load_projection(small(), tmp_path / "old.pth")
    else:
        loaded = ProjectionLayer.from_config(small())
        loaded.load_state_dict(old)
    text = torch.randn(2, 64)
    assert torch.equal(loaded.project_clip_txt(text), model.project_clip_txt(text))


def test_a_visual_projection_keeps_its_second_layer_name(tmp_path):
    config = small(model_class="VisualProjectionLayer")
    torch.save(build_projection(config).state_dict(), tmp_path / "v.pth")
    assert isinstance(load_projection(config, tmp_path / "v.pth"), VisualProjectionLayer)


def test_weights_of_another_shape_are_refused_with_names(tmp_path):
    torch.save(build_projection(small(hidden_layer=False)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="missing keys: hidden_layers.0.weight"):
        load_projection(small(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="unexpected keys: hidden_layers.0.weight"):
        torch.save(build_projection(small()).state_dict(), tmp_path / "w2.pth")
        load_projection(small(hidden_layer=False), tmp_path / "w2.pth")
    with pytest.raises(ValueError, match=r"linear_layer.weight is \(8, 64\), expected \(9, 64\)"):
        load_projection(small(dino_embed_dim=9), tmp_path / "w2.pth")


def test_weighted_heads_say_what_they_need():
    patches, text, maps = torch.randn(2, 5, 8), torch.randn(2, 64), torch.randn(2, 3, 5)
    static = ProjectionLayer(small(weight_attn_heads="static"))
    assert static(patches, text, self_attn_maps=maps).shape == (2, 2)
    with pytest.raises(ValueError, match="needs self_attn_maps"):
        static(patches, text)
    conditioned = ProjectionLayer(small(weight_attn_heads="conditioned"))
    with pytest.raises(ValueError, match="needs the CLS token"):
        conditioned(patches, text, self_attn_maps=maps)


def test_a_double_mlp_moves_the_image_side_too():
    model = DoubleMLP(small())
    visual = torch.randn(2, 3, 8)
    assert model.project_visual(visual).shape == visual.shape
    assert not torch.allclose(model.project_visual(visual), visual)


def test_a_visual_projection_leaves_the_text_as_it_is():
    model = VisualProjectionLayer(small(hidden_embed_dim=5))
    text = torch.randn(2, 64)
    assert torch.equal(model.project_clip_txt(text), text)
    assert model.linear_layer.out_features == 5
    assert model(torch.randn(2, 8), text).shape == (2, 2)


def test_the_last_clip_layer_starts_as_clips_own():
    encoder = load_text("toy")
    config = ProjectionConfig(dino_embed_dim=8, clip_embed_dim=512, model_class="CLIPLastLayer")
    model = CLIPLastLayer(config)
    model.copy_from(encoder.model)
    tokens = encoder.tokenize(["a cat", "a dog on a long sandy beach"])
    features = encoder(tokens, penultimate=True)
    ours = model.project_clip_txt(features.penultimate, features.end_positions)
    expected = model.linear_layer(features.pooled)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.project_clip_txt(features.pooled), expected)
    with pytest.raises(ValueError, match="needs text_argmax"):
        model.project_clip_txt(features.penultimate)


@pytest.mark.parametrize(
    ("keep_cls", "keep_end_seq", "counted"),
    [(False, False, [1, 2]), (True, False, [0, 1, 2]), (False, True, [1, 2, 3])],
)
@pytest.mark.parametrize("given", ["mask", "end position"])
def test_first_and_end_positions_count_only_if_kept(keep_cls, keep_end_seq, counted, given):
    config = small(alignment_strategy="sum", keep_cls=keep_cls, keep_end_seq=keep_end_seq)
    model = ProjectionLayer(config)
    visual, tokens = torch.randn(2, 8), torch.randn(2, 6, 64)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    end = torch.tensor([3, 3]) if given == "end position" else None
    scores = model(visual, tokens, text_input_mask=mask, text_argmax=end)
    image, text = model.embed(visual, tokens)
    torch.testing.assert_close(scores, image @ text[:, counted].sum(dim=1).T)
