"""Caption features: the frozen text encoder's vector of each caption, and its tokens on request."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from talk2dino.backbones.text import (
    BertEncoder,
    TextEncoder,
    check_text,
    default_weights,
    is_bert,
    load_text,
    trimmed,
)
from talk2dino.backbones.tokens import Tokenizer
from talk2dino.config import check_name
from talk2dino.devices import (
    AMP_TYPES,
    MemoryFit,
    joined,
    mixed_precision,
    resolve_device,
    resolve_dtype,
)
from talk2dino.features.captions import CaptionInput
from talk2dino.features.chunks import Chunk, fetched_behind
from talk2dino.features.job import Job, Output, Work, fingerprint
from talk2dino.features.keys import CAPTION_KEYS
from talk2dino.features.store import FeatureFile
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent

BERT_KEY = "bert-base_features"
CLIP_KEYS = tuple(key for key in CAPTION_KEYS if key != BERT_KEY)
CPU_BATCH = 64
"""Captions at once on a CPU: their activations stay in its cache, those of more do not."""


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
    """Number type of mixed precision, a name of AMP_TYPES; empty for float32 throughout."""

    def __post_init__(self) -> None:
        if self.amp:
            check_name("amp", self.amp, AMP_TYPES)
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}")
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


class Encoder:
    """The frozen text encoder of a run, loaded when first needed."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.fit = MemoryFit("captions")
        self._loaded: TextEncoder | BertEncoder | None = None

    @property
    def batch_size(self) -> int:
        """Captions per forward pass on this device."""
        size = self.settings.batch_size
        return min(size, CPU_BATCH) if self.device.type == "cpu" else size

    def load(self) -> TextEncoder | BertEncoder:
        """The model, on the device."""
        if self._loaded is None:
            self._loaded = load_text(self.settings.model, self.settings.weights, self.device)
        return self._loaded


def extract_text_split(
    data: CaptionInput, job: Job, output: Output, encoder: Encoder, progress: Progress = silent
) -> FeatureFile | None:
    """Encode the captions of one split, from where an earlier run was ended, and write its output.

    If the output is the input file, features it holds already are kept unless the job overwrites.

    Returns:
        What was written; None in every process but the first.

    Raises:
        ValueError: the input holds no captions; or everything asked for, or the same keys made in
            another way.
        RuntimeError: nothing could be written.
    """
    features = data.split(output.split, output.num_splits).features
    settings = encoder.settings
    in_place = data.is_path(output.files[0])
    keep = in_place and not job.overwrite
    if keep and not job.resumed:
        _check_adds_something(features, settings, data)
    held = features.caption_features if keep else {}
    keys = tuple(key for key in settings.keys if key not in held)
    captions = [annotation["caption"] for annotation in features.annotations]
    if not captions:
        raise ValueError(f"{data.path} holds no captions to encode")
    texts = OrderedTexts(captions, encoder, job.processes)
    work = Work(
        fingerprint(captions[row] for row in texts.order.numpy()),
        len(captions),
        encoder.batch_size,
        lambda fresh: encoder.load(),
        lambda batches: _encoded(texts, encoder, keys, batches),
        texts.order,
    )
    made = job.collected(output, work, progress)
    if made is None:
        return None
    alike = (BERT_KEY,) if settings.section == "bert" else CLIP_KEYS
    result = features.completed(made.columns, False, settings.section, settings.recorded(), alike)
    output.write(result, job.folder)
    job.finish(output)
    return result


def caption_features(
    model: TextEncoder | BertEncoder, captions: list[str], keys: tuple[str, ...]
) -> dict[str, Tensor]:
    """The stored features of a batch of captions.

    Args:
        model: the text encoder.
        captions: B texts.
        keys: names of CAPTION_KEYS that this encoder makes.

    Returns:
        Key -> (B, ...) on the encoder's device: `ann_feats` (B, E), `clip_txt_out_tokens`
        (B, 77, E), `text_input_mask` (B, 77) bool, `clip_second_last_out` (B, 77, width),
        `text_argmax` (B,) int64; for BERT `bert-base_features` (B, E).
    """
    if isinstance(model, BertEncoder):
        return {BERT_KEY: model.encode(captions)}
    for key in keys:
        check_name("feature of a CLIP text encoder", key, CLIP_KEYS)
    tokens = model.tokenize(captions)
    device = next(model.parameters()).device
    return token_features(model, (trimmed(tokens) if _sortable(keys) else tokens).to(device), keys)


@torch.inference_mode()
def token_features(
    model: TextEncoder, tokens: Tensor, keys: Sequence[str], amp: str = ""
) -> dict[str, Tensor]:
    """`caption_features` of (B, T) token ids that are on the encoder's device.

    T is 77 where every position is stored; else it may end with the longest caption.
    """
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


class OrderedTexts:
    """Captions in the order in which they are encoded.

    Sorted by length, longest first, batches hold captions of like length, and each is encoded at
    the length of its longest: exact, and several times faster than 77 positions for all. Where
    every position is stored there is nothing to gain, and the order stays.

    Args:
        captions: M texts.
        encoder: its tokeniser decides the lengths; BERT tokenises later, there words count.
        processes: each of them tokenises a part.

    Attributes:
        order: (M,) int64, the caption at each place of the processing order.
        lengths: (M,) int64, of each caption, in the order of `captions`.
    """

    def __init__(
        self, captions: list[str], encoder: Encoder, processes: Processes | None = None
    ) -> None:
        processes = processes or Processes()
        self._captions = captions
        self._ids: np.ndarray | None = None
        model = encoder.load()
        if not _sortable(encoder.settings.keys):
            self.lengths = torch.ones(len(captions), dtype=torch.int64)
            self.order = torch.arange(len(captions))
            return
        if isinstance(model, BertEncoder):
            self.lengths = torch.tensor([len(caption.split()) for caption in captions])
        else:
            rank, count = processes.rank, processes.count
            start, stop = (len(captions) * number // count for number in (rank, rank + 1))
            found = processes.gather(_token_ids(model.tokenizer, captions[start:stop]))
            self._ids, lengths = (
                found[0] if count == 1 else map(np.concatenate, zip(*found, strict=True))
            )
            self.lengths = torch.from_numpy(lengths.astype(np.int64))
            self._ends = self.lengths.cumsum(0)
        self.order = self.lengths.argsort(descending=True, stable=True)

    def tokens(self, model: TextEncoder, rows: Tensor) -> Tensor:
        """(B, T) token ids of some captions, by row: up to the longest, or all 77."""
        if self._ids is None:
            return model.tokenize(self.texts(rows))
        ends, lengths = self._ends[rows].tolist(), self.lengths[rows].tolist()
        ids = [self._ids[end - size : end] for end, size in zip(ends, lengths, strict=True)]
        rows_of_ids = [torch.from_numpy(some.astype(np.int64)) for some in ids]
        return pad_sequence(rows_of_ids, batch_first=True)

    def texts(self, rows: Tensor) -> list[str]:
        """Some captions, by row."""
        return [self._captions[row] for row in rows.tolist()]


def _token_ids(tokenizer: Tokenizer, captions: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The captions' ids one after the other (uint16), and how many each has, (M,) uint8."""
    ids, lengths = array("H"), array("B")  # of 49,408 ids, and at most 77 of a caption
    for caption in captions:
        found = tokenizer.ids(caption)
        length = found.index(found[-1]) + 1  # a caption may hold the end-of-text token itself
        ids.extend(found[:length])
        lengths.append(length)
    return np.asarray(ids), np.asarray(lengths)


def _sortable(keys: Sequence[str]) -> bool:
    """Whether no position but the end-of-text token's is stored."""
    return set(keys) <= {"ann_feats", BERT_KEY}


def _check_adds_something(
    features: FeatureFile, settings: TextSettings, data: CaptionInput
) -> None:
    """Raise unless a file that keeps what it has can be completed."""
    held = [key for key in settings.keys if key in features.caption_features]
    if held and features.settings.get(settings.section) != settings.recorded():
        raise ValueError(
            f"{data.path} already holds {', '.join(held)}, made with other or unknown settings. "
            "Pass --overwrite to replace them, or --out_path to write another file."
        )
    if len(held) == len(settings.keys):
        raise ValueError(
            f"{data.path} already holds {', '.join(held)}, made with the same settings. "
            "Pass --overwrite to compute them again."
        )


def _encoded(
    texts: OrderedTexts, encoder: Encoder, keys: tuple[str, ...], batches: Sequence[range]
) -> Iterator[Chunk]:
    """The results of batches; one is fetched and stored while the next one is at work."""
    rows = (texts.order[batch.start : batch.stop] for batch in batches)
    found = (Chunk(_found(texts, encoder, keys, some)) for some in rows)
    yield from fetched_behind(found, encoder.device)


def _found(
    texts: OrderedTexts, encoder: Encoder, keys: tuple[str, ...], rows: Tensor
) -> dict[str, Tensor]:
    """The features of some captions, on the device."""
    model, settings = encoder.load(), encoder.settings
    dtype = resolve_dtype(settings.dtype)

    def features(tokens: Tensor) -> dict[str, Tensor]:
        assert isinstance(model, TextEncoder)
        found = token_features(model, tokens, keys, settings.amp)
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}

    def bert_features(some: Tensor) -> dict[str, Tensor]:
        with mixed_precision(settings.amp, encoder.device):
            return {
                k: v.to(dtype) for k, v in caption_features(model, texts.texts(some), keys).items()
            }

    if isinstance(model, BertEncoder):
        return joined(encoder.fit.pieces(bert_features, rows.to(encoder.device)))
    tokens = texts.tokens(model, rows).to(encoder.device, non_blocking=True)
    return joined(encoder.fit.pieces(features, tokens))
