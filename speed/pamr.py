"""PAMR: neighbours as bags of rows against dilated convolutions with a 48-fold tensor."""

from __future__ import annotations

from pathlib import Path

import torch

from speed.case import LITERAL, SHIPPED, Case, Step

SIDE = 448
PHOTOGRAPH = (3000, 4000)


def _problem(
    classes: int, device: str, size_hw: tuple[int, int] = (SIDE, SIDE)
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, *size_hw, generator=generator) * 255
    masks = torch.rand(1, classes, *size_hw, generator=generator)
    return images.to(device), masks.to(device)


def _shipped(classes: int, device: str, folder: Path) -> Step:
    from talk2dino.refine.pamr import pamr

    images, masks = _problem(classes, device)
    return lambda: pamr(images, masks)


def _literal(classes: int, device: str, folder: Path) -> Step:
    from tests.literal.pamr import pamr

    images, masks = _problem(classes, device)
    return lambda: pamr(images, masks)


def _case(classes: int) -> Case:
    return Case(
        f"PAMR, {classes} classes, {SIDE} x {SIDE}, 10 iterations",
        {
            SHIPPED: lambda device, folder: _shipped(classes, device, folder),
            LITERAL: lambda device, folder: _literal(classes, device, folder),
        },
        targets={LITERAL: 30.0},
        limits={"peak_share": 1 / 8},
        cuda_rate=333.0 if classes == 21 else 0.0,
        work=1,
        unit="windows",
    )


def _photograph(device: str, folder: Path) -> Step:
    from talk2dino.refine.pamr import pamr

    images, masks = _problem(3, device, PHOTOGRAPH)
    return lambda: pamr(images, masks)


def _plain_photograph(device: str, folder: Path) -> Step:
    from talk2dino.refine.pamr import plain_pamr

    images, masks = _problem(3, device, PHOTOGRAPH)
    return lambda: plain_pamr(images, masks, 10, (1, 2, 4, 8, 12, 24))


CASES = {
    "pamr": _case(21),
    "pamr_171": _case(171),
    "photograph": Case(
        "PAMR of a photograph of 12 megapixels, 3 classes, against all of it at once",
        {SHIPPED: _photograph, LITERAL: _plain_photograph},
        repeats=3,
        targets={LITERAL: 2.0},
        limits={"peak_share": 1 / 4},
    ),
}
