"""Caption features: the frozen text encoder's vector of each caption, and its tokens on request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.seeded import default_weights
from talk2dino.backbones.text import (
    BertEncoder,
    TextEncoder,
    check_text,
    is_bert,
    load_text,
)
from talk2dino.config import check_at_least, check_name
from talk2dino.devices import AMP_TYPES, mixed_precision, resolve_dtype
from talk2dino.features.captions import Collection
from talk2dino.features.chunks import Chunk, Extraction
from talk2dino.features.keys import BERT_KEY
from talk2dino.files import read_ahead

SORTED_BATCHES = 32
"""Batches whose captions are sorted by length together, and stored together."""


@dataclass(frozen=True)
class TextSettings:
    """What is extracted from captions, and how."""

    model: str = "ViT-B/16"
    """Text encoder; see talk2dino.backbones.text. A name with `bert` in it loads that BERT."""
    weights: str | None = None
    """`pretrained`, a file, or `seeded:<n>` (default: the model's own)."""
    dense: bool = False
    """Also store every position: clip_txt_out_tokens and text_input_mask."""
    second_last: bool = False
    """Also store the second-to-last block: clip_second_last_out and text_argmax."""
    dtype: str = "float32"
    """Number type of the stored tensors; masks and positions keep theirs."""
    device: str = "auto"
    """Where the encoder runs: auto, cpu, cuda, cuda:<n> or mps."""
    batch_size: int = 256
    """Captions per forward pass (on a CPU fewer)."""
    amp: str = ""
    """Type of mixed precision, empty for none; auto is bfloat16 (float16 on mps). What is stored is
    of `dtype` in any case."""

    def __post_init__(self) -> None:
        if self.amp:
            check_name("amp", self.amp, AMP_TYPES)
        check_at_least(1, batch_size=self.batch_size)
        check_text(self.model, self.weights)
        resolve_dtype(self.dtype)
        if is_bert(self.model) and (self.dense or self.second_last):
            raise ValueError(
                "--extract_dense_out and --extract_second_last_dense_out work with CLIP, "
                f"not with {self.model}"
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """What is stored; names of CAPTION_KEYS."""
        if is_bert(self.model):
            return (BERT_KEY,)
        dense = ("clip_txt_out_tokens", "text_input_mask") if self.dense else ()
        second = ("clip_second_last_out", "text_argmax") if self.second_last else ()
        return ("ann_feats", *dense, *second)

    @property
    def section(self) -> str:
        """Where the feature file's settings keep `recorded()`: `text` or `bert`."""
        return "bert" if is_bert(self.model) else "text"

    def recorded(self) -> dict[str, Any]:
        """What decides the numbers; stored in the feature file."""
        weights = "pretrained" if is_bert(self.model) else default_weights(self.model)
        recorded = {"model": self.model, "weights": self.weights or weights, "dtype": self.dtype}
        return recorded | ({"amp": self.amp == "auto" or self.amp} if self.amp else {})


class TextExtraction(Extraction):
    """Features of captions, encoded in an order in which like lengths come together.

    In a chunk of many batches the longest captions come first, and each batch is encoded at the
    length of its longest: exact, and several times faster than 77 positions for all. Where every
    position is stored there is nothing to gain, and a chunk is one batch.
    """

    settings: TextSettings
    unit = "captions"
    cpu_batch = 64
    completes_input = True

    @property
    def chunk_size(self) -> int:
        """Captions that are sorted by their lengths, and stored, at once."""
        return self.batch_size * (SORTED_BATCHES if _sortable(self.settings.keys) else 1)

    @cached_property
    def models(self) -> TextEncoder | BertEncoder:
        """The encoder."""
        return load_text(self.settings.model, self.settings.weights, self.device)

    def items(self, collection: Collection) -> list[Any]:
        """The captions."""
        return [annotation["caption"] for annotation in collection.features.annotations]

    def results(self, collection: Collection, chunks: Sequence[range]) -> Iterator[Chunk]:
        """One chunk is tokenised while another is encoded."""
        captions, model = self.items(collection), self.models
        some = [captions[positions.start : positions.stop] for positions in chunks]
        reads = [partial(model.tokenize, texts) for texts in some]
        yield from map(self._encoded, read_ahead(reads, threads=1))

    def _encoded(self, tokens: Tensor) -> Chunk:
        """The features of some captions, in their own order, on the device."""
        model, settings = self.models, self.settings
        dtype = resolve_dtype(settings.dtype)
        order, batches = torch.arange(len(tokens)), [tokens]
        if _sortable(settings.keys):
            order = model.lengths(tokens).argsort(descending=True, stable=True)
            batches = [model.trimmed(tokens[rows]) for rows in order.split(self.batch_size)]

        def features(tokens: Tensor) -> dict[str, Tensor]:
            tokens = tokens.to(self.device, non_blocking=True)
            return token_features(model, tokens, settings.keys, settings.amp)

        found = [piece for batch in batches for piece in self.pieces(features, batch)]
        place = order.argsort().to(self.device)
        columns = {key: torch.cat([some[key] for some in found])[place] for key in settings.keys}
        return Chunk({k: v.to(dtype) if v.is_floating_point() else v for k, v in columns.items()})


@torch.inference_mode()
def token_features(
    model: TextEncoder | BertEncoder, tokens: Tensor, keys: Sequence[str], amp: str = ""
) -> dict[str, Tensor]:
    """The stored features of a batch of captions.

    Args:
        model: the text encoder.
        tokens: (B, ..., T) ids, on its device. T is 77 where every position is stored; else it may
            end with the longest caption.
        keys: names of CAPTION_KEYS that this encoder makes.
        amp: type of mixed precision, a name of AMP_TYPES.

    Returns:
        Key -> (B, ...) on the encoder's device: `ann_feats` (B, E), `clip_txt_out_tokens`
        (B, 77, E), `text_input_mask` (B, 77) bool, `clip_second_last_out` (B, 77, width),
        `text_argmax` (B,) int64; for BERT `bert-base_features` (B, E).
    """
    if isinstance(model, BertEncoder):
        with mixed_precision(amp, tokens.device):
            return {BERT_KEY: model.pooled(tokens).float()}
    dense, second_last = "clip_txt_out_tokens" in keys, "clip_second_last_out" in keys
    with mixed_precision(amp, tokens.device):
        found = model(tokens, dense=dense, penultimate=second_last)
    columns = {
        "ann_feats": found.pooled,
        "clip_txt_out_tokens": found.tokens,
        "text_input_mask": found.mask,
        "clip_second_last_out": found.penultimate,
        "text_argmax": found.end_positions,
    }
    return {key: columns[key] for key in keys}


def _sortable(keys: Sequence[str]) -> bool:
    """Whether no position but the end-of-text token's is stored."""
    return set(keys) <= {"ann_feats", BERT_KEY}
