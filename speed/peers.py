"""ProxyCLIP, CLIP-DINOiser and FreeDA on one picture, with towers of their published sizes.

Both sides use the same towers, whose weights are seeded, and the same random rows for classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speed.case import LITERAL, SHIPPED, Case, Prepare, Step

CLASSES = 171
_SEEDED = "seeded:0"


def problem(model: str, size_hw: tuple[int, int], device: str = "cpu") -> tuple[Any, Any, Any]:
    """The segmenter of COCO-Stuff, rows (C, D) of unit length, and a picture (3, H, W) uint8."""
    from talk2dino.methods.registry import load_segmenter

    segmenter: Any = load_segmenter(model, _SEEDED, benchmark="coco_stuff", device=device)
    generator = torch.Generator().manual_seed(0)
    widths = [segmenter.image.embed_dim]
    if model.startswith("freeda"):
        widths = [segmenter.vision.embed_dim, *widths]
    rows = torch.cat(
        [
            torch.nn.functional.normalize(torch.randn(CLASSES, w, generator=generator), dim=1)
            for w in widths
        ],
        dim=1,
    )
    return segmenter, rows.to(device), blobs(size_hw)


def blobs(size_hw: tuple[int, int]) -> torch.Tensor:
    """Soft blobs of colour with a little noise, (3, H, W) uint8: superpixels as of photographs."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 9, 12, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size_hw, mode="bicubic")[0]
    noise = torch.randn(3, *size_hw, generator=generator) * 6
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def shipped_labels(segmenter: Any, rows: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """(H, W) as `evaluate` makes them."""
    from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
    from talk2dino.segmenter import ClassQuery

    size_hw = (picture.shape[-2], picture.shape[-1])
    item = Picture(picture, size_hw, [Task(segmenter, ClassQuery.of_rows(rows))])
    ((_, (labels,)),) = label_pictures([item], segmenter.protocol, Batching(4), rows.device)
    return labels


def literal_labels(segmenter: Any, rows: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """(H, W) as the papers read."""
    from tests.literal.evaluation import image_labels
    from tests.literal.peers import clip_dinoiser_scores, freeda_scores, proxyclip_scores

    scores = {
        "ProxyClipSegmenter": proxyclip_scores,
        "ClipDinoiserSegmenter": clip_dinoiser_scores,
        "FreeDASegmenter": freeda_scores,
    }[type(segmenter).__name__]
    protocol = segmenter.protocol
    with torch.inference_mode():
        return image_labels(
            lambda window: scores(segmenter, window, rows),
            picture[None].float(),
            picture.shape[-2:],
            protocol.window,
            protocol.stride,
        )


def _side(labels: Any, model: str, size_hw: tuple[int, int]) -> Prepare:
    def prepare(device: str, folder: Path) -> Step:
        found = problem(model, size_hw, device)

        def step() -> torch.Tensor:
            counts = labels(*found).flatten().bincount(minlength=CLASSES)
            return counts.double() / counts.sum()  # shares of the picture

        return step

    return prepare


def _case(model: str, size_hw: tuple[int, int], windows: int) -> Case:
    height, width = size_hw
    return Case(
        f"{model} on a picture of {height} x {width}, {CLASSES} classes",
        {
            SHIPPED: _side(shipped_labels, model, size_hw),
            LITERAL: _side(literal_labels, model, size_hw),
        },
        repeats=3,
        work=windows,
        unit="windows",
    )


CASES = {
    "proxyclip": _case("proxyclip_vitb", (336, 448), 2),
    "clip_dinoiser": _case("clip_dinoiser", (448, 672), 2),
    "freeda": _case("freeda_vitl", (448, 448), 1),
}
