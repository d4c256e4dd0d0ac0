"""At which size pictures are scored, and where their windows are."""

import dataclasses
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from talk2dino.config import check_name

STITCHES = ("uniform", "hann")
"""The mean of windows, or one in which a window's border counts least."""


@dataclass(frozen=True)
class Protocol:
    """How large a picture and its windows are; the defaults are those of all eight benchmarks."""

    short_side: int | None = 448
    """The image is resized to this short side in pixels; None: it keeps its size ..."""
    long_side: int = 2048
    """... unless its long side would exceed this."""
    window: int | None = 448
    """Side of a window in pixels; a shorter side of the image is used whole. None: one window."""
    stride: int = 224
    """Distance between neighbouring windows in pixels; the last one is shifted back inside."""
    stitch: str = "uniform"
    """How overlapping windows are averaged, one of STITCHES."""

    def __post_init__(self) -> None:
        given = [
            n for n in (self.short_side, self.long_side, self.window, self.stride) if n is not None
        ]
        if min(given) < 1:
            raise ValueError(f"sizes, windows and strides must be positive, found {self}.")
        if self.window is not None and self.stride > self.window:
            raise ValueError(
                f"a stride of {self.stride} leaves gaps between windows of {self.window} pixels. "
                f"Choose one of at most {self.window}."
            )
        check_name("stitch", self.stitch, STITCHES)

    def recorded(self) -> dict[str, Any]:
        """For settings of a run; the mean of windows is as before there was a choice."""
        plain = dataclasses.asdict(self)
        return plain if plain.pop("stitch") == "uniform" else dataclasses.asdict(self)

    def scored_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which an image is scored, rounded as MMCV does."""
        if self.short_side is None:
            return height, width
        scale = min(self.long_side / max(height, width), self.short_side / min(height, width))
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def window_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of every window of an image that is scored at this size."""
        if self.window is None:
            return height, width
        return min(self.window, height), min(self.window, width)

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """Top left pixel (y, x) of every window, row by row; the last ones end at the border."""
        tops, lefts = self.starts(height), self.starts(width)
        return [(top, left) for top in tops for left in lefts]

    def starts(self, length: int) -> list[int]:
        """First pixel of every window along a side of the image."""
        if self.window is None:
            return [0]
        count = max(length - self.window + self.stride - 1, 0) // self.stride + 1
        return [max(min(index * self.stride, length - self.window), 0) for index in range(count)]


@dataclass(frozen=True)
class Sizes:
    """A choice of sizes in place of a protocol's; None keeps the protocol's own."""

    short_side: int | None = None
    """Of the image in pixels; the longest side that is allowed grows with it."""
    window: int | None = None
    """Side of a window in pixels."""
    stride: int | None = None
    """Distance between neighbouring windows in pixels."""
    stitch: str | None = None
    """How overlapping windows are averaged: uniform, or hann for less weight at their borders."""

    def given(self) -> dict[str, Any]:
        """The choices that were made."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, protocol: Protocol) -> Protocol:
        """The protocol with these sizes.

        Raises:
            ValueError: a number below 1, a stride beyond the window, or one without windows.
        """
        changed = dataclasses.replace(protocol, **self.given())
        if self.short_side is not None:
            usual = protocol.short_side or Protocol().short_side or self.short_side
            longest = max(protocol.long_side, protocol.long_side * self.short_side // usual)
            changed = dataclasses.replace(changed, long_side=longest)
        if changed.window is None and (self.stride or self.stitch):
            raise ValueError(
                "stride and stitch mean nothing where the whole image is one window. Choose a "
                "window, too."
            )
        return changed


WHOLE = Protocol(short_side=None, window=None)
"""A picture at its own size, as one window."""


def scoring_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """(height, width) at which a picture is scored; ValueError for no number of pixels."""
    given: object = max_side  # what callers give is not what the signature promises
    if given is not None and (not isinstance(given, Integral) or given < 1):
        raise ValueError(f"max_side is a number of pixels from 1, found {max_side!r}.")
    if max_side is None or max(height, width) <= max_side:
        return height, width
    scale = max_side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)
