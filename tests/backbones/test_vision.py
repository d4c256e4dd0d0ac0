"""Backbones load from every kind of weights and say what is wrong with the others."""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import to_pil_image

from talk2dino.backbones.checkpoints import load_strict
from talk2dino.backbones.seeded import seeded_state
from talk2dino.backbones.vision import (
    RESIZES,
    SHORT_NAMES,
    ImageTransform,
    VisionBackbone,
    check_vision,
    cls_attention_logits,
    create_toy,
    load_vision,
    normalisation,
    official_shapes,
    recorded_normalisation,
    to_timm,
    vision_from_state,
)
from talk2dino.features.extract import image_features
from talk2dino.features.keys import IMAGE_KEYS
from tests.literal import extraction as literal_extraction


@pytest.fixture(scope="module")
def toy():
    return load_vision("toy")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 56, 42, generator=torch.Generator().manual_seed(0)) * 255


def test_shapes_and_facts_of_the_toy_backbone(toy, images):
    features = toy(toy.normalise(images))
    assert features.cls.shape == features.penultimate_cls.shape == (2, 192)
    assert features.patches.shape == (2, 4 * 3, 192)
    assert features.attention_logits.shape == (2, 3, 4 * 3)
    assert (toy.embed_dim, toy.num_heads, toy.patch_size) == (192, 3, 14)
    assert toy.weights == "seeded:0"
    assert not toy.training
    assert not any(p.requires_grad for p in toy.parameters())


class ShapesSeen(TorchDispatchMode):
    """Notes the shape of every tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.shapes.add(tuple(value.shape))
        return result

    def square_in(self, *sizes):
        """Shapes in which two sides are among `sizes`."""
        return [shape for shape in self.shapes if sum(side in sizes for side in shape) > 1]


def test_no_matrix_of_all_patches_by_all_patches_is_made(toy):
    pixels = torch.randint(0, 256, (2, 3, 140, 154), dtype=torch.uint8)
    num_patches, num_tokens = 110, 115
    with ShapesSeen() as seen:
        image_features(toy, pixels, IMAGE_KEYS)
    assert (2, num_tokens, 192) in seen.shapes
    assert seen.square_in(num_patches, num_tokens) == []
    with ShapesSeen() as seen, torch.no_grad():
        literal_extraction.backbone(toy.normalise(pixels), state_of(toy))
    assert seen.square_in(num_patches, num_tokens)


def test_features_are_those_of_the_literal_backbone(toy, images):
    with torch.no_grad():
        tokens, logits = literal_extraction.backbone(toy.normalise(images), state_of(toy))
    found = toy(toy.normalise(images))
    torch.testing.assert_close(found.patches, tokens[:, 5:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.attention_logits, logits[:, :, 0, 5:], rtol=1e-4, atol=1e-5)


def state_of(backbone):
    return seeded_state(0, official_shapes(backbone.model))


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(toy, images):
    together = toy(toy.normalise(images)).patches[1]
    alone = toy(toy.normalise(images[1:])).patches[0]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_bytes_and_floats_are_normalised_alike(toy):
    pixels = torch.full((1, 3, 14, 14), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    for images in (pixels, pixels.float()):
        torch.testing.assert_close(toy.normalise(images)[0, :, 0, 0], expected)


CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
GOOGLE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("toy", IMAGENET),
        ("dinov2_vitb14_reg", IMAGENET),
        ("dinov3_vitl16", IMAGENET),
        ("vit_base_patch16_dinov3.lvd1689m", IMAGENET),
        ("vit_base_patch16_224.dino", IMAGENET),
        ("vit_base_patch16_clip_224.openai", CLIP),
        ("vit_large_patch14_clip_336.openai", CLIP),
        ("vit_base_patch16_224.augreg_in21k", GOOGLE),
        ("vit_base_patch16_224", GOOGLE),
    ],
)
def test_every_backbone_has_the_mean_and_std_it_was_trained_with(name, expected):
    assert normalisation(name) == expected
    mean, std = map(list, expected)
    recorded = {} if expected == IMAGENET else {"mean": mean, "std": std}
    assert recorded_normalisation(name) == recorded


def test_a_backbone_normalises_with_its_own_mean_and_std():
    backbone = load_vision("vit_tiny_patch16_224", "seeded:0")
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    values = backbone.normalise(pixels)
    assert values.min() == -1
    assert values.max() == 1


def test_the_transform_keeps_red_red_and_crops_the_centre():
    image = Image.new("RGB", (60, 30), (255, 0, 0))
    image.paste((0, 255, 0), (0, 0, 15, 30))  # outside the central square
    pixels = ImageTransform(28, 28)(image)
    assert pixels.shape == (3, 28, 28)
    assert pixels.dtype == torch.uint8
    assert pixels[:, 14, 14].tolist() == [255, 0, 0]
    assert int(pixels[1].max()) < 10  # bicubic reaches one pixel over the edge


@pytest.mark.parametrize("size", [(61, 37), (56, 56), (1000, 30), (30, 500)])
def test_fast_resizing_differs_by_two_levels_in_a_few_values(size):
    noise = torch.randint(0, 256, (3, 1 + size[1] // 3, 1 + size[0] // 3), dtype=torch.uint8)
    image = to_pil_image(noise).resize(size)
    exact, fast = (ImageTransform(56, 42, name)(image).int() for name in RESIZES)
    assert exact.shape == fast.shape == (3, 42, 42)
    difference = (exact - fast).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.03


def test_sizes_that_do_not_divide_into_patches_are_refused(toy):
    with pytest.raises(ValueError, match="450 px does not divide into the 14-pixel patches .* 448"):
        toy.image_transform(450, 450)
    with pytest.raises(ValueError, match="Use 14"):
        toy(torch.zeros(1, 3, 7, 14))


@pytest.mark.parametrize("qkv", ["with bias", "without bias", "split", "separate bias"])
def test_the_cls_row_equals_the_row_of_the_full_attention(qkv):
    from timm.layers import LayerNorm
    from timm.models.eva import EvaAttention
    from timm.models.vision_transformer import Attention

    torch.manual_seed(0)
    if qkv in ("with bias", "without bias"):
        attn = Attention(
            128, num_heads=2, qkv_bias=qkv == "with bias", qk_norm=True, norm_layer=LayerNorm
        )
    else:
        attn = EvaAttention(128, 2, qkv_fused=qkv != "split", norm_layer=LayerNorm)
        for bias in (attn.q_bias, attn.v_bias):
            if bias is not None:
                torch.nn.init.normal_(bias)
        if attn.k_bias is not None:
            attn.k_bias.zero_()
    tokens = torch.randn(3, 1 + 4 + 6, 128)
    captured = []
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda _m, inputs, _o: captured.append(inputs[0]))
    attn(tokens)
    row = captured[0][:, :, 0, 5:]  # softmax over all tokens, so compare within the patches
    ours = cls_attention_logits(attn, tokens, 5).softmax(-1)
    torch.testing.assert_close(ours, row / row.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)


def official_state(registers, seed=3):
    model = create_toy(registers)
    return seeded_state(seed, official_shapes(model))


def test_official_files_hold_what_the_spec_lists():
    shapes = official_shapes(create_toy(4))
    assert shapes["pos_embed"] == (1, 1370, 192)
    assert shapes["register_tokens"] == (1, 4, 192)
    assert shapes["mask_token"] == (1, 192)
    assert shapes["blocks.3.ls2.gamma"] == (192,)
    assert "register_tokens" not in official_shapes(create_toy(0))


def test_the_giant_model_has_a_gated_feed_forward():
    with torch.device("meta"):
        model = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, img_size=518)
    shapes = official_shapes(model)
    assert shapes["blocks.0.mlp.w12.weight"] == (8192, 1536)
    assert shapes["blocks.39.mlp.w3.weight"] == (1536, 4096)


@pytest.mark.parametrize("kind", ["official .pth", "timm .pth", "timm .safetensors"])
def test_local_files_give_the_same_features_as_the_weights_they_hold(tmp_path, images, kind):
    state = official_state(4)
    if kind.startswith("timm"):
        state = to_timm(state, create_toy(4))
    path = tmp_path / ("a" + kind.split(" ")[1])
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    ours = load_vision("toy", str(path))
    expected = load_vision("toy", "seeded:3")
    assert ours.weights == str(path)
    assert torch.equal(
        ours(ours.normalise(images)).patches, expected(ours.normalise(images)).patches
    )


def test_official_dinov3_files_load_into_timm_models(tmp_path, images):
    model = load_vision("vit_small_patch16_dinov3", "seeded:5")
    state = {}
    for name, value in model.model.state_dict().items():
        name = name.replace("reg_token", "storage_tokens")
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        state[name] = value
    state["mask_token"] = torch.zeros(1, 384)
    state["rope_embed.periods"] = torch.zeros(16)
    for i in range(12):
        state[f"blocks.{i}.attn.qkv.bias"] = torch.zeros(1152)
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.zeros(1152)
    torch.save(state, tmp_path / "dinov3_vits16_pretrain_lvd1689m.pth")
    loaded = load_vision("dinov3_vits16", str(tmp_path / "dinov3_vits16_pretrain_lvd1689m.pth"))
    x = model.normalise(images[:, :, :48, :32])
    assert torch.equal(loaded(x).patches, model(x).patches)


def test_a_file_of_another_model_is_refused_by_name_and_shape(tmp_path):
    torch.save(official_state(0), tmp_path / "noreg.pth")
    with pytest.raises(
        ValueError, match=r"noreg.pth is not the official .* missing keys: register_tokens"
    ):
        load_vision("toy", str(tmp_path / "noreg.pth"))


def test_a_file_of_another_architecture_is_refused(tmp_path):
    torch.save({"pos_embed": torch.zeros(1, 1000, 192)}, tmp_path / "clip.pth")  # no square
    with pytest.raises(ValueError, match="the weights are of another architecture"):
        load_vision("toy", str(tmp_path / "clip.pth"))


def test_a_classifier_head_in_the_file_is_not_needed(tmp_path):
    state = to_timm(official_state(4), create_toy(4))
    state["head.weight"] = torch.zeros(1000, 192)
    torch.save(state, tmp_path / "a.pth")
    load_vision("toy", str(tmp_path / "a.pth"))


def test_positions_with_and_without_registers_are_interpolated_differently(images):
    with_registers, without = as_toy(4), as_toy(0)
    assert without.offset_positions
    assert not with_registers.offset_positions
    at_training_size = torch.zeros(1, 3, 518, 518)
    assert without(at_training_size).patches.shape == (1, 37 * 37, 192)
    assert without(without.normalise(images)).patches.shape == (2, 12, 192)


def as_toy(registers):
    model = create_toy(registers)
    load_strict(model, to_timm(official_state(registers), model), "seeded:3")
    return VisionBackbone(model, "toy", "seeded:3")


def test_every_short_name_is_known_to_timm():
    for name in SHORT_NAMES:
        check_vision(name)
        assert timm.is_model_pretrained(SHORT_NAMES[name]), name


def test_a_misspelt_model_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown vision model 'dinov2_vitb14_regs'. Known: toy, "
    ):
        check_vision("dinov2_vitb14_regs")
    with pytest.raises(ValueError, match="Did you mean 'dinov2_vitl14_reg'"):
        check_vision("dinov2_vitl14_rag")
    with pytest.raises(ValueError, match="Did you mean 'vit_base_patch16_dinov3'"):
        check_vision("vit_base_patch16_dinov33")


def test_deit_models_are_plain_vits_too():
    backbone = load_vision("deit3_small_patch16_224", "seeded:0")
    assert backbone(torch.zeros(1, 3, 32, 48)).patches.shape == (1, 6, 384)


def test_missing_weights_are_refused_before_anything_is_built():
    with pytest.raises(FileNotFoundError, match=r"no vision weights at 'absent.pth'"):
        check_vision("dinov2_vitb14_reg", "absent.pth")
    with pytest.raises(ValueError, match="no pretrained weights"):
        check_vision("toy", "pretrained")


def test_without_network_the_message_says_what_to_do():
    with pytest.raises(
        RuntimeError, match=r"could not download .*--vision_weights FILE.*huggingface\.co/timm/vit"
    ):
        load_vision("dinov2_vits14_reg", "pretrained")


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_relpos_medium_patch16_224"])
def test_models_without_a_cls_token_are_refused(name):
    with pytest.raises(
        ValueError, match="not a ViT with a CLS token|unknown vision model|plain ViT"
    ):
        load_vision(name, "seeded:0")


@pytest.mark.parametrize("layers", ["encoder.layer", "layer"])
@pytest.mark.parametrize("name", ["dinov3_vits16", "dinov2_vits14", "vit_tiny_patch16_224"])
def test_a_backbone_of_transformers_is_refused_with_the_file_that_is_needed(layers, name):
    names = (f"{layers}.0.attention.q_proj.weight", "embeddings.patch_embeddings.weight")
    needed = r"x.safetensors has .* transformers library.*Needed is the official .pth or timm"
    with pytest.raises(ValueError, match=needed):
        vision_from_state(name, {name: torch.ones(1) for name in names}, "x.safetensors")
