"""PAMR on CUDA: one kernel for the weights, one launch of another for every iteration.

Scores lie with the classes innermost, so that a neighbour's scores are one piece of memory, and
borders are repeated by clamping coordinates: nothing is padded and no neighbour is copied. Import
this module only where Triton is installed.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
_WEIGHT_PIXELS = 128  # pixels per program of the first kernel
_SCORES = 1024  # scores per program of the second: pixels times classes
_MOST_CLASSES = 32  # of them classes, at most
_SIZES = ("num_dilations", "height", "width", "groups")  # else another compilation for each kind


@torch.no_grad()
def pamr_in_kernels(
    images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]
) -> Tensor:
    """Refine scores as `talk2dino.refine.pamr.plain_pamr` does, without gradients.

    Args:
        images: (B, 3, H, W) float32, contiguous.
        masks: (B, C, H, W) float32 that `fits`.
        iterations: at least once.
        dilations: distances of the neighbours in pixels.
    """
    batch, classes, height, width = masks.shape
    distances = _on_device(tuple(dilations), masks.device)
    groups = triton.cdiv(classes, 4)  # of four scores, which one instruction loads
    scores = masks.new_zeros(batch, height * width, 4 * groups)
    scores[..., :classes] = masks.flatten(2).transpose(1, 2)
    averaged = torch.empty_like(scores)
    weights = images.new_empty(batch, 8 * len(dilations), height * width)
    block = min(_MOST_CLASSES, triton.next_power_of_2(4 * groups))
    sizes = (len(dilations), height, width)
    with torch.cuda.device_of(masks):
        _weigh[(triton.cdiv(height * width, _WEIGHT_PIXELS), batch)](
            images, weights, distances, *sizes, PIXELS=_WEIGHT_PIXELS
        )
        pixels = _SCORES // block
        grid = (triton.cdiv(height * width, pixels), triton.cdiv(4 * groups, block), batch)
        for _ in range(iterations):
            _average[grid](
                *(scores, averaged, weights, distances, *sizes, groups),
                PIXELS=pixels,
                CLASSES=block,
            )
            scores, averaged = averaged, scores
    return scores[..., :classes].transpose(1, 2).contiguous().view(masks.shape)


def fits(masks: Tensor) -> bool:
    """Whether places in an image's scores are 32-bit numbers, as the kernels take them."""
    batch, classes, height, width = masks.shape
    return height * width * (classes + 3) < 2**31 and batch < 2**16


@lru_cache(maxsize=64)
def works(device: torch.device) -> bool:
    """Whether the kernels can be compiled and run on a device: tried once, on a tiny image.

    A missing C compiler or a GPU that Triton does not know show only then.
    """
    image = torch.zeros(1, 3, 2, 2, device=device)
    try:
        pamr_in_kernels(image, image, 1, (1,))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as problem:  # of any kind: compiler, driver, Triton itself
        _LOGGER.warning("PAMR runs without its Triton kernels, more slowly: %s", problem)
        return False
    return True


@lru_cache(maxsize=64)
def _on_device(dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """The dilations, copied once: a copy in every call would wait for the device."""
    return torch.tensor(dilations, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=_SIZES[:3])
def _weigh(images, weights, dilations, num_dilations, height, width, PIXELS: tl.constexpr):
    """Weights (B, 8K, H * W) of images (B, 3, H, W); program (i, b) has PIXELS of image b."""
    num_pixels = height * width
    own = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    pixels = tl.minimum(own, num_pixels - 1)
    y, x = pixels // width, pixels % width
    batch = tl.program_id(1).to(tl.int64)
    red = images + batch * 3 * num_pixels
    green, blue = red + num_pixels, red + 2 * num_pixels
    r, g, b = tl.load(red + pixels), tl.load(green + pixels), tl.load(blue + pixels)
    r_scale = _contrast(red, r, y, x, dilations, num_dilations, height, width)
    g_scale = _contrast(green, g, y, x, dilations, num_dilations, height, width)
    b_scale = _contrast(blue, b, y, x, dilations, num_dilations, height, width)

    # The sum of the softmax, kept relative to the highest number so far.
    highest = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    for index in range(num_dilations):
        dilation = tl.load(dilations + index)
        for direction in tl.static_range(8):
            place = _neighbour(y, x, dilation, direction, height, width)
            logit = tl.abs(tl.load(red + place) - r) * r_scale
            logit += tl.abs(tl.load(green + place) - g) * g_scale
            logit += tl.abs(tl.load(blue + place) - b) * b_scale
            higher = tl.maximum(highest, -logit / 3)
            total = total * tl.exp(highest - higher) + tl.exp(-logit / 3 - higher)
            highest = higher

    # Computed again: the image is in the cache, which eight numbers per dilation would not be.
    weights += batch * 8 * num_dilations * num_pixels
    for index in range(num_dilations):
        dilation = tl.load(dilations + index)
        for direction in tl.static_range(8):
            place = _neighbour(y, x, dilation, direction, height, width)
            logit = tl.abs(tl.load(red + place) - r) * r_scale
            logit += tl.abs(tl.load(green + place) - g) * g_scale
            logit += tl.abs(tl.load(blue + place) - b) * b_scale
            weight = tl.exp(-logit / 3 - highest) / total
            tl.store(weights + own, weight, mask=own < num_pixels)
            weights += num_pixels


@triton.jit
def _contrast(plane, centre, y, x, dilations, num_dilations, height, width):
    """One over a tenth of the deviation of a channel around pixels, the centre counted too."""
    total = tl.zeros_like(centre)
    squares = tl.zeros_like(centre)
    for index in range(num_dilations):
        dilation = tl.load(dilations + index)
        for direction in tl.static_range(8):
            place = _neighbour(y, x, dilation, direction, height, width)
            difference = tl.load(plane + place) - centre
            total += difference
            squares += difference * difference
    count = 9 * num_dilations
    variance = tl.maximum(squares - total * total / count, 0.0) / (count - 1)
    return 1 / (1e-8 + 0.1 * tl.sqrt(variance))


@triton.jit(do_not_specialize=_SIZES)
def _average(
    scores,
    averaged,
    weights,
    dilations,
    num_dilations,
    height,
    width,
    groups,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """One iteration from scores to averaged, both (B, H * W, 4 * groups).

    Program (i, j, b) has PIXELS pixels and CLASSES classes of image b.
    """
    num_pixels = height * width
    own = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    pixels = tl.minimum(own, num_pixels - 1)
    y, x = pixels // width, pixels % width
    classes = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    known = (classes < 4 * groups)[None, :]
    batch = tl.program_id(2).to(tl.int64)
    scores += batch * num_pixels * 4 * groups
    averaged += batch * num_pixels * 4 * groups
    weights += batch * 8 * num_dilations * num_pixels
    total = tl.zeros((PIXELS, CLASSES), tl.float32)
    for index in range(num_dilations):
        dilation = tl.load(dilations + index)
        for direction in tl.static_range(8):
            place = _neighbour(y, x, dilation, direction, height, width)
            rows = scores + place[:, None] * (4 * groups) + classes[None, :]
            total += tl.load(weights + pixels)[:, None] * tl.load(rows, mask=known, other=0.0)
            weights += num_pixels
    rows = averaged + own[:, None] * (4 * groups) + classes[None, :]
    tl.store(rows, total, mask=known & (own < num_pixels)[:, None])


@triton.jit
def _neighbour(y, x, dilation, direction: tl.constexpr, height, width):
    """Place of a neighbour, row by row around the centre; the border is repeated."""
    cell: tl.constexpr = direction + direction // 4  # of 3 x 3 cells, the fifth left out
    beside_y = tl.minimum(tl.maximum(y + (cell // 3 - 1) * dilation, 0), height - 1)
    beside_x = tl.minimum(tl.maximum(x + (cell % 3 - 1) * dilation, 0), width - 1)
    return beside_y * width + beside_x
