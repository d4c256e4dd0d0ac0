"""Pixel-adaptive mask refinement (PAMR, Araslanov and Roth 2020).

Every pixel's scores are replaced, ten times, by a weighted mean over its 48 neighbours: eight
directions at six distances. A neighbour weighs more the more its colour resembles the pixel's,
measured against the contrast around that pixel. `plain_pamr` says it in PyTorch; `pamr` gives the
same result in whichever of the faster ways fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.refine.pamr_bags import average_in_bags

Refine = Callable[[Tensor, Tensor, int, Sequence[int]], Tensor]
"""`pamr` of checked images and masks, both float32 or both float64, at least one iteration."""

_DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
# Measured on two cores: looking neighbours up costs as much for one class as for eight.
_ENOUGH_CLASSES = 6
_BAND_PIXELS = 2**16  # per band of weights; half or twice as many is no faster
_MOST_WEIGHTS = 2**28  # numbers, 1 GiB, that bags of a whole picture may take


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


def _with_margin(bands: Mapping[int, Tensor], band: int, margin: int) -> Tensor:
    """A band (C, h, W) with `margin` rows and columns of its neighbours, or of the border."""
    parts = [bands[band]]
    if band - 1 in bands:
        parts.insert(0, bands[band - 1][:, -margin:])
    if band + 1 in bands:
        parts.append(bands[band + 1][:, :margin])
    above = 0 if band - 1 in bands else margin
    rows = sum(part.shape[1] for part in parts)
    below = 2 * margin + bands[band].shape[1] - above - rows
    padding = (margin, margin, above, below)
    return F.pad(torch.cat(parts, dim=1)[None], padding, mode="replicate")[0]


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
    scale = 1 / (1e-8 + 0.1 * variance.sqrt())  # (B, 3, H, W)

    batch, _, height, width = images.shape
    logits = images.new_empty(batch, len(_DIRECTIONS) * len(dilations), height, width)
    difference = torch.empty_like(images)
    for index, neighbours in enumerate(_shifted(padded, dilations)):
        torch.sub(neighbours, images, out=difference)
        torch.mean(difference.abs_().mul_(scale), dim=1, out=logits[:, index])
    logits.neg_()
    # A softmax in place: at 12 megapixels the weights alone take 2.3 GB.
    logits -= logits.amax(dim=1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(dim=1, keepdim=True))


def _pad(values: Tensor, dilations: Sequence[int]) -> Tensor:
    """Repeat the border of (B, C, H, W) as far as the farthest neighbour."""
    return F.pad(values, (max(dilations),) * 4, mode="replicate")


def _rows_padded(values: Tensor, top: int, rows: int, margin: int) -> Tensor:
    """What `_pad` returns for those of the `rows` from `top` on that there are."""
    bottom = min(top + rows, values.shape[-2])
    first, last = max(0, top - margin), min(values.shape[-2], bottom + margin)
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
        return _pamr_in_bags if masks.shape[1] >= _ENOUGH_CLASSES else _pamr_in_bands
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
    only `iterations` + 1 bands are there at a time, and each of them is made once.
    """
    refined = masks.new_empty(masks.shape)
    width = masks.shape[-1]
    margin = max(dilations)
    rows = max(margin, _BAND_PIXELS // width)
    for image, scores, result in zip(images, masks, refined, strict=True):
        weights: dict[int, Tensor] = {}  # by band
        done = [dict(enumerate(scores.split(rows, dim=1)))]  # by iteration and band
        done += [{} for _ in range(iterations)]
        bands = len(done[0])
        for step in range(bands + iterations - 1):
            if step < bands:
                part = _rows_padded(image[None], step * rows, rows, margin)
                weights[step] = _affinities_inside(part, dilations)[0, :, None]
            for iteration in range(iterations):
                band, before = step - iteration, done[iteration]
                if 0 <= band < bands:
                    around = _with_margin(before, band, margin)
                    done[iteration + 1][band] = _average_once(around, weights[band], dilations)
                    before.pop(band - 1, None)
            last = step - iterations + 1
            if last >= 0:
                result[:, last * rows : (last + 1) * rows] = done[-1].pop(last)
                del weights[last]
    return refined


def _pamr_in_bags(
    images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]
) -> Tensor:
    """`plain_pamr` in float32 on the CPU, without gradients: classes innermost, image by image.

    A picture whose weights would take too much memory is divided into rows, with as many more on
    either side as scores travel.
    """
    height, width = masks.shape[-2:]
    margin = iterations * max(dilations)
    most = _MOST_WEIGHTS // (len(_DIRECTIONS) * len(dilations) * width)
    if height <= most:
        return _pamr_of_all_rows(images, masks, iterations, dilations)
    refined = masks.new_empty(masks.shape)
    rows = max(margin, most - 2 * margin)
    for top in range(0, height, rows):
        first = max(0, top - margin)
        part = slice(first, top + rows + margin)
        found = _pamr_of_all_rows(images[..., part, :], masks[..., part, :], iterations, dilations)
        refined[..., top : top + rows, :] = found[..., top - first : top - first + rows, :]
    return refined


@torch.no_grad()
def _pamr_of_all_rows(
    images: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int]
) -> Tensor:
    refined = masks.new_empty(masks.shape)
    for image, scores, result in zip(images, masks, refined, strict=True):
        weights = _affinities_innermost(image[None], dilations)
        average_in_bags(scores, weights, _steps(dilations), iterations, result)
    return refined


def _affinities_innermost(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """`affinities` of one image (1, 3, H, W) as (H, W, 8K), made in bands that fit the cache."""
    height, width = image.shape[-2:]
    weights = image.new_empty(height, width, len(_DIRECTIONS) * len(dilations))
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = _rows_padded(image, top, rows, max(dilations))
        weights[top : top + rows] = _affinities_inside(band, dilations)[0].movedim(0, -1)
    return weights


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
