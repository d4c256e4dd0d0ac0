import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from talk2dino.backbones.clip_image import (
    create_image_tower,
    crop_margins,
    load_clip,
    margins,
    pad_to_multiple,
    queries_keys_values,
)
from talk2dino.backbones.text import CLIP_MODELS, TOYS, create_text_tower
from talk2dino.backbones.vision import exact_positions, offset_positions


@pytest.fixture(scope="module")
def toy():
    return load_clip("toy", "seeded:0")


def whole_state(towers):
    image, text = towers
    state = {f"visual.{name}": value for name, value in image.model.state_dict().items()}
    return state | dict(text.model.state_dict())


def test_all_blocks_give_the_image_embedding_of_open_clip(toy):
    image = toy[0]
    pixels = torch.rand(2, 3, 224, 224)
    tokens, grid = image.tokens(pixels, offset_positions)
    for block in image.blocks:
        tokens = block(tokens)
    assert grid == (14, 14)
    torch.testing.assert_close(image.project(tokens[:, 0]), image.model(pixels))


def test_queries_keys_and_values_are_what_the_attention_uses(toy):
    block = toy[0].blocks[0]
    tokens = torch.randn(1, 5, 192)
    query, key, value = (
        part.unflatten(-1, (3, 64)).transpose(1, 2) for part in queries_keys_values(block, tokens)
    )
    mixed = nn.functional.scaled_dot_product_attention(query, key, value)
    ours = block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, block.attention(block.ln_1(tokens)))


def test_positions_are_resized_for_another_grid_of_as_many_patches(toy):
    seen = []

    def rule(table, grid):
        seen.append((tuple(table.shape), grid))
        return offset_positions(table, grid)

    toy[0].tokens(torch.zeros(1, 3, 224, 224), rule)
    assert not seen
    tokens, grid = toy[0].tokens(torch.zeros(1, 3, 112, 448), rule)
    assert seen == [((1, 192, 14, 14), (7, 28))]
    assert tokens.shape == (1, 197, 192) and grid == (7, 28)


@pytest.mark.parametrize("rule", [offset_positions, exact_positions])
@pytest.mark.parametrize("grid", [(1, 1), (7, 28), (21, 31), (1, 128)])
def test_rules_of_positions_give_the_grid(rule, grid):
    assert rule(torch.rand(1, 4, 14, 14), grid).shape == (1, 4, *grid)


def test_the_two_rules_of_positions_differ_a_little():
    table = torch.rand(1, 4, 14, 14)
    difference = offset_positions(table, (10, 15)) - exact_positions(table, (10, 15))
    assert 1e-4 < difference.abs().mean() < 0.1


def test_mean_and_deviation_can_be_rounded(toy):
    grey = torch.full((1, 3, 1, 1), 127.0)
    rounded, exact = toy[0].normalise(grey, digits=3), toy[0].normalise(grey)
    assert rounded[0, 0].item() == pytest.approx((127 - 122.771) / 68.501)
    assert exact[0, 0].item() == pytest.approx((127 / 255 - 0.48145466) / 0.26862954, rel=1e-4)
    assert not torch.equal(rounded, exact)


def test_padding_is_divided_and_cut_off_again():
    images = torch.rand(1, 3, 150, 235)
    padded = pad_to_multiple(images, 16)
    assert padded.shape == (1, 3, 160, 240)
    assert margins(235, 16) == (2, 3) and margins(224, 16) == (0, 0)
    assert torch.equal(crop_margins(padded, (150, 235), 16), images)
    assert padded[..., :5, :].abs().sum() == 0


def test_a_window_smaller_than_a_patch_is_refused(toy):
    with pytest.raises(ValueError, match="a window of 40 x 15 px is smaller than the 16-pixel"):
        toy[0].tokens(torch.zeros(1, 3, 15, 40), offset_positions)


@pytest.mark.parametrize("name", [*CLIP_MODELS, "ViT-H/14-gelu", *TOYS])
def test_every_known_tower_can_be_built(name):
    with torch.device("meta"):
        tower = create_image_tower(name)
    activation = tower.transformer.resblocks[0].mlp.gelu
    assert isinstance(activation, nn.GELU if name.endswith("-gelu") else QuickGELU)


def test_the_largest_tower_has_heads_of_80():
    with torch.device("meta"):
        tower = create_image_tower("ViT-H/14-gelu")
    assert tower.transformer.resblocks[0].attn.num_heads == 16
    assert (tower.output_dim, len(tower.transformer.resblocks)) == (1024, 32)


def test_a_toy_with_the_exact_gelu_has_it_in_its_text_too():
    with torch.device("meta"):
        activations = {type(m) for m in create_text_tower("toy-gelu").modules()}
    assert nn.GELU in activations and QuickGELU not in activations


@pytest.mark.parametrize("layout", ["openai", "open_clip"])
def test_files_of_whole_models_load(tmp_path, toy, layout):
    state = whole_state(toy)
    if layout == "openai":
        state |= {key: torch.tensor(77) for key in ("input_resolution", "context_length")}
        state |= {"vocab_size": torch.tensor(49408), "logit_scale": torch.tensor(4.6)}
    else:
        state = {key if key.startswith("visual.") else f"text.{key}": state[key] for key in state}
    torch.save(state, tmp_path / "clip.pt")
    image, text = load_clip("toy", str(tmp_path / "clip.pt"))
    assert torch.equal(image.model.proj, toy[0].model.proj)
    assert torch.equal(text.encode(["a cat"]), toy[1].encode(["a cat"]))


def test_a_file_of_the_text_tower_alone_is_refused(tmp_path, toy):
    torch.save(toy[1].model.state_dict(), tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"text.pt does not fit this VisionTransformer: missing"):
        load_clip("toy", str(tmp_path / "text.pt"))


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("ViT-B/61", None, ValueError, "unknown CLIP model .*Did you mean 'ViT-B/16'"),
        ("toy", "pretrained", ValueError, "toy CLIP model has no pretrained weights"),
        ("toy", "absent.pt", FileNotFoundError, "no CLIP weights at 'absent.pt'"),
    ],
)
def test_what_cannot_be_loaded_is_named(name, weights, error, message):
    with pytest.raises(error, match=message):
        load_clip(name, weights)
