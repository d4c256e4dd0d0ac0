"""One optimiser step: whose gradient it follows, and what it changes."""

import pytest
import torch

from talk2dino.methods.ovsegmentor.pretraining.loop import (
    PretrainingRun,
    make_optimizer,
)
from talk2dino.training.run import step_seed
from tests.methods.ovsegmentor.conftest import make_batch, rows, seeded_toy


def make_step(recipe, stage="stage1"):
    model = seeded_toy(stage).train()
    if stage == "stage2":
        model.img_encoder_momentum.load_state_dict(model.img_encoder.state_dict())
    return run_of(model, recipe)


def run_of(model, recipe):
    """A run whose samples are never asked for."""
    return PretrainingRun(model, recipe, [None] * 64)


def gradients(step):
    return {n: p.grad.clone() for n, p in step.model.named_parameters() if p.grad is not None}


def test_accumulated_micro_batches_give_the_mean_of_their_gradients(make_recipe, tokenizer):
    recipe = make_recipe(train={"accumulate": 2, "clip_grad": 1e9})
    whole = make_batch(tokenizer, 8)
    parts = [rows(whole, slice(0, 4)), rows(whole, slice(4, 8))]
    alone = []
    for part, seed in zip(parts, (1, 2), strict=True):
        step = make_step(recipe)
        values = step.update([part], [seed], rate=0.0)
        alone.append((gradients(step), values))
        # Batch norms remember the first part when the second comes, but training does not use it.
    together = make_step(recipe)
    values = together.update(parts, [1, 2], rate=0.0)
    found = gradients(together)
    assert len(found) > 100
    for name, gradient in found.items():
        mean = (alone[0][0][name] + alone[1][0][name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values[:4], (alone[0][1] + alone[1][1])[:4] / 2)


def test_gradients_are_clipped_together_once(make_recipe, tokenizer):
    recipe = make_recipe(train={"clip_grad": 0.5})
    step = make_step(recipe)
    values = step.update([make_batch(tokenizer)], [0], rate=0.0)
    assert values[4] > 0.5
    norm = torch.stack([g.norm() for g in gradients(step).values()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_the_teacher_follows_once_per_step_and_has_no_gradient(make_recipe, tokenizer):
    recipe = make_recipe(2, train={"accumulate": 2}, losses={"ema": 0.75})
    step = make_step(recipe, "stage2")
    model = step.model
    before = {n: p.clone() for n, p in model.img_encoder_momentum.named_parameters()}
    with torch.no_grad():
        model.img_encoder.pos_embed += 1.0  # far enough that the teacher's way can be seen
    values = step.update([make_batch(tokenizer)] * 2, [0, 1], rate=1e-3)
    students = dict(model.img_encoder.named_parameters())
    for name, teacher in model.img_encoder_momentum.named_parameters():
        expected = before[name] * 0.75 + students[name].detach() * 0.25
        torch.testing.assert_close(teacher, expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(teacher, before[name])
        assert teacher.grad is None
    assert values[3] > 0
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {
        "logit_scale_mask",
        *(n for n, _ in model.named_parameters() if "multimodal" in n and ".assign." in n),
        *(n for n, _ in model.named_parameters() if "transformer.pooler" in n),
    }


def test_the_same_seed_repeats_a_step_and_leaves_the_global_generator_alone(make_recipe, tokenizer):
    recipe, batch = make_recipe(), make_batch(tokenizer)
    steps = [make_step(recipe) for _ in range(3)]
    state = torch.get_rng_state()
    first, again, other = (
        step.update([batch], [seed], rate=0.0) for step, seed in zip(steps, (5, 5, 6), strict=True)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_differ_between_places_of_a_run():
    places = [(e, s, m, r) for e in range(2) for s in range(2) for m in range(2) for r in range(2)]
    assert len({step_seed(0, *place) for place in places}) == 16


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_keeps_weights_in_float32_and_losses_close(make_recipe, tokenizer, amp):
    batch = make_batch(tokenizer)
    exact = make_step(make_recipe()).update([batch], [0], rate=0.0)
    step = make_step(make_recipe(train={"amp": amp}))
    values = step.update([batch], [0], rate=1e-3)
    assert {p.dtype for p in step.parameters} == {torch.float32}
    assert values.isfinite().all()
    torch.testing.assert_close(values[:1], exact[:1], rtol=0.15, atol=0.1)
    again = make_step(make_recipe(train={"amp": amp}))
    again.go_on(step.own_state())
    assert again.scaler.get_scale() == step.scaler.get_scale()


def test_the_published_weight_decay(make_recipe):
    model = seeded_toy("stage2")
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(model, make_recipe().train)
    free = {id(p) for p in optimizer.param_groups[1]["params"]}
    without = {n for n, p in named.items() if id(p) in free}
    assert "logit_scale" not in without  # no dimension at all: an oddity that is kept
    assert {"img_encoder.norm.weight", "img_projector.linear_out.bias"} <= without
    decaying = {"img_encoder.pos_embed", "img_encoder.layers.0.group_token"}
    assert not decaying & without
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes == [len(named) - len(without), len(without)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_a_frozen_language_model_keeps_its_weights(make_recipe, tokenizer):
    recipe = make_recipe()
    step = make_step(recipe)
    step.model.text_encoder.transformer.requires_grad_(False)
    step = run_of(step.model, recipe)
    before = {n: v.clone() for n, v in step.model.state_dict().items()}
    step.update([make_batch(tokenizer)], [0], rate=1e-2)
    for name, value in step.model.state_dict().items():
        if "transformer" in name:
            assert torch.equal(value, before[name])
    assert not torch.equal(
        step.model.text_projector.linear_out.weight, before["text_projector.linear_out.weight"]
    )


def test_under_compat_the_mask_loss_is_the_sum_over_a_process(make_recipe, tokenizer):
    masks = []
    for compat in (False, True):
        recipe = make_recipe(2, compat=compat, data={"entities": ""})
        model = seeded_toy("stage2", mask_batch=recipe.mask_batch).train()
        step = run_of(model, recipe)
        masks.append(step.update([make_batch(tokenizer)], [0], rate=0.0)[3].item())
    assert masks[0] == pytest.approx(masks[1] * 128 / 4)
