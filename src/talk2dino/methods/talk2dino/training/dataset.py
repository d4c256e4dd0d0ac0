"""Pairs of a caption and its image's features, gathered batch by batch from whole tensors.

The tensors are in memory as a whole, where they are gathered by index, or left on disk, from where
threads read the rows of the next batches ahead.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from talk2dino.config import check_name
from talk2dino.features.keys import DIMENSIONS
from talk2dino.features.store import FeatureFile, check_finite
from talk2dino.files import read_ahead
from talk2dino.methods.talk2dino.alignment import PAIRWISE, takes
from talk2dino.methods.talk2dino.projection import (
    ProjectionConfig,
    average_tokens,
    images_stay,
    unit,
)
from talk2dino.methods.talk2dino.recipe import Recipe

VISUAL_FEATURES = (
    "disentangled_self_attn",
    "avg_self_attn_out",
    "dino_features",
    "second_last_out",
    "patch_tokens",
)
DENSE_TEXT = "clip_txt_out_tokens"
AVERAGED_TEXT = "clip_txt_out_tokens_avg"
LAST_LAYER_TEXT = "clip_second_last_out"
TEXT_FEATURES = ("ann_feats", DENSE_TEXT, AVERAGED_TEXT, LAST_LAYER_TEXT, "bert-base_features")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a projection's forward takes for B pairs."""

    visual: Tensor
    """(B, D), or (B, H, D) per head, or (B, P, D) per patch; float32."""
    text: Tensor
    """(B, E), or (B, T, E) per token; float32."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Keyword arguments of forward: self_attn_maps, cls, text_input_mask, text_argmax."""
    visual_is_unit: bool = False
    """Whether the visual vectors have length 1."""


@dataclass(frozen=True)
class FeatureChoice:
    """Which stored features a training uses; see `choose_features`."""

    visual: str = "disentangled_self_attn"
    """One of VISUAL_FEATURES."""
    text: str = "ann_feats"
    """One of TEXT_FEATURES."""
    config: ProjectionConfig = field(default_factory=ProjectionConfig)
    """What is trained on them."""

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Keys needed per image: also the attention logits and the CLS token for head weights."""
        more = {"static": ("self_attn_maps",), "conditioned": ("self_attn_maps", "dino_features")}
        return (self.visual, *more.get(self.config.weight_attn_heads or "", ()))

    @property
    def caption_keys(self) -> tuple[str, ...]:
        """Keys needed per caption."""
        if self.text in (DENSE_TEXT, AVERAGED_TEXT):
            return (DENSE_TEXT, "text_input_mask")
        if self.text == LAST_LAYER_TEXT:
            return (LAST_LAYER_TEXT, "text_argmax")
        return (self.text,)

    @property
    def unit_key(self) -> str | None:
        """The column that is scaled to length 1, if that is all that the model does to images."""
        return self.visual if images_stay(self.config) else None

    def for_validation(self) -> FeatureChoice:
        """As for retrieval, but where captions mix the heads: then with all, as in training."""
        routed = takes(self.config.alignment_strategy, "temperature")
        return self if routed else self.for_retrieval()

    def for_retrieval(self) -> FeatureChoice:
        """A caption meets the average map's vector, not one per head."""
        if self.visual == "disentangled_self_attn":
            return replace(self, visual="avg_self_attn_out")
        return self


def choose_features(
    config: ProjectionConfig, visual: str | None = None, text: str | None = None
) -> FeatureChoice:
    """The features a projection is trained on.

    Args:
        config: the recipe's model section.
        visual: `--feature_name`; None takes what the model needs.
        text: `--text_features`; None takes what the model needs.

    Raises:
        ValueError: a name is unknown, or does not go with the model.
    """
    last_layer = config.model_class == "CLIPLastLayer"
    weighted = config.weight_attn_heads is not None
    visual = visual or ("patch_tokens" if weighted else "disentangled_self_attn")
    text = text or (LAST_LAYER_TEXT if last_layer else "ann_feats")
    check_name("image feature (--feature_name)", visual, VISUAL_FEATURES)
    check_name("text feature (--text_features)", text, TEXT_FEATURES)
    if weighted and visual != "patch_tokens":
        raise ValueError(
            f"weight_attn_heads: {config.weight_attn_heads} learns from every patch: "
            f"it needs --feature_name patch_tokens, not {visual}"
        )
    if last_layer != (text == LAST_LAYER_TEXT):
        raise ValueError(
            f"--text_features {text} does not go with model_class {config.model_class}: "
            f"CLIPLastLayer is the one that is trained on {LAST_LAYER_TEXT}"
        )
    if text == DENSE_TEXT and config.alignment_strategy not in PAIRWISE:
        raise ValueError(
            f"--text_features {text} has a vector per token, which alignment_strategy "
            f"{config.alignment_strategy} cannot use. Choose one of "
            f"{', '.join(PAIRWISE)}, or --text_features {AVERAGED_TEXT}."
        )
    return FeatureChoice(visual, text, config)


class StoredPairs:
    """A set of captions, each with its image's features: one tensor per key, indexed per batch.

    Args:
        features: a feature file, mapped from disk or in memory.
        choice: which of its columns to use.
        path: the file, for messages.
        device: where the batches are needed.
        memory_bytes: columns that are mapped from disk are read whole if they take no more than
            this as float32; else their rows are read from disk batch by batch.

    Raises:
        ValueError: a column is missing, or there are no captions.
    """

    def __init__(
        self,
        features: FeatureFile,
        choice: FeatureChoice,
        path: str | Path,
        device: torch.device | str = "cpu",
        memory_bytes: int = 8 << 30,
    ) -> None:
        for key in (*choice.image_keys, *choice.caption_keys):
            _check_column(features.require(key, path), key, path)
        if choice.text == LAST_LAYER_TEXT:
            _check_positions(features, path)
        self.features, self.choice = features, choice
        self.caption_rows = features.caption_rows.clone()
        """(M,) the image of each caption."""
        if not len(self):
            raise ValueError(f"{path} holds no captions")
        keys = (choice.image_keys, choice.caption_keys, choice.unit_key)
        self.columns = Columns(features, *keys, torch.device(device), memory_bytes)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.caption_rows)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch for each (B,) tensor of caption numbers, in that order."""
        if not indices:
            return
        order = torch.cat(list(indices))
        sizes = [len(index) for index in indices]
        for images, captions in self.columns.read(self.caption_rows[order], order, sizes):
            yield _batch(self.choice, images, captions)


def _batch(choice: FeatureChoice, images: dict[str, Tensor], captions: dict[str, Tensor]) -> Batch:
    """Arrange the gathered features of B pairs, key -> (B, ...), as forward takes them."""
    extras = {}
    if "self_attn_maps" in images:
        extras["self_attn_maps"] = images["self_attn_maps"].float()
    if choice.config.weight_attn_heads == "conditioned":
        extras["cls"] = images["dino_features"].float()
    text = captions[choice.caption_keys[0]].float()
    if choice.text == AVERAGED_TEXT:
        mask = captions["text_input_mask"].bool()
        text = average_tokens(text, mask, choice.config.keep_cls, choice.config.keep_end_seq)
    elif choice.text == DENSE_TEXT:
        extras["text_input_mask"] = captions["text_input_mask"].bool()
    elif choice.text == LAST_LAYER_TEXT:
        extras["text_argmax"] = captions["text_argmax"].long()
    return Batch(images[choice.visual].float(), text, extras, choice.unit_key is not None)


def _check_column(column: Tensor, key: str, path: str | Path) -> None:
    """Raise ValueError unless a column has the axes and the kind of numbers that its key has."""
    kind, found = str(column.dtype).removeprefix("torch."), tuple(column.shape)
    whole = key in ("text_input_mask", "text_argmax")
    if column.ndim != DIMENSIONS[key] or column.is_floating_point() == whole:
        raise ValueError(
            f"{path}: {key!r} has the shape {found} of {kind}; it needs {DIMENSIONS[key]} axes of "
            f"{'whole numbers' if whole else 'fractions'}. Extract it again."
        )


def _check_positions(features: FeatureFile, path: str | Path) -> None:
    """Raise ValueError where the end of a text is behind its last position, or before the first."""
    ends = features.caption_features["text_argmax"]
    length = features.caption_features[LAST_LAYER_TEXT].shape[1]
    if len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < length:
        raise ValueError(
            f"{path}: 'text_argmax' is {ends.min()} to {ends.max()}, of {length} positions"
        )


def check_widths(
    images: Mapping[str, Tensor],
    captions: Mapping[str, Tensor],
    choice: FeatureChoice,
    recipe: Recipe,
    path: str | Path,
) -> None:
    """Raise ValueError unless features fit the recipe; the message has both numbers.

    The number of heads decides something only where heads are weighted. Elsewhere it may be left
    out, but it must not be wrong.

    Args:
        images, captions: key -> (n, ...), at least one of each: their shapes count.
        choice: which of them are used.
        recipe: of the training.
        path: where they are from.
    """
    config, visual = recipe.model, images[choice.visual]
    widths = {
        "dino_embed_dim": ("image", visual.shape[-1]),
        "clip_embed_dim": ("text", captions[choice.caption_keys[0]].shape[-1]),
    }
    per_head = images["self_attn_maps"] if config.weight_attn_heads else visual
    if config.weight_attn_heads or (
        choice.visual == VISUAL_FEATURES[0] and "num_attn_head" in recipe.written
    ):
        widths["num_attn_head"] = ("attention map", per_head.shape[-2])
    for key, (what, found) in widths.items():
        if found != getattr(config, key):
            raise ValueError(
                f"{recipe.path.name} says {key}: {getattr(config, key)}, but the {what} features "
                f"in {path} ({choice.visual}, {choice.text}) have {found}. "
                "Choose the recipe of the backbone that the features were extracted with."
            )


BLOCK_BYTES = 16 << 20
"""Bytes read at a time when a column is read whole."""
BATCHES_AHEAD = 2
"""Batches read ahead from disk, each by its own thread."""
_ROWS = 16  # read at a time: the system may map two megabytes around every row
_MADVISE = ctypes.CDLL(None).madvise if os.name == "posix" else None

Gathered = dict[str, Tensor]


def forget(column: Tensor) -> None:
    """Give back the memory of a column that is mapped from a file; it is read again when used.

    Otherwise a process that reads at random comes to hold the whole file. Never for a column of
    another kind, which would lose its content.
    """
    if _MADVISE is not None:
        start = column.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = column.data_ptr() + column.nbytes - start
        _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


class Columns:
    """Features of images and of captions: read whole where they fit, or left on disk.

    On a GPU they may take half of its free memory. In memory they may take `memory_bytes`; what is
    in memory already stays there. A file may be replaced or removed meanwhile; the one that was
    opened is read.

    Args:
        features: mapped from disk or in memory.
        image_keys: columns with a row per image.
        caption_keys: columns with a row per caption.
        unit_key: the column whose vectors are given with length 1, in float32.
        device: where the batches are needed.
        memory_bytes: see above.
    """

    def __init__(
        self,
        features: FeatureFile,
        image_keys: Sequence[str],
        caption_keys: Sequence[str],
        unit_key: str | None,
        device: torch.device,
        memory_bytes: int,
    ) -> None:
        self._image_keys, self._caption_keys = image_keys, caption_keys
        self._unit_key, self._device = unit_key, device
        self._file = features.mapped_from
        self._columns = {
            k: features.require(k, "the features") for k in (*image_keys, *caption_keys)
        }
        needed = sum(
            column.numel() * (4 if key == unit_key else column.element_size())
            for key, column in self._columns.items()
        )
        on_device = device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] // 2
        self.on_disk = self._file is not None and not on_device and needed > memory_bytes
        """Whether the rows of every batch are read from the file."""
        self._place = device if on_device else torch.device("cpu")
        self._read_whole = on_device or (self._file is not None and not self.on_disk)
        if self._read_whole:
            self._columns = {key: self._whole(key, c) for key, c in self._columns.items()}

    def read(
        self, rows: Tensor, captions: Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[Gathered, Gathered]]:
        """The features of batches of the given sizes, as (key -> (B, ...) tensor) pairs.

        The indices travel to a GPU once, not batch by batch.

        Args:
            rows: (n,) int64 the image of each pair, in order.
            captions: (n,) int64 the caption of each pair.
            sizes: pairs per batch; their sum is n.
        """
        split = [part.to(self._place).split(list(sizes)) for part in (rows, captions)]
        reads = (partial(self._read, *part) for part in zip(*split, strict=True))
        found = read_ahead(reads, BATCHES_AHEAD) if self.on_disk else (read() for read in reads)
        for images, texts in found:
            yield self._sent(images), self._sent(texts)

    def _read(self, rows: Tensor, captions: Tensor) -> tuple[Gathered, Gathered]:
        return (
            {key: self._take(key, rows) for key in self._image_keys},
            {key: self._take(key, captions) for key in self._caption_keys},
        )

    def _take(self, key: str, index: Tensor) -> Tensor:
        column = self._columns[key]
        if not self.on_disk:
            values = column.index_select(0, index)
        else:
            values = torch.empty((len(index), *column.shape[1:]), dtype=column.dtype)
            for few, part in zip(index.split(_ROWS), values.split(_ROWS), strict=True):
                torch.index_select(column, 0, few, out=part)
                forget(column)
            check_finite(values, key, self._file or "")
        if self._read_whole:
            return values
        return unit(values.float()) if key == self._unit_key else values

    def _whole(self, key: str, column: Tensor) -> Tensor:
        """The column where it is kept, read in blocks."""
        dtype = torch.float32 if key == self._unit_key else column.dtype
        held = torch.empty(column.shape, dtype=dtype, device=self._place)
        count = max(1, BLOCK_BYTES // max(1, column[:1].nbytes))
        for start in range(0, len(column), count):
            block = column[start : start + count]
            check_finite(block, key, self._file or "the features")
            block = block.to(self._place)
            held[start : start + count] = unit(block.float()) if key == self._unit_key else block
            if self._file is not None:
                forget(column)
        return held

    def _sent(self, gathered: Gathered) -> Gathered:
        if not self.on_disk or self._device.type != "cuda":
            return {key: values.to(self._device) for key, values in gathered.items()}
        return {
            key: values.pin_memory().to(self._device, non_blocking=True)
            for key, values in gathered.items()
        }
