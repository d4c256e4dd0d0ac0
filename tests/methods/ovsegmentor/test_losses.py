"""The losses, beyond the recorded numbers."""

from itertools import permutations

import pytest
import torch

from talk2dino.methods.ovsegmentor.config import LossConfig
from talk2dino.methods.ovsegmentor.losses import (
    cheapest_assignment,
    infonce,
    mask_consistency,
    stop_gradient_of,
    unit_range,
)
from talk2dino.processes import gather_rows, num_processes, process_rank


def maps(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 8, 7, 7, generator=generator)


def test_infonce_does_not_depend_on_lengths():
    left, right = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(infonce(3 * left, 0.1 * right, 10.0), infonce(left, right, 10.0))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_assignment_is_the_cheapest_of_all_permutations(size):
    costs = torch.rand(4, size, size)
    chosen = cheapest_assignment(costs)
    rows = torch.arange(size)
    for cost, columns in zip(costs, chosen, strict=True):
        cheapest = min(float(cost[rows, list(p)].sum()) for p in permutations(range(size)))
        assert sorted(columns.tolist()) == list(range(size))
        assert float(cost[rows, columns].sum()) == pytest.approx(cheapest)


def test_the_mask_loss_of_two_batches_is_the_sum_of_theirs():
    student, teacher = maps(0, 5), maps(1, 5)
    parts = [
        mask_consistency(student[part], teacher[part], (32, 32), batch=None)
        for part in (slice(0, 2), slice(2, 5))
    ]
    whole = mask_consistency(student, teacher, (32, 32), batch=None)
    torch.testing.assert_close(whole, sum(parts))


def test_the_published_batch_weighs_as_published_and_others_the_same():
    student, teacher = maps(0), maps(1)
    plain = mask_consistency(student, teacher, (32, 32), batch=None)
    same = mask_consistency(student, teacher, (32, 32), batch=2)
    scaled = mask_consistency(student, teacher, (32, 32))
    torch.testing.assert_close(same, plain)
    torch.testing.assert_close(scaled, 64 * plain)


def test_the_order_of_the_teachers_groups_does_not_matter():
    student, teacher = maps(0), maps(1)
    shuffled = teacher[:, torch.randperm(8)]
    ours, theirs = (mask_consistency(student, t, (32, 32), batch=None) for t in (teacher, shuffled))
    torch.testing.assert_close(ours, theirs)


def test_groups_that_are_stopped_get_no_gradient():
    student = maps(0).requires_grad_()
    stopped = torch.tensor([[0, 3], [5, 7]])
    loss = mask_consistency(stop_gradient_of(student, stopped), maps(1), (32, 32), batch=None)
    (gradient,) = torch.autograd.grad(loss, student)
    strength = gradient.abs().sum(dim=(2, 3))
    for row, groups in enumerate(stopped.tolist()):
        for group in range(8):
            assert (strength[row, group] == 0) == (group in groups)


def test_a_constant_map_has_no_range_and_no_nan():
    constant = torch.full((1, 1, 4), 3.0, requires_grad=True)
    stretched = unit_range(constant)
    assert stretched.tolist() == [[[0, 0, 0, 0]]]
    stretched.sum().backward()
    assert torch.isfinite(constant.grad).all()


@pytest.mark.parametrize("values", [{"threshold": 1.5}, {"group_ratio": -0.1}])
def test_impossible_settings_are_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must"):
        LossConfig(**values)


def test_one_process_needs_no_group():
    rows = torch.randn(3, 2)
    assert (num_processes(), process_rank()) == (1, 0)
    assert gather_rows(rows) is rows
