"""The image encoder and its grouping, beyond the recorded numbers."""

import pytest
import torch
from timm.layers import DropPath

from talk2dino.methods.ovsegmentor.config import VisionConfig
from talk2dino.methods.ovsegmentor.vision import (
    ImageEncoder,
    average_weights,
    choose_groups,
    load_dino,
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ImageEncoder(VisionConfig(width=48)).eval()


def test_every_patch_has_one_group_and_soft_shares_of_all(encoder):
    assignment = encoder(torch.randn(2, 3, 64, 96)).assignment
    torch.testing.assert_close(assignment.soft.sum(dim=1), torch.ones(2, 24), atol=1e-6, rtol=0)
    assert torch.equal(assignment.hard.sum(dim=1), torch.ones(2, 24))
    assert set(assignment.hard.unique().tolist()) == {0, 1}


def test_a_constant_added_to_all_scores_of_a_patch_changes_nothing():
    logits = torch.randn(2, 8, 5)
    shifted = logits + torch.randn(2, 1, 5)
    assert torch.equal(choose_groups(logits, False), choose_groups(shifted, False))


def test_a_group_of_n_patches_weighs_each_by_one_over_n_plus_one():
    hard = torch.tensor([[[1.0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]])
    weights = average_weights(hard)
    assert weights[0].tolist() == [[0.25, 0.25, 0.25, 0], [0, 0, 0, 0.5], [0, 0, 0, 0]]


def test_in_training_the_choice_is_one_hot_with_the_gradient_of_a_noisy_softmax():
    logits = torch.randn(2, 4, 6, requires_grad=True)
    torch.manual_seed(5)
    hard = choose_groups(logits, True)
    assert torch.equal(hard.sum(dim=1), torch.ones(2, 6)) and set(hard.unique().tolist()) == {0, 1}
    weights = torch.randn(2, 4, 6)
    (ours,) = torch.autograd.grad((hard * weights).sum(), logits)
    torch.manual_seed(5)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = (logits + noise).softmax(dim=1)
    (expected,) = torch.autograd.grad((soft * weights).sum(), logits)
    torch.testing.assert_close(ours, expected)


def test_training_samples_groups_in_proportion_to_their_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0])[None, :, None].expand(1, 3, 20000)
    shares = choose_groups(logits, True).mean(dim=-1)[0]
    torch.testing.assert_close(shares, logits[0, :, 0].softmax(dim=0), atol=0.015, rtol=0)


def test_the_noise_is_in_the_choice_only(encoder, monkeypatch):
    images = torch.randn(1, 3, 224, 224)
    drops = [module for module in encoder.modules() if isinstance(module, DropPath)]
    rates = [drop.drop_prob for drop in drops]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(1, 12) for _ in range(2)])
    for drop in drops:
        monkeypatch.setattr(drop, "drop_prob", 0.0)
    noisy = encoder.train()(images).assignment
    quiet = encoder.eval()(images).assignment
    for name in ("soft", "queries", "keys"):
        torch.testing.assert_close(getattr(noisy, name), getattr(quiet, name))
    assert not torch.equal(noisy.hard, quiet.hard)


def test_an_image_does_not_depend_on_the_others_of_its_batch(encoder):
    images = torch.randn(3, 3, 64, 64)
    alone = torch.cat([encoder(image[None]).groups for image in images])
    torch.testing.assert_close(encoder(images).groups, alone, atol=1e-5, rtol=1e-5)


@pytest.fixture
def dino(encoder):
    """A DINO checkpoint of the encoder's width: 12 blocks in a row, and a CLS token."""
    state = {}
    for name, value in encoder.state_dict().items():
        if name.startswith("layers.") and ".blocks." in name:
            _, stage, _, block, rest = name.split(".", 4)
            state[f"blocks.{6 * int(stage) + int(block)}.{rest}"] = torch.randn_like(value)
        elif name.startswith(("patch_embed", "norm.")):
            state[name] = torch.randn_like(value)
    return state | {"pos_embed": torch.randn(1, 197, 48), "cls_token": torch.randn(1, 1, 48)}


def test_dino_weights_leave_41_tensors_as_they_were(dino):
    encoder = ImageEncoder(VisionConfig(width=48))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    own = load_dino(encoder, dino | {"head.weight": torch.ones(3)})
    loaded = encoder.state_dict()
    assert len(own) == 41
    assert all(torch.equal(loaded[name], before[name]) for name in own)
    for ours, theirs in (("layers.0.blocks.5", "blocks.5"), ("layers.1.blocks.0", "blocks.6")):
        name = "attn.qkv.weight"
        assert torch.equal(loaded[f"{ours}.{name}"], dino[f"{theirs}.{name}"])
    assert torch.equal(loaded["pos_embed"], dino["pos_embed"][0, 1:])
    assert torch.equal(loaded["norm.weight"], dino["norm.weight"])


def test_dino_weights_that_do_not_fit_are_named(encoder, dino):
    with pytest.raises(ValueError, match="do not fit the image encoder: unexpected keys: extra"):
        load_dino(encoder, dino | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match="missing keys: norm.bias"):
        load_dino(encoder, {name: v for name, v in dino.items() if name != "norm.bias"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_groups": 0}, "num_groups must be at least 1"),
        ({"num_heads": 7}, "width 768 cannot be split into 7 num_heads"),
        ({"image_size": 225}, "no multiple of patch_size 16"),
        ({"drop_path": 1.0}, "drop_path must lie in"),
    ],
)
def test_impossible_encoders_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**values)
