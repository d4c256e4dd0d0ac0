"""Pixel-adaptive mask refinement (PAMR, Araslanov and Roth 2020).

Every pixel's scores are replaced, ten times, by a weighted mean over its 48 neighbours: eight
directions at six distances. A neighbour weighs more the more its colour resembles the pixel's,
measured against the contrast around that pixel. `plain_pamr` says it in PyTorch; `pamr` gives the
same result in whichever of the faster ways fits.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

Refine = Callable[[Tensor, Tensor, int, Sequence[int]], Tensor]
"""`pamr` of checked images and masks, both float32 or both float64, at least one iteration."""

_DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
# Measured on two cores: looking neighbours up costs as much for one class as for eight.
_ENOUGH_CLASSES = 6
_BAND_PIXELS = 2**16  # per band of weights; half or twice as many is no faster
_BAG_BAND_PIXELS = 2**19  # with classes innermost: a window is one band
_PART_PIXELS = 2**15  # and thread, worked on at once: the scores of a few classes stay in its cache
# Measured on two cores of Zen 4: rows of 32 scores are two vectors. A call for 16,384 pixels takes
# a millisecond, so that threads seldom wait for each other; its indices (3 MB for 48 neighbours)
# serve every band of rows and stay in the third-level cache.
_BAG_CLASSES = 32
_BAG_PIXELS = 2**14


def pamr(
    images: Tensor,
    masks: Tensor,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
) -> Tensor:
    """Refine class scores so that they follow the edges of the image.

    Args:
        images: (B, 3, H, W) RGB in [0, 255], integer or float, not normalised.
        masks: (B, C, H, W) floating point scores. Classes do not interact.
        iterations: how often the scores are averaged; 0 returns them unchanged.
        dilations: distances of the neighbours in pixels. Beyond the border the outermost pixel
            is repeated, so the image may be smaller than a distance.

    Returns:
        (B, C, H, W), of the type of `masks`; the inputs are not modified. Gradients reach the
        masks, not the images.
    """
    _check(images, masks, iterations, dilations)
    if iterations == 0 or masks.shape[1] == 0:
        return masks.clone()
    dtype = torch.float64 if masks.dtype == torch.float64 else torch.float32
    refine = _fastest(masks)
    refined = refine(images.to(dtype).contiguous(), masks.to(dtype), iterations, dilations)
    return refined.to(masks.dtype)


def plain_pamr(images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    """`pamr` of images and masks of one floating point type, on any device, with gradients."""
    weights = affinities(images, dilations)
    # Interpolation returns its result channels last, which makes every shifted view slow.
    refined = masks.contiguous()
    for _ in range(iterations):
        refined = _average_once(_pad(refined, dilations), weights[:, :, None], dilations)
    return refined


def _average_once(padded: Tensor, weights: Tensor, dilations: Sequence[int]) -> Tensor:
    """(..., C, H, W): one iteration on what `_pad` returned, with weights (..., 8K, 1, H, W)."""
    height, width = weights.shape[-2:]
    averaged = padded.new_zeros(*padded.shape[:-2], height, width)
    for index, neighbours in enumerate(_shifted(padded, dilations)):
        averaged.addcmul_(neighbours, weights[..., index, :, :, :])
    return averaged


@torch.no_grad()
def affinities(images: Tensor, dilations: Sequence[int]) -> Tensor:
    """How much each neighbour of a pixel counts.

    Args:
        images: (B, 3, H, W) float.
        dilations: K distances in pixels.

    Returns:
        (B, 8K, H, W), positive, summing to one over the 8K neighbours.
    """
    return _affinities_inside(_pad(images, dilations), dilations)


def _affinities_inside(padded: Tensor, dilations: Sequence[int]) -> Tensor:
    """`affinities` of images (B, 3, H + 2m, W + 2m) that go on for m = max(dilations) pixels."""
    margin = max(dilations)
    images = padded[..., margin:-margin, margin:-margin]
    # The deviation is taken over differences from the centre: the same number, without the
    # cancellation that squares of values up to 255 suffer in float32.
    total = torch.zeros_like(images)
    squares = torch.zeros_like(images)
    for neighbours in _shifted(padded, dilations):
        difference = neighbours - images
        total += difference
        squares.addcmul_(difference, difference)
    count = (len(_DIRECTIONS) + 1) * len(dilations)  # the centre counts once per dilation
    variance = (squares - total.square() / count).clamp_(min=0) / (count - 1)
    scale = -1 / (1e-8 + 0.1 * variance.sqrt()) / 3  # (B, 3, H, W)

    batch, _, height, width = images.shape
    logits = images.new_empty(batch, len(_DIRECTIONS) * len(dilations), height, width)
    difference = torch.empty_like(images)
    for index, neighbours in enumerate(_shifted(padded, dilations)):
        torch.sub(neighbours, images, out=difference)
        red, green, blue = difference.abs_().mul_(scale).unbind(dim=1)  # a mean is slow on a CPU
        torch.add(red, green, out=logits[:, index]).add_(blue)
    # A softmax, by steps that are faster along this dimension than PyTorch's.
    logits -= logits.amax(dim=1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(dim=1, keepdim=True))


def _pad(
    values: Tensor, dilations: Sequence[int], top: int = 0, bottom: int | None = None
) -> Tensor:
    """Repeat the border of (B, C, H, W) as far as the farthest neighbour; or of some rows of it."""
    height, margin = values.shape[-2], max(dilations)
    bottom = height if bottom is None else bottom
    first, last = max(0, top - margin), min(height, bottom + margin)
    padding = (margin, margin, first - top + margin, bottom + margin - last)
    return F.pad(values[..., first:last, :], padding, mode="replicate")


def _shifted(padded: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield (B, C, H, W) views of what `_pad` returned, one per neighbour."""
    margin = max(dilations)
    height, width = (side - 2 * margin for side in padded.shape[-2:])
    for dy, dx in _steps(dilations):
        top, left = margin + dy, margin + dx
        yield padded[..., top : top + height, left : left + width]


def _steps(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns from a pixel to each of its neighbours."""
    return [(dy * d, dx * d) for d in dilations for dy, dx in _DIRECTIONS]


def _fastest(masks: Tensor) -> Refine:
    """The function for these masks: gradients and float64 are left to `plain_pamr`."""
    with_gradients = torch.is_grad_enabled() and masks.requires_grad
    if with_gradients or masks.dtype == torch.float64:
        return plain_pamr
    if masks.device.type == "cpu":
        return _pamr_in_bands
    if masks.device.type == "cuda" and find_spec("triton") is not None:
        # Not at the top: not everyone has the package, and its import takes a while.
        from talk2dino.refine.pamr_triton import fits, pamr_in_kernels, works

        if fits(masks) and works(masks.device):
            return pamr_in_kernels
    return plain_pamr


@torch.no_grad()
def _pamr_in_bands(
    images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]
) -> Tensor:
    """`plain_pamr` in float32 on the CPU, without gradients: in bands of rows, image by image.

    A band is averaged as soon as the band below it is one iteration behind. So the weights of
    only `iterations` + 1 bands are there at a time, and each of them is made once. All iterations
    share one table: a row's new scores take the place of those that are `margin` rows above it,
    which nothing needs any more. A picture that has no more bands keeps all weights, and then the
    tables of only some classes are there at a time.
    """
    refined = masks.new_empty(masks.shape)
    (classes, height, width), margin = masks.shape[1:], max(dilations)
    average: Callable[..., Tensor] = partial(_average_once, dilations=dilations)
    in_bags = classes >= _ENOUGH_CLASSES
    if in_bags:
        average = partial(_average_in_bags, bags=_bags(height, width, dilations))
    order = (1, 2, 0) if in_bags else (0, 1, 2)  # of the table in memory
    rows = max(margin, (_BAG_BAND_PIXELS if in_bags else _BAND_PIXELS) // width)
    bands = -(-height // rows)
    size_hw = (height + (iterations + 2) * margin, width + 2 * margin)
    firsts = range(iterations * margin, -1, -margin)
    kept = bands <= iterations + 1
    for image, scores, result in zip(images, masks, refined, strict=True):
        weights: dict[int, list[tuple[slice, Tensor]]] = {}  # by band, some rows at a time
        groups = list(zip(scores.split(_BAG_CLASSES), result.split(_BAG_CLASSES), strict=True))
        for together in [[group] for group in groups] if kept else [groups]:
            padded = []  # of some classes, before the iterations and after each
            for some, _ in together:
                table = torch.empty_permuted((len(some), *size_hw), order, dtype=some.dtype)
                padded.append([table[:, first : first + height + 2 * margin] for first in firsts])
                padded[-1][0].copy_(_pad(some[None], dilations)[0])
            for step in range(bands + iterations - 1):
                if step < bands and step not in weights:
                    here = range(step * rows, min((step + 1) * rows, height))
                    weights[step] = list(_weights_by_rows(image, here, dilations, in_bags))
                for tables in padded:
                    for iteration in range(iterations):
                        for part, found in weights.get(step - iteration, ()):
                            around = slice(part.start, part.stop + 2 * margin)
                            averaged = average(tables[iteration][:, around], found)
                            _put_rows(tables[iteration + 1], part, averaged)
                if not kept:
                    weights.pop(step - iterations + 1, None)
            for (_, some), tables in zip(together, padded, strict=True):
                some.copy_(tables[-1][:, margin:-margin, margin:-margin])
    return refined


def _put_rows(padded: Tensor, part: slice, averaged: Tensor) -> None:
    """Some rows of an iteration's result, in scores as `_pad` returns them.

    They may begin `margin` rows earlier in the memory of the scores that were averaged.
    """
    margin = (padded.shape[-1] - averaged.shape[-1]) // 2
    rows = padded[:, part.start + margin : part.stop + margin]
    rows[..., margin:-margin] = averaged
    rows[..., :margin], rows[..., -margin:] = averaged[..., :1], averaged[..., -1:]
    if part.start == 0:
        padded[:, :margin] = rows[:, :1]
    if part.stop + 2 * margin == padded.shape[1]:
        padded[:, -margin:] = rows[:, -1:]


def _bags(height: int, width: int, dilations: Sequence[int]) -> Tensor:
    """(h, W, 8K): where the neighbours of a bag's rows lie in what `_average_in_bags` averages."""
    margin = max(dilations)
    padded_width = width + 2 * margin
    rows = torch.arange(min(height, max(1, _BAG_PIXELS // width)))
    pixels = margin + rows[:, None] * padded_width + torch.arange(width)
    offsets = torch.tensor([(margin + dy) * padded_width + dx for dy, dx in _steps(dilations)])
    return (pixels[..., None] + offsets).int()


def _average_in_bags(padded: Tensor, weights: Tensor, bags: Tensor) -> Tensor:
    """`_average_once` (C, h, W) of scores with the classes innermost, and weights (h, W, 8K).

    PyTorch's embedding bag looks rows of a table up and sums them with weights, in vector registers
    and on all cores. The scores are such a table and a pixel's new scores are one bag, so the
    neighbours' scores are never copied.
    """
    sums, *_ = torch.embedding_bag(
        padded.movedim(0, -1).flatten(0, 1),
        bags[: len(weights)].flatten(),
        torch.arange(0, weights.numel(), weights.shape[-1], dtype=torch.int32),
        mode=0,  # the sum
        per_sample_weights=weights.flatten(),
    )
    return sums.unflatten(0, weights.shape[:2]).movedim(-1, 0)


def _weights_by_rows(
    image: Tensor, rows: range, dilations: Sequence[int], in_bags: bool
) -> Iterator[tuple[slice, Tensor]]:
    """`affinities` of rows of an image (3, H, W), as many as are worked on at once.

    (8K, 1, h, W) as `_average_once` takes them, or (h, W, 8K) for `_average_in_bags`.
    """
    width = image.shape[-1]
    step = max(1, _PART_PIXELS * torch.get_num_threads() // width)
    for top in range(rows.start, rows.stop, step):
        bottom = min(top + step, rows.stop)
        found = _affinities_inside(_pad(image[None], dilations, top, bottom), dilations)[0]
        for part in found.split(max(1, _BAG_PIXELS // width) if in_bags else step, dim=1):
            bottom = top + part.shape[1]
            yield slice(top, bottom), part.movedim(0, -1).contiguous() if in_bags else part[:, None]
            top = bottom


def _check(images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), found {tuple(images.shape)}.")
    if masks.ndim != 4:
        raise ValueError(f"masks must be (B, C, H, W), found {tuple(masks.shape)}.")
    if images.shape[0] != masks.shape[0] or images.shape[-2:] != masks.shape[-2:]:
        raise ValueError(
            "images and masks must agree in batch and size, found "
            f"{tuple(images.shape)} and {tuple(masks.shape)}. Resize the masks first."
        )
    if 0 in images.shape:
        raise ValueError(f"images must not be empty, found {tuple(images.shape)}.")
    if not masks.is_floating_point():
        raise ValueError(f"masks must be floating point scores, found {masks.dtype}.")
    if images.device != masks.device:
        raise ValueError(f"images are on {images.device}, masks on {masks.device}.")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, found {iterations}.")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations must be positive distances, found {tuple(dilations)}.")
