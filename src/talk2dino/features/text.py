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
from talk2dino.devices import mixed_precision, resolve_dtype
from talk2dino.features.captions import Collection
from talk2dino.features.chunks import Chunk, Extraction
from talk2dino.features.keys import BERT_KEY
from talk2dino.files import read_ahead

SORTED_BATCHES = 32
"""Batches whose captions are sorted by length together, and stored together."""


@dataclass(eq=False, kw_only=True)
class TextExtraction(Extraction):
    """Features of captions, encoded in an order in which like lengths come together.

    In a chunk of many batches the longest captions come first, and each batch is encoded at the
    length of its longest: exact, and several times faster than 77 positions for all. Where every
    position is stored there is nothing to gain, and a chunk is one batch.
    """

    unit = "captions"
    cpu_batch = 64
    completes_input = True

    model: str = "ViT-B/16"
    """Text encoder; see talk2dino.backbones.text. A name with `bert` in it loads that BERT."""
    dense: bool = False
    """Also store every position: clip_txt_out_tokens and text_input_mask."""
    second_last: bool = False
    """Also store the second-to-last block: clip_second_last_out and text_argmax."""
    batch_size: int = 256
    """Captions per forward pass (on a CPU fewer)."""

    def __post_init__(self) -> None:
        check_text(self.model, self.weights)
        super().__post_init__()
        dense = ("clip_txt_out_tokens", "text_input_mask") if self.dense else ()
        second = ("clip_second_last_out", "text_argmax") if self.second_last else ()
        self.section, self.keys = "text", ("ann_feats", *dense, *second)
        if is_bert(self.model):
            self.section, self.keys = "bert", (BERT_KEY,)
            if self.dense or self.second_last:
                raise ValueError(
                    "--extract_dense_out and --extract_second_last_dense_out work with CLIP, "
                    f"not with {self.model}"
                )

    def recorded(self) -> dict[str, Any]:
        """What decides the numbers; stored in the feature file as settings["text"] or ["bert"]."""
        weights = "pretrained" if is_bert(self.model) else default_weights(self.model)
        recorded = {"model": self.model, "weights": self.weights or weights, "dtype": self.dtype}
        return recorded | ({"amp": self.amp == "auto" or self.amp} if self.amp else {})

    @property
    def chunk_size(self) -> int:
        """Captions that are sorted by their lengths, and stored, at once."""
        return self.batch * (SORTED_BATCHES if _sortable(self.keys) else 1)

    @cached_property
    def models(self) -> TextEncoder | BertEncoder:
        return load_text(self.model, self.weights, self.runs_on)

    def items(self, collection: Collection) -> list[Any]:
        return [annotation["caption"] for annotation in collection.features.annotations]

    def results(self, collection: Collection, chunks: Sequence[range]) -> Iterator[Chunk]:
        """One chunk is tokenised while another is encoded."""
        captions, model = self.items(collection), self.models
        some = [captions[positions.start : positions.stop] for positions in chunks]
        reads = [partial(model.tokenize, texts) for texts in some]
        yield from map(self._encoded, read_ahead(reads, threads=1))

    def _encoded(self, tokens: Tensor) -> Chunk:
        """The features of some captions, in their own order, on the device."""
        model, dtype = self.models, resolve_dtype(self.dtype)
        order, batches = torch.arange(len(tokens)), [tokens]
        if _sortable(self.keys):
            order = model.lengths(tokens).argsort(descending=True, stable=True)
            batches = [model.trimmed(tokens[rows]) for rows in order.split(self.batch)]

        def features(tokens: Tensor) -> dict[str, Tensor]:
            tokens = tokens.to(self.runs_on, non_blocking=True)
            return token_features(model, tokens, self.keys, self.amp)

        found = [piece for batch in batches for piece in self.pieces(features, batch)]
        place = order.argsort().to(self.runs_on)
        columns = {key: torch.cat([some[key] for some in found])[place] for key in self.keys}
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
