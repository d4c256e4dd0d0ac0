"""Deterministic weights follow the rule by name and rank."""

import math

import pytest
import torch

from talk2dino.backbones.seeded import parse_seeded, seeded_state, seeded_tensor


def test_the_number_is_read():
    assert parse_seeded("seeded:7") == 7
    assert parse_seeded("pretrained") is None
    assert parse_seeded(None) is None


@pytest.mark.parametrize("weights", ["seeded:", "seeded:-1", "seeded:x"])
def test_a_wrong_number_is_refused(weights):
    with pytest.raises(ValueError, match="integer >= 0 must follow"):
        parse_seeded(weights)


def test_names_and_seeds_give_different_weights_and_equal_ones_the_same():
    a = seeded_tensor(0, "a.weight", (3, 4))
    assert torch.equal(a, seeded_tensor(0, "a.weight", (3, 4)))
    assert not torch.equal(a, seeded_tensor(1, "a.weight", (3, 4)))
    assert not torch.equal(a, seeded_tensor(0, "b.weight", (3, 4)))


def test_matrices_are_divided_by_the_root_of_their_fan():
    weight = seeded_tensor(0, "proj.weight", (64, 3, 14, 14))
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(3 * 14 * 14), rel=0.05)
    token = seeded_tensor(0, "pos_embed", (1, 1370, 192))
    assert float(token.std()) == pytest.approx(1 / math.sqrt(192), rel=0.05)


@pytest.mark.parametrize(
    ("name", "centre"),
    [
        ("blocks.0.ls1.gamma", 1),
        ("blocks.0.gamma_1", 1),
        ("blocks.0.norm1.weight", 1),
        ("ln_final.weight", 1),
        ("fc_norm.weight", 1),
        ("blocks.0.norm1.bias", 0),
        ("fc1.bias", 0),
        ("attn_weights", 0),
    ],
)
def test_vectors_that_scale_are_centred_at_one(name, centre):
    assert float(seeded_tensor(0, name, (1000,)).mean()) == pytest.approx(centre, abs=0.01)


def test_scalars_and_the_logit_scale():
    state = seeded_state(0, {"logit_scale": (), "other": ()})
    assert float(state["logit_scale"]) == pytest.approx(math.log(1 / 0.07))
    assert state["other"].shape == ()
