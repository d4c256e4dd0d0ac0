"""One training step: what is computed, what gets a gradient, what moves."""

import copy

import pytest
import torch

from talk2dino.methods.ovsegmentor.checkpoints import seeded_weights
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.text import Tokens
from tests.methods.ovsegmentor.conftest import TOY, make_batch, seeded_toy


@pytest.fixture(scope="module")
def batch(request):
    from talk2dino.methods.ovsegmentor.text import Tokenizer, toy_tokenizer

    return make_batch(Tokenizer(toy_tokenizer(), 96), 4)


@pytest.fixture(scope="module")
def step(batch):
    """A stage 2 step in training mode: the model with its gradients, and the losses."""
    torch.manual_seed(0)
    model = seeded_toy("stage2", mask_batch=None).train()
    losses = model(batch)
    losses.total.backward()
    return model, losses


def test_the_total_is_matching_plus_entity_plus_a_tenth_of_mask(step):
    _, losses = step
    assert torch.equal(losses.total, losses.matching + 1.0 * losses.entity + 0.1 * losses.mask)


def test_only_the_published_parts_get_no_gradient(step):
    model, _ = step
    without = {name for name, p in model.named_parameters() if p.grad is None}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(
            (
                "multimodal_groupingblock.blocks.0.assign.",
                "text_encoder.transformer.pooler.dense.",
                "img_encoder_momentum.",
            )
        )
    }
    assert without == expected | {"logit_scale_mask"}


@pytest.mark.parametrize(("stage", "updates"), [("stage1", (2, 6, 1)), ("stage2", (4, 8, 1))])
def test_a_step_moves_the_running_statistics_as_often_as_published(batch, stage, updates):
    model = seeded_toy(stage).train()
    model(batch)
    counted = [
        int(getattr(model, f"{name}_projector").linear_hidden[1].num_batches_tracked)
        for name in ("img", "text", "bridge")
    ]
    assert tuple(counted) == updates


def test_the_mask_loss_reaches_the_students_queries_only(batch):
    model = seeded_toy("stage2", mask_batch=None)
    model(batch).mask.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    grouping = "img_encoder.layers.0.downsample"
    assert f"{grouping}.assign.q_proj.weight" in reached
    for untouched in ("k_proj", "v_proj", "proj"):
        assert f"{grouping}.assign.{untouched}.weight" not in reached
    outside = (f"{grouping}.mlp_channels", f"{grouping}.norm_new_x", "img_encoder.layers.1")
    assert not [name for name in reached if name.startswith((*outside, "img_proj", "text"))]
    assert {"img_encoder.pos_embed", "img_encoder.layers.0.group_token"} <= reached
    assert all(name.startswith("img_encoder.") for name in reached)


def test_padding_changes_nothing_but_takes_part_in_the_decoder(tokenizer):
    model = seeded_toy("stage1")
    short, long = tokenizer(["a cat"], 8), tokenizer(["a cat"], 20)
    torch.testing.assert_close(
        model.encode_texts(short).embedding, model.encode_texts(long).embedding
    )
    groups = torch.randn(1, 8, 64)
    words = model.encode_texts(long).tokens
    # The published decoder ignores the mask: without its padding a question completes otherwise.
    whole, cut = (model.complete(groups, w) for w in (words, words[:, : short.ids.shape[1]]))
    assert not torch.allclose(whole, cut)


def test_the_teacher_follows_by_a_hundredth(batch):
    model = seeded_toy("stage2")
    before = copy.deepcopy(model.img_encoder_momentum.state_dict())
    model.update_teacher()
    student = model.img_encoder.state_dict()
    for name, value in model.img_encoder_momentum.state_dict().items():
        expected = 0.99 * before[name].double() + 0.01 * student[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_new_model_of_stage_2_has_a_teacher_like_its_student():
    model = OVSegmentor(TOY, "stage2")
    assert torch.equal(model.img_encoder_momentum.pos_embed, model.img_encoder.pos_embed)
    assert not any(p.requires_grad for p in model.img_encoder_momentum.parameters())


def test_stage_1_needs_no_pairs_and_another_stage_is_refused(batch):
    unpaired = batch._replace(paired_images=None)
    assert seeded_toy("stage1")(unpaired.to("cpu")).mask == 0
    with pytest.raises(ValueError, match="unknown stage 'stage3'"):
        OVSegmentor(TOY, "stage3")


def test_a_wider_encoder_is_narrowed_for_the_decoder():
    import dataclasses

    text = dataclasses.replace(TOY.text, width=96)
    config = dataclasses.replace(TOY, text=text)
    model = OVSegmentor(config, "stage1").eval()
    assert model.align_proj_text.weight.shape == (64, 96)
    assert model.complete(torch.randn(2, 8, 64), torch.randn(2, 5, 96)).shape == (2, 64)


def test_seeded_weights_are_the_same_in_every_run_and_tell_texts_apart(toy):
    state = seeded_weights(TOY, 0)
    assert torch.equal(state["logit_scale"], toy.logit_scale)
    tokens = Tokens(torch.tensor([[2, 5, 3], [2, 6, 3]]), torch.ones(2, 3, dtype=torch.long))
    first, second = toy.encode_texts(tokens).embedding
    assert not torch.allclose(first, second, atol=1e-3)
