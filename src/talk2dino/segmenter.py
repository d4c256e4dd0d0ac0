"""The seam between methods and everything around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

BACKGROUND = "background"
Words = Sequence[Sequence[str]]
"""Per class, the words it is looked for by."""
POOLINGS = ("max", "lse")
"""How the words of a vocabulary become the score of their class: the best one, or a soft maximum
(1/t) (logsumexp(t s) - log k) over its k words, in which many words do not help by their number."""
_LSE_SCALE = 40.0
"""t, of cosines."""


@dataclass(frozen=True, eq=False)
class ClassQuery:
    """What is looked for in a picture."""

    names: tuple[str, ...]
    """Of the labels in results; the background first if there is one."""
    rows: Tensor
    """(Q, D), one per query word. What a row means belongs to the method that made it."""
    owner: Tensor | None = None
    """(Q,) int64: the place in `names` of the class that each word belongs to. None: one word per
    class, in the order of `names`, in which a background without a row is passed over."""
    background: float | None = None
    """Threshold of the background on the method's own scale; None for no background."""
    pooling: str | None = None
    """One of POOLINGS, of cosines, before what the method makes of them; None: the best word, where
    the method's publication takes it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        count = len(self.rows)
        if self.rows.ndim != 2:
            raise ValueError(f"rows must be (Q, D), found {tuple(self.rows.shape)}.")
        if self.owner is None:
            fits = count in (len(self.names), len(self.names) - (self.background is not None))
        else:
            places = self.owner.tolist() if self.owner.shape == (count,) else [None]
            fits = all(type(place) is int and 0 <= place < len(self.names) for place in places)
        given: object = self.background  # what callers give is not what the signature promises
        if isinstance(given, bool | str):
            raise ValueError(f"background is a threshold or None, found {given!r}.")
        if not fits:
            raise ValueError(
                f"{count} rows do not fit {len(self.names)} names"
                + ("." if self.owner is None else f" with owners {tuple(self.owner.shape)}.")
            )

    @classmethod
    def of_rows(cls, rows: Tensor, background: float | None = None) -> ClassQuery:
        """Rows (C, D) of classes that are called by their numbers."""
        names = tuple(map(str, range(len(rows))))
        return cls(names if background is None else (BACKGROUND, *names), rows, None, background)

    def to(self, device: torch.device | str) -> ClassQuery:
        """The same on another device."""
        owner = None if self.owner is None else self.owner.to(device)
        return replace(self, rows=self.rows.to(device), owner=owner)

    @cached_property
    def first(self) -> int:
        """The place in `names` of the first class that has a row: 0, or 1 after a background."""
        if self.owner is not None:
            return int(self.owner.min())
        return len(self.names) - len(self.rows)


class Segmenter(Protocol):
    """What the evaluator and the demo need of a method; background rules stay inside it."""

    def query(
        self, names: Sequence[str], background: float | None = None, words: Words | None = None
    ) -> ClassQuery:
        """What to look for.

        Args:
            names: of the classes. With a threshold the background is put in front, unless it is
                there.
            background: threshold of the background; None for no background.
            words: per name, the words it is looked for by; None for the vocabulary of the method.

        Raises:
            ValueError: no name, an empty one; words that do not fit the names.
        """

    def window_scores(self, windows: Tensor, query: ClassQuery) -> Tensor:
        """Score every pixel of every window.

        Args:
            windows: (B, 3, h, w) RGB float in [0, 255].
            query: from `query`.

        Returns:
            (B, K, h, w): what is averaged over windows. One channel per name of the query, unless
            the method is `Finalising`.
        """


@runtime_checkable
class FeatureSharing(Protocol):
    """A segmenter whose backbone need not run again for other classes or options."""

    def shares_features(self, other: object) -> bool:
        """Whether `other` computes the same `patch_features`."""

    def patch_features(self, windows: Tensor) -> Any:
        """What `score_features` needs of windows (B, 3, h, w)."""

    def score_features(self, features: Any, windows: Tensor, query: ClassQuery) -> Tensor:
        """As `Segmenter.window_scores`, from `patch_features` of the same windows."""


@runtime_checkable
class UniformWindows(FeatureSharing, Protocol):
    """A segmenter that finds nothing to go by in some windows; results count them."""

    def uniform_windows(self, features: Any) -> list[bool]:
        """For each window of `patch_features`, whether all of its patches are alike."""


@runtime_checkable
class PatchScoring(FeatureSharing, Protocol):
    """A segmenter that scores patches and spreads these scores over the pixels, class by class.

    So nobody has to hold all classes at all pixels. Its `patch_features` are a named tuple.
    """

    aligned_corners: bool
    """How `pixel_scores` interpolates between patches."""

    def patch_scores(self, features: Any, query: ClassQuery) -> Tensor:
        """Scores (B, K, gh, gw) of the patches, from `patch_features`.

        K classes as in `window_scores`, but for a background that is the threshold itself.
        """

    def pixel_scores(self, scores: Tensor, windows: Tensor) -> Tensor:
        """Any classes' `patch_scores` (B, c, gh, gw) over windows (B, 3, h, w): (B, c, h, w)."""

    @property
    def follows_edges(self) -> bool:
        """Whether `pixel_scores` is more than bilinear interpolation."""

    @property
    def joins_windows(self) -> bool:
        """Whether `patch_scores` has to see all windows of an image at once, and no others."""


def take_features(features: Any, index: int) -> Any:
    """Of `patch_features` of several windows, those of one: whatever has a row per window."""
    found = features._asdict().items()
    rows = {name: part[index : index + 1] for name, part in found if isinstance(part, Tensor)}
    return features._replace(**rows)


def join_features(features: Sequence[Any]) -> Any:
    """`patch_features` of windows as if they had been computed at once."""
    found = zip(features[0]._fields, zip(*features, strict=True), strict=True)
    columns = {name: torch.cat(parts) for name, parts in found if isinstance(parts[0], Tensor)}
    return features[0]._replace(**columns)


@runtime_checkable
class Finalising(Protocol):
    """A segmenter whose scores are final only after windows are averaged and resized."""

    pixelwise: bool
    """Whether `finalise` may be called for strips of rows, one after the other."""

    def finalise(self, scores: Tensor, image: Tensor, query: ClassQuery) -> Tensor:
        """From averaged scores to those whose best is the label.

        Args:
            scores: (K, H, W) averaged over windows, at the size of the labels.
            image: (3, H, W) RGB float in [0, 255]: the resized picture brought to that size.
            query: what was looked for.

        Returns:
            (C, H, W), one channel per name of the query.
        """


@runtime_checkable
class Grouping(Protocol):
    """A segmenter that divides a window into groups before it knows any class."""

    def group_maps(self, windows: Tensor) -> list[Tensor]:
        """One (B, G, h, w) per stage of grouping: how much each pixel belongs to each group.

        Args:
            windows: (B, 3, h, w) RGB float in [0, 255].
        """


@dataclass(frozen=True)
class ClassWords:
    """By which words a method looks for classes."""

    of: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    """From the name of a class to its words."""
    background: tuple[str, ...] = ()
    """Of a background that has a threshold; none: it is the threshold alone."""
    pooling: str | None = None
    """See `ClassQuery.pooling`."""
    refusal: str = ""
    """What is said of a threshold {}, where there can be no background."""

    def check_background(self, background: float | None) -> None:
        """Raise ValueError for the threshold of a background that there cannot be."""
        if background is not None and self.refusal:
            raise ValueError(self.refusal.format(background))

    def lists(
        self, names: Sequence[str], background: float | None, words: Words | None = None
    ) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The names of the labels, and per label its words.

        Args:
            names: with or without the background in front, if there is a threshold.
            background: threshold, or None.
            words: per name, in place of these.

        Raises:
            ValueError: no name, an empty one, lists of words that do not fit the names, or a
                background that there cannot be.
        """
        self.check_background(background)
        if isinstance(names, str) or not names or not all(name.strip() for name in names):
            raise ValueError(f"class names are a list without empty ones, found {names!r}.")
        if words is not None and len(words) != len(names):
            raise ValueError(f"there are words for {len(words)} classes, and {len(names)} names.")
        found = [self.of(name) for name in names] if words is None else [tuple(w) for w in words]
        labels, first = tuple(names), 0 if background is None else 1
        if first and labels[0].strip().lower() != BACKGROUND:
            labels, found = (BACKGROUND, *labels), [self.background, *found]
        elif first and words is None:
            found[0] = self.background
        if empty := [n for n, w in zip(labels, found, strict=True) if not all(map(str.strip, w))]:
            raise ValueError(f"an empty word for {empty[0]!r}.")
        # A threshold can stand alone.
        if without := [n for n, w in zip(labels[first:], found[first:], strict=True) if not w]:
            raise ValueError(f"no word for {without[0]!r}.")
        return labels, found

    def query(
        self,
        names: Sequence[str],
        background: float | None,
        words: Words | None,
        embed: Callable[[list[str]], Tensor],
    ) -> ClassQuery:
        """What to look for: `lists`, their words as rows (Q, D) of `embed`."""
        labels, of_labels = self.lists(names, background, words)
        counts = [len(of_label) for of_label in of_labels]
        rows = embed([word for of_label in of_labels for word in of_label])
        if max(counts) == 1 and sum(counts) >= len(labels) - (background is not None):
            return ClassQuery(labels, rows, None, background, self.pooling)
        owner = torch.arange(len(labels)).repeat_interleave(torch.tensor(counts))
        return ClassQuery(labels, rows, owner.to(rows.device), background, self.pooling)

    def asked_of(
        self, segmenter: Segmenter, names: Sequence[str], background: float | None
    ) -> ClassQuery:
        """What any segmenter makes of these words for the classes."""
        labels, of_labels = self.lists(names, background)
        query = segmenter.query(labels, background, of_labels)
        return replace(query, pooling=self.pooling)


def pool_words(scores: Tensor, query: ClassQuery, dim: int = 1) -> Tensor:
    """The best word of every class, or what `query.pooling` says: scores of Q words to K classes.

    The classes start with the query's first one that has words; without owners nothing changes.
    """
    if query.owner is None:
        return scores
    owner = query.owner.to(scores.device) - query.first
    shape, dim = list(scores.shape), dim % scores.ndim
    shape[dim] = len(query.names) - query.first
    beside = [-1 if d == dim else 1 for d in range(scores.ndim)]
    index = owner.view(beside).expand_as(scores)
    best = scores.new_full(shape, -torch.inf).scatter_reduce(dim, index, scores, "amax")
    if query.pooling != "lse":
        return best
    parts = (_LSE_SCALE * (scores - best.gather(dim, index))).exp()
    mean = scores.new_zeros(shape).scatter_add(dim, index, parts)
    mean /= owner.bincount(minlength=shape[dim]).view(beside)
    return best + mean.log() / _LSE_SCALE


def with_background(scores: Tensor, query: ClassQuery, dim: int = 0) -> Tensor:
    """Scores with the background's threshold: a channel of its own in front, or, where the
    background has words, the least that their channel can be."""
    if query.background is None:
        return scores
    first = scores.narrow(dim, 0, 1)
    if scores.shape[dim] < len(query.names):
        return torch.cat([torch.full_like(first, query.background), scores], dim=dim)
    rest = scores.narrow(dim, 1, scores.shape[dim] - 1)
    return torch.cat([first.clamp(min=query.background), rest], dim=dim)
