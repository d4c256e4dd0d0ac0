"""The losses of OVSegmentor's pretraining; all are computed in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.methods.ovsegmentor.config import PUBLISHED_BATCH, LossConfig
from talk2dino.processes import gather_rows, process_rank


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1, in float32."""
    return F.normalize(x.float(), dim=-1)


def similarity_scale(logit_scale: Tensor) -> Tensor:
    """The factor on cosines: exp of the learned scalar, at most 100."""
    return logit_scale.exp().clamp(max=100.0)


def infonce(left: Tensor, right: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE over the batches of all processes.

    Args:
        left: (B, D), any length; row i belongs to row i of `right`.
        right: (B, D).
        scale: factor on the cosines.

    Returns:
        Scalar, the mean over this process's rows; processes average their gradients.
    """
    left, right = unit_rows(left), unit_rows(right)
    targets = torch.arange(len(left), device=left.device) + len(left) * process_rank()
    with torch.autocast(left.device.type, enabled=False):
        to_right = F.cross_entropy(scale * left @ gather_rows(right).T, targets)
        to_left = F.cross_entropy(scale * right @ gather_rows(left).T, targets)
    return (to_right + to_left) / 2


def mask_consistency(
    student: Tensor,
    teacher: Tensor,
    size_hw: tuple[int, int],
    threshold: float = LossConfig.threshold,
    batch: int | None = PUBLISHED_BATCH,
) -> Tensor:
    """Dice distance between two segmentations of the same images into groups.

    Args:
        student: (B, G, rows, columns) affinities of one image's groups with the other's patches;
            maps that shall get no gradient are detached already.
        teacher: (B, G, rows, columns) affinities of the other image's own groups.
        size_hw: pixels of the images, where the maps are compared.
        threshold: see `LossConfig`.
        batch: the published loss is a sum over the images of a process, of which there were this
            many; other batches are scaled to weigh the same. None keeps the plain sum.

    Returns:
        Scalar: the sum over the batch divided by G, times batch / B if given.
    """
    student = _upsample(student.float(), size_hw)  # (B, G, pixels)
    with torch.no_grad():
        teacher = _upsample(teacher.detach().float(), size_hw)
        order = match_groups(student, teacher)
        target = binary_targets(teacher.take_along_dim(order[:, :, None], dim=1), threshold)
    total = joint_dice(unit_range(student), target).sum() / student.shape[1]
    return total if batch is None else total * (batch / len(student))


def match_groups(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's group for each of the student's, (B, G) int64.

    The assignment of least total L2 distance between the maps, each normalised over its pixels.

    Args:
        student: (B, G, N) maps.
        teacher: (B, G, N) maps.
    """
    distances = torch.cdist(F.normalize(student, dim=-1), F.normalize(teacher, dim=-1))
    return cheapest_assignment(distances)


def cheapest_assignment(costs: Tensor) -> Tensor:
    """The exact solution of the assignment problem, for all samples at once, on their device.

    Dynamic programming over the sets of columns that the first rows have taken: G 2^G steps,
    which for the G of 8 or 16 here is faster than one Hungarian algorithm per sample.

    Args:
        costs: (B, G, G).

    Returns:
        (B, G) int64: the column of each row.
    """
    batch, size, _ = costs.shape
    device = costs.device
    columns = torch.arange(size, device=device)
    sets = torch.arange(2**size, device=device)
    contains = (sets[:, None] >> columns) & 1 == 1  # (2^G, G)
    taken = contains.sum(dim=1)
    best = costs.new_full((batch, 2**size), torch.inf)
    best[:, 0] = 0
    last = torch.zeros(batch, 2**size, dtype=torch.long, device=device)
    for row in range(size):
        members = sets[taken == row + 1]
        without = members[:, None] - (1 << columns) * contains[members]
        totals = best[:, without] + costs[:, row, None, :]  # (B, sets, G)
        totals = totals.masked_fill(~contains[members], torch.inf)
        best[:, members], last[:, members] = totals.min(dim=-1)
    chosen = torch.empty(batch, size, dtype=torch.long, device=device)
    remaining = torch.full((batch, 1), 2**size - 1, device=device)
    for row in reversed(range(size)):
        chosen[:, row] = last.gather(1, remaining)[:, 0]
        remaining = remaining - (1 << chosen[:, row : row + 1])
    return chosen


def binary_targets(maps: Tensor, threshold: float) -> Tensor:
    """1 where a map's sigmoid reaches `threshold` times its maximum, else 0; maps (B, G, N).

    As published the sigmoid of raw affinities is used: sigmoid(0) is 0.5, so weak maps give
    targets that are mostly 1.
    """
    probabilities = maps.sigmoid()
    return (probabilities >= threshold * probabilities.amax(dim=-1, keepdim=True)).to(maps.dtype)


def unit_range(maps: Tensor) -> Tensor:
    """Stretch each map (B, G, N) to [0, 1] over its pixels; a constant map becomes 0."""
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    span = high - low
    return (maps - low) / span.where(span > 0, torch.ones_like(span))


def joint_dice(prediction: Tensor, target: Tensor) -> Tensor:
    """Dice distances (B,) of all maps of a sample together; both (B, G, N) in [0, 1]."""
    overlap = (prediction * target).sum(dim=(1, 2))
    return 1 - (2 * overlap + 1) / (prediction.sum(dim=(1, 2)) + target.sum(dim=(1, 2)) + 1)


def least_similar_groups(groups: Tensor, entity: Tensor, ratio: float) -> Tensor:
    """The groups (B, n) with the smallest dot products with a text, n = int(G * ratio).

    Args:
        groups: (B, G, D) projected groups.
        entity: (B, D) projected text of the entity.
        ratio: share of the groups.
    """
    similarities = torch.einsum("bgd,bd->bg", groups.float(), entity.float())
    return similarities.topk(int(groups.shape[1] * ratio), dim=1, largest=False).indices


def stop_gradient_of(maps: Tensor, groups: Tensor) -> Tensor:
    """Maps (B, G, ...) where those of the listed groups (B, n) get no gradient."""
    stopped = torch.zeros(maps.shape[:2], dtype=torch.bool, device=maps.device)
    stopped = stopped.scatter(1, groups, True)
    return maps.detach().where(stopped.view(*stopped.shape, *[1] * (maps.ndim - 2)), maps)


def _upsample(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=True).flatten(2)
