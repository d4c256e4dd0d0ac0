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
from typing import Any

import torch
from torch import Tensor

from talk2dino.config import check_name
from talk2dino.features.keys import DIMENSIONS, IMAGE_KEYS
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

VISUAL_FEATURES = tuple(key for key in IMAGE_KEYS if key != "self_attn_maps")
DENSE_TEXT = "clip_txt_out_tokens"
AVERAGED_TEXT = "clip_txt_out_tokens_avg"
LAST_LAYER_TEXT = "clip_second_last_out"
TEXT_FEATURES = ("ann_feats", DENSE_TEXT, AVERAGED_TEXT, LAST_LAYER_TEXT, "bert-base_features")

BLOCK_BYTES = 16 << 20
"""Bytes read at a time when a column is read whole."""
BATCHES_AHEAD = 2
"""Batches read ahead from disk, each by its own thread."""
_ROWS = 16  # read at a time: the system may map two megabytes around every row
_MADVISE = ctypes.CDLL(None).madvise if os.name == "posix" else None


@dataclass(frozen=True, eq=False)
class Batch:
    """What a projection's forward takes for B pairs."""

    visual: Tensor
    """(B, D), or (B, H, D) per head, or (B, P, D) per patch; float32."""
    text: Tensor
    """(B, E), or (B, T, E) per token; float32."""
    extras: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of embed: self_attn_maps, cls, text_input_mask, text_argmax; and
    visual_is_unit where the visual vectors have length 1 already."""


@dataclass(frozen=True)
class FeatureChoice:
    """Which stored features a training uses.

    Raises:
        ValueError: a name is unknown, or does not go with the model.
    """

    visual: str = ""
    """One of VISUAL_FEATURES; without one, what the model needs."""
    text: str = ""
    """One of TEXT_FEATURES, likewise."""
    config: ProjectionConfig = field(default_factory=ProjectionConfig)
    """What is trained on them."""

    def __post_init__(self) -> None:
        last_layer = self.config.model_class == "CLIPLastLayer"
        weighted = self.config.weight_attn_heads is not None
        visual = self.visual or ("patch_tokens" if weighted else "disentangled_self_attn")
        text = self.text or (LAST_LAYER_TEXT if last_layer else "ann_feats")
        check_name("image feature (--feature_name)", visual, VISUAL_FEATURES)
        check_name("text feature (--text_features)", text, TEXT_FEATURES)
        if weighted and visual != "patch_tokens":
            raise ValueError(
                f"weight_attn_heads: {self.config.weight_attn_heads} learns from every patch: "
                f"it needs --feature_name patch_tokens, not {visual}"
            )
        if last_layer != (text == LAST_LAYER_TEXT):
            raise ValueError(
                f"--text_features {text} does not go with model_class {self.config.model_class}: "
                f"CLIPLastLayer is the one that is trained on {LAST_LAYER_TEXT}"
            )
        if text == DENSE_TEXT and self.config.alignment_strategy not in PAIRWISE:
            raise ValueError(
                f"--text_features {text} has a vector per token, which alignment_strategy "
                f"{self.config.alignment_strategy} cannot use. Choose one of "
                f"{', '.join(PAIRWISE)}, or --text_features {AVERAGED_TEXT}."
            )
        object.__setattr__(self, "visual", visual)
        object.__setattr__(self, "text", text)

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


class StoredPairs:
    """A set of captions, each with its image's features: one tensor per key, indexed per batch.

    Features are read whole where they fit, or left on disk. On a GPU they may take half of its free
    memory. In memory they may take `memory_bytes`; what is in memory already stays there. A file
    may be replaced or removed meanwhile; the one that was opened is read.

    Args:
        features: a feature file, mapped from disk or in memory.
        choice: which of its columns to use.
        path: the file, for messages.
        device: where the batches are needed.
        memory_bytes: see above.

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
        self.features, self.choice = features, choice
        self._path, self._device = path, torch.device(device)
        keys = (*choice.image_keys, *choice.caption_keys)
        self._columns = {key: features.require(key, path) for key in keys}
        for key, column in self._columns.items():
            kind, found = str(column.dtype).removeprefix("torch."), tuple(column.shape)
            whole = key in ("text_input_mask", "text_argmax")
            if column.ndim != DIMENSIONS[key] or column.is_floating_point() == whole:
                raise ValueError(
                    f"{path}: {key!r} has the shape {found} of {kind}; it needs {DIMENSIONS[key]} "
                    f"axes of {'whole numbers' if whole else 'fractions'}. Extract it again."
                )
        if choice.text == LAST_LAYER_TEXT:
            ends, length = self._columns["text_argmax"], self._columns[LAST_LAYER_TEXT].shape[1]
            if len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < length:
                raise ValueError(
                    f"{path}: 'text_argmax' is {ends.min()} to {ends.max()}, of {length} positions"
                )
        self.caption_rows = features.caption_rows.clone()
        """(M,) the image of each caption."""
        if not len(self):
            raise ValueError(f"{path} holds no captions")
        self._file = features.mapped_from
        self._opened = None if self._file is None else self._file.stat()
        needed = sum(
            column.numel() * (4 if key == choice.unit_key else column.element_size())
            for key, column in self._columns.items()
        )
        on_device = self._device.type == "cuda" and (
            needed <= torch.cuda.mem_get_info(self._device)[0] // 2
        )
        self.on_disk = self._file is not None and not on_device and needed > memory_bytes
        """Whether the rows of every batch are read from the file."""
        self._place = self._device if on_device else torch.device("cpu")
        self._read_whole = on_device or (self._file is not None and not self.on_disk)
        if self._read_whole:
            self._columns = {key: self._whole(key, c) for key, c in self._columns.items()}

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.caption_rows)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch for each (B,) tensor of caption numbers, in that order.

        Raises:
            RuntimeError: the file has become shorter since it was opened.
        """
        if not indices:
            return
        self._check_length()
        order = torch.cat(list(indices))
        sizes = [len(index) for index in indices]
        # The indices travel to a GPU once, not batch by batch.
        split = [part.to(self._place).split(sizes) for part in (self.caption_rows[order], order)]
        reads = (partial(self._read, *part) for part in zip(*split, strict=True))
        found = read_ahead(reads, BATCHES_AHEAD) if self.on_disk else (read() for read in reads)
        streamed = self.on_disk and self._device.type == "cuda"
        for columns in found:
            for key, values in columns.items():
                values = values.pin_memory() if streamed else values
                columns[key] = values.to(self._device, non_blocking=streamed)
            yield _batch(self.choice, columns)

    def _check_length(self) -> None:
        """What is read of a mapped file behind its end ends the process without a message."""
        file, opened = self._file, self._opened
        if not self.on_disk or file is None or opened is None or not file.is_file():
            return
        now = file.stat()
        if os.path.samestat(now, opened) and now.st_size < opened.st_size:
            raise RuntimeError(
                f"{file} had {opened.st_size} bytes when it was opened and has {now.st_size} "
                "now. Put it back as it was, and go on with --resume."
            )

    def _read(self, rows: Tensor, captions: Tensor) -> dict[str, Tensor]:
        """Key -> (B, ...) features of B images and captions, where they are kept."""
        found = {}
        for key, column in self._columns.items():
            index = rows if key in self.choice.image_keys else captions
            if not self.on_disk:
                values = column.index_select(0, index)
            else:
                values = torch.empty((len(index), *column.shape[1:]), dtype=column.dtype)
                for few, part in zip(index.split(_ROWS), values.split(_ROWS), strict=True):
                    torch.index_select(column, 0, few, out=part)
                    forget(column)
                check_finite(values, key, self._path)
            scaled = self._read_whole or key != self.choice.unit_key
            found[key] = values if scaled else unit(values.float())
        return found

    def _whole(self, key: str, column: Tensor) -> Tensor:
        """The column where it is kept, read in blocks."""
        scaled = key == self.choice.unit_key
        dtype = torch.float32 if scaled else column.dtype
        held = torch.empty(column.shape, dtype=dtype, device=self._place)
        count = max(1, BLOCK_BYTES // max(1, column[:1].nbytes))
        for block, place in zip(column.split(count), held.split(count), strict=True):
            check_finite(block, key, self._path)
            block = block.to(self._place)
            place.copy_(unit(block.float()) if scaled else block)
            if self._file is not None:
                forget(column)
        return held


def forget(column: Tensor) -> None:
    """Give back the memory of a column that is mapped from a file; it is read again when used.

    Otherwise a process that reads at random comes to hold the whole file. Never for a column of
    another kind, which would lose its content.
    """
    if _MADVISE is not None:
        start = column.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = column.data_ptr() + column.nbytes - start
        _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _batch(choice: FeatureChoice, columns: dict[str, Tensor]) -> Batch:
    """Arrange the gathered features of B pairs, key -> (B, ...), as forward takes them."""
    extras: dict[str, Any] = {"visual_is_unit": True} if choice.unit_key else {}
    if "self_attn_maps" in columns:
        extras["self_attn_maps"] = columns["self_attn_maps"].float()
    if choice.config.weight_attn_heads == "conditioned":
        extras["cls"] = columns["dino_features"].float()
    text = columns[choice.caption_keys[0]].float()
    if choice.text == AVERAGED_TEXT:
        mask = columns["text_input_mask"].bool()
        text = average_tokens(text, mask, choice.config.keep_cls, choice.config.keep_end_seq)
    elif choice.text == DENSE_TEXT:
        extras["text_input_mask"] = columns["text_input_mask"].bool()
    elif choice.text == LAST_LAYER_TEXT:
        extras["text_argmax"] = columns["text_argmax"].long()
    return Batch(columns[choice.visual].float(), text, extras)


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
        choice.visual == "disentangled_self_attn" and "num_attn_head" in recipe.written
    ):
        widths["num_attn_head"] = ("attention map", per_head.shape[-2])
    for key, (what, found) in widths.items():
        if found != getattr(config, key):
            raise ValueError(
                f"{recipe.path.name} says {key}: {getattr(config, key)}, but the {what} features "
                f"in {path} ({choice.visual}, {choice.text}) have {found}. "
                "Choose the recipe of the backbone that the features were extracted with."
            )
