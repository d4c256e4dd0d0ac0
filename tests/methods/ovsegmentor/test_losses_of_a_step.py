"""The three losses of one step, put together by hand from the parts that other tests check."""

import pytest
import torch

from talk2dino.methods.ovsegmentor.config import LossConfig
from talk2dino.methods.ovsegmentor.losses import (
    infonce,
    least_similar_groups,
    mask_consistency,
    stop_gradient_of,
)
from talk2dino.methods.ovsegmentor.vision import affinity
from tests.methods.ovsegmentor.conftest import make_batch, seeded_toy

# The seeded maps are weak: only a high threshold leaves pixels out of the targets.
LOSSES = LossConfig(0.7, 0.3, threshold=0.8, group_ratio=0.25)
SIZE = (224, 224)


@pytest.fixture
def model():
    """Stage 2, without dropout or noise; its teacher has other weights than its student."""
    return seeded_toy("stage2", losses=LOSSES, mask_batch=6)


@pytest.fixture
def batch(tokenizer):
    return make_batch(tokenizer)


def queries_of(model, batch):
    """The losses of a step, and the groups' queries that they were computed from."""
    seen = []

    def keep(module, inputs, features):
        seen.append(features.assignment.queries)

    with model.img_encoder.register_forward_hook(keep):
        losses = model(batch)
    assert len(seen) == 1
    return losses, seen[0]


def test_the_losses_of_a_step_are_those_put_together_by_hand(model, batch):
    losses, queries = queries_of(model, batch)
    (gradient,) = torch.autograd.grad(losses.mask, queries)

    images = model.encode_images(batch.images)
    paired = model.img_encoder_momentum(batch.paired_images)
    captions, questions, answers, entities = (
        model.encode_texts(texts)
        for texts in (batch.captions, batch.questions, batch.answers, batch.paired_entities)
    )
    completed = model.complete(images.features.groups, questions.tokens)
    own = images.features.assignment.queries
    keys = paired.assignment.keys.detach()
    maps = stop_gradient_of(
        affinity(own, keys), least_similar_groups(images.groups, entities.embedding, 0.25)
    ).unflatten(-1, paired.grid_hw)
    targets = affinity(paired.assignment.queries, keys).unflatten(-1, paired.grid_hw)

    matching = infonce(images.embedding, captions.embedding, model.scale)
    entity = infonce(completed, answers.embedding, model.scale)
    mask = mask_consistency(maps, targets, SIZE, LOSSES.threshold, 6)
    exactly = {"rtol": 1e-5, "atol": 0}
    torch.testing.assert_close(losses.matching, matching, **exactly)
    torch.testing.assert_close(losses.entity, entity, **exactly)
    torch.testing.assert_close(losses.mask, mask, **exactly)
    torch.testing.assert_close(losses.total, matching + 0.7 * entity + 0.3 * mask, **exactly)
    (expected,) = torch.autograd.grad(mask, own)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_the_groups_least_like_the_entity_learn_nothing_from_the_masks(model, batch):
    losses, queries = queries_of(model, batch)
    (gradient,) = torch.autograd.grad(losses.mask, queries)
    with torch.no_grad():
        groups = model.encode_images(batch.images).groups
        entities = model.encode_texts(batch.paired_entities).embedding
    similarities = (groups * entities[:, None]).sum(dim=-1)  # (B, G)
    rank = similarities.argsort(dim=1).argsort(dim=1)
    assert torch.equal(gradient.abs().sum(dim=-1) > 0, rank >= 2)  # a quarter of 8 groups
