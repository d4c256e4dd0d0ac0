"""Caption features: the frozen text encoder's vector of each caption, and its tokens on request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talk2dino.config import check_name
from talk2dino.devices import resolve_device, resolve_dtype
from talk2dino.features.captions import CaptionInput
from talk2dino.features.job import Job, Output, fingerprint
from talk2dino.features.keys import CAPTION_KEYS
from talk2dino.features.parts import Batch
from talk2dino.features.progress import Progress, silent
from talk2dino.features.store import FeatureFile
from talk2dino.text import (
    BertEncoder,
    TextEncoder,
    check_text,
    default_weights,
    is_bert,
    load_text,
)

logger = logging.getLogger(__name__)

BERT_KEY = "bert-base_features"
CLIP_KEYS = tuple(key for key in CAPTION_KEYS if key != BERT_KEY)


@dataclass(frozen=True)
class TextSettings:
    """What is extracted from captions, and how."""

    model: str = "ViT-B/16"
    """Text encoder; see talk2dino.text. A name with `bert` in it loads that BERT."""
    weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; None means the model's default."""
    dense: bool = False
    """Also store every position: clip_txt_out_tokens and text_input_mask."""
    second_last: bool = False
    """Also store the second-to-last block: clip_second_last_out and text_argmax."""
    dtype: str = "float32"
    """Number type of the stored tensors; masks and positions keep theirs."""
    device: str = "auto"
    """Where the encoder runs."""
    batch_size: int = 256
    """Captions per forward pass."""

    def __post_init__(self) -> None:
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
        return {"model": self.model, "weights": self.weights or weights, "dtype": self.dtype}


class Encoder:
    """The frozen text encoder of a run, loaded when first needed."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self._loaded: TextEncoder | BertEncoder | None = None

    def load(self) -> TextEncoder | BertEncoder:
        """The model, on the device."""
        if self._loaded is None:
            self._loaded = load_text(self.settings.model, self.settings.weights, self.device)
        return self._loaded


def extract_text_split(
    data: CaptionInput, job: Job, output: Output, encoder: Encoder, progress: Progress = silent
) -> FeatureFile:
    """Encode the captions of one split, from where an earlier run was ended, and write its output.

    If the output is the input file, features it holds already are kept unless the job overwrites.

    Raises:
        ValueError: the input holds no captions; or everything asked for, or the same keys made in
            another way.
        RuntimeError: nothing could be written.
    """
    features = data.split(output.split, output.num_splits).features
    settings = encoder.settings
    in_place = data.path.resolve() == output.files[0].resolve()
    keep = in_place and not job.overwrite
    if keep and not job.resumed:
        _check_adds_something(features, settings, data)
    held = features.caption_features if keep else {}
    keys = tuple(key for key in settings.keys if key not in held)
    captions = [annotation["caption"] for annotation in features.annotations]
    if not captions:
        raise ValueError(f"{data.path} holds no captions to encode")
    order = processing_order(captions, sort=not (settings.dense or settings.second_last))
    parts = job.parts(output, fingerprint(captions))
    if parts.stop < len(captions):
        encoder.load()  # before the bar, whose rate is that of the work
        with progress(len(captions), parts.stop) as bar:
            for number, batch in enumerate(_encoded(captions, order, encoder, keys, parts.stop)):
                done = batch.stop - parts.stop
                parts.append(batch)
                if number == 0:
                    parts.check_room(len(captions))
                bar.update(done)
    identity = torch.equal(order, torch.arange(len(order)))
    columns = parts.columns(None if identity else order.argsort())
    result = _assembled(features, columns, settings)
    output.write(result, job.folder)
    job.finish(output, parts)
    return result


@torch.inference_mode()
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
    device = next(model.parameters()).device
    dense, second_last = "clip_txt_out_tokens" in keys, "clip_second_last_out" in keys
    found = model(model.tokenize(captions).to(device), dense=dense, penultimate=second_last)
    columns = {
        "ann_feats": found.pooled,
        "clip_txt_out_tokens": found.tokens,
        "text_input_mask": found.mask,
        "clip_second_last_out": found.penultimate,
        "text_argmax": found.end_positions,
    }
    return {key: columns[key] for key in keys}


def processing_order(captions: list[str], sort: bool) -> Tensor:
    """(M,) int64: the caption at each place of the processing order.

    Sorted by number of words, longest first, batches hold captions of like length, and the encoder
    cuts each batch to its longest: exact, and several times faster than 77 positions for all.
    """
    if not sort:
        return torch.arange(len(captions))
    words = torch.tensor([len(caption.split()) for caption in captions])
    return words.argsort(descending=True, stable=True)


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
    captions: list[str], order: Tensor, encoder: Encoder, keys: tuple[str, ...], start: int
) -> Iterator[Batch]:
    model = encoder.load()
    dtype = resolve_dtype(encoder.settings.dtype)
    for rows in order[start:].split(encoder.settings.batch_size):
        texts = [captions[row] for row in rows.tolist()]
        columns = caption_features(model, texts, keys)
        start += len(texts)
        yield Batch(
            start,
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in columns.items()},
        )


def _assembled(
    features: FeatureFile, columns: dict[str, Tensor], settings: TextSettings
) -> FeatureFile:
    """The input with the new columns; older ones of the same kind stay if made the same way."""
    result = FeatureFile(
        features.images,
        features.annotations,
        features.image_features,
        features.caption_features,
        features.settings,
    )
    result.extra, result.layout = features.extra, features.layout
    same_kind = (BERT_KEY,) if settings.section == "bert" else CLIP_KEYS
    older = [key for key in same_kind if key in result.caption_features and key not in columns]
    if older and features.settings.get(settings.section) != settings.recorded():
        logger.warning(
            "%s of the input were made with other or unknown settings and are left out",
            ", ".join(older),
        )
        for key in older:
            del result.caption_features[key]
    result.caption_features |= columns
    result.settings[settings.section] = settings.recorded()
    return result
