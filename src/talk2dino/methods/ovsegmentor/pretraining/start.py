"""The model a pretraining begins with, and its tokeniser."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.checkpoints import check_layout, read_state_dict
from talk2dino.methods.ovsegmentor.checkpoints import (
    TOKENIZER_FOLDER,
    check_source,
    load_stage1,
    read_checkpoint,
)
from talk2dino.methods.ovsegmentor.config import OVSegmentorConfig
from talk2dino.methods.ovsegmentor.data.rows import Rows
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.config import PretrainingRecipe
from talk2dino.methods.ovsegmentor.text import TOY, Tokenizer, load_tokenizer, toy_tokenizer
from talk2dino.methods.ovsegmentor.vision import load_dino

PRETRAINED = "pretrained"
_DINO_MODELS = {768: "vit_base_patch16_224.dino", 384: "vit_small_patch16_224.dino"}
_CAPTIONS = 10_000  # that the toy tokeniser learns its words from
_WORDS = "abcdefghijklmnopqrstuvwxyz"


def check_start(recipe: PretrainingRecipe) -> None:
    """Raise unless the first weights can be where the recipe says; reads nothing."""
    start = recipe.start
    if start.stage1:
        check_source(start.stage1)
    if start.dino == PRETRAINED and recipe.config.vision.width not in _DINO_MODELS:
        raise ValueError(f"start: there are no pretrained DINO weights for {recipe.model}")
    if start.dino and start.dino != PRETRAINED and not Path(start.dino).is_file():
        raise FileNotFoundError(f"start: dino: {start.dino}: no such file")
    if start.text and recipe.config.text.name == TOY:
        raise ValueError(f"start: the text encoder of {recipe.model} has no pretrained weights")


def first_model(recipe: PretrainingRecipe) -> OVSegmentor:
    """The model of the recipe's stage with its first weights, in training mode, on the CPU.

    Raises:
        FileNotFoundError, ValueError: weights are absent, damaged or of another size.
        RuntimeError: they could not be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = _stage2(recipe) if recipe.stage == 2 else _stage1(recipe)
    if recipe.train.freeze_text:
        model.text_encoder.transformer.requires_grad_(False)
    return model.train()


def first_tokenizer(recipe: PretrainingRecipe) -> Tokenizer:
    """The tokeniser of the recipe's text encoder; the toy's has characters only yet."""
    folder = Path(recipe.start.stage1 or "") / TOKENIZER_FOLDER
    came_along = recipe.start.stage1 is not None and folder.is_dir()
    return load_tokenizer(recipe.config.text, folder if came_along else None)


def with_words(tokenizer: Tokenizer, config: OVSegmentorConfig, rows: Rows) -> Tokenizer:
    """The toy tokeniser with the commonest words of some captions, as many as its encoder takes."""
    counts: Counter[str] = Counter()
    for row in itertools.islice(rows.usable.tolist(), _CAPTIONS):
        words = "".join(c if c in _WORDS else " " for c in rows.caption(row).lower()).split()
        counts.update(word for word in words if len(word) > 1)
    room = config.text.vocabulary - len(tokenizer.tokenizer)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return Tokenizer(toy_tokenizer(ranked[:room]), config.text.positions)


def saved_tokenizer(config: OVSegmentorConfig, tokenizer: Tokenizer) -> Any:
    """What is saved beside the weights: only a tokeniser that has no name elsewhere."""
    if config.text.name != TOY:
        return None
    fast = tokenizer.tokenizer.backend_tokenizer
    fast.no_truncation()  # as the last batch left them: a run that is resumed at its end has none
    fast.no_padding()
    return tokenizer.tokenizer


def _stage1(recipe: PretrainingRecipe) -> OVSegmentor:
    model = OVSegmentor(recipe.config, "stage1", recipe.weights, recipe.mask_loss)
    start = recipe.start
    if start.dino:
        load_dino(model.img_encoder, _dino(start.dino, recipe.config.vision.width))
    if start.text:
        model.text_encoder.load_pretrained(None if start.text == PRETRAINED else start.text)
    return model


def _stage2(recipe: PretrainingRecipe) -> OVSegmentor:
    assert recipe.start.stage1 is not None
    checkpoint = read_checkpoint(recipe.start.stage1, recipe.model)
    model = OVSegmentor(checkpoint.config, "stage2", recipe.weights, recipe.mask_loss)
    load_stage1(model, checkpoint.state, checkpoint.source)
    return model


def _dino(source: str, width: int) -> dict[str, Tensor]:
    if source != PRETRAINED:
        state = read_state_dict(source)
        check_layout(state, source, "DINO's own dino_*_pretrain.pth, or timm's file")
        return state
    import timm

    name = _DINO_MODELS[width]
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"could not load DINO's weights {name} ({reason}). Give a local file as start: dino:"
        ) from error
