"""Text encoders: BERT and RoBERTa through transformers, and a toy BERT that needs no download."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import load_strict
from talk2dino.backbones.seeded import require_transformers, transformers_loading
from talk2dino.config import as_texts
from talk2dino.methods.ovsegmentor.config import TextConfig

TOY = "toy"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens(NamedTuple):
    """A batch of tokenised texts."""

    ids: Tensor
    """(B, T) int64 token ids, padded on the right."""
    mask: Tensor
    """(B, T) int64, 1 where there is a token."""

    def to(self, device: str | torch.device) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


class TextEncoder(nn.Module):
    """A transformer of the transformers library; only its last layer is used.

    It is built without weights. Its pooler is part of the published checkpoints, but nothing
    reads it.

    Raises:
        ImportError: transformers is not installed.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        require_transformers("OVSegmentor")
        from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

        self.config = config
        settings: dict[str, Any] = {
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "intermediate_size": 4 * config.width,
            "max_position_embeddings": config.positions,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout,
        }
        if config.kind == "roberta":
            settings |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
            self.transformer: nn.Module = RobertaModel(RobertaConfig(**settings))
        else:
            self.transformer = BertModel(BertConfig(**settings))

    def forward(self, tokens: Tokens) -> Tensor:
        """Token ids (B, T) to the last layer's outputs (B, T, E); position 0 stands for the text.

        Every segment id is 0.
        """
        return self.transformer(input_ids=tokens.ids, attention_mask=tokens.mask)[0]

    def load_pretrained(self, name: str | Path | None = None) -> None:
        """Start from published weights of the language model.

        Args:
            name: a model id or local folder; by default the configuration's.

        Raises:
            RuntimeError: they could not be loaded or downloaded.
            ValueError: they are of another size.
        """
        from transformers import AutoModel

        name = str(name or self.config.name)
        with transformers_loading("text encoder", name):
            source = AutoModel.from_pretrained(name, add_pooling_layer=True)
        load_strict(self.transformer, source.state_dict(), name)


class Tokenizer:
    """Texts to token ids, by a tokeniser of the transformers library.

    Args:
        tokenizer: a fast or slow tokeniser.
        positions: the longest text the encoder can take, in tokens.
    """

    def __init__(self, tokenizer: Any, positions: int) -> None:
        self.tokenizer = tokenizer
        self.positions = min(positions, tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str], length: int | None = None) -> Tokens:
        """Tokenise texts.

        Args:
            texts: any texts; what is too long is cut, and ends with the end token all the same.
            length: pad and cut to this many tokens, as in training (77); None pads to the longest.
        """
        encoded = self.tokenizer(
            as_texts(texts),
            padding="longest" if length is None else "max_length",
            truncation=True,
            max_length=min(length or self.positions, self.positions),
            return_tensors="pt",
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])


def load_tokenizer(config: TextConfig, folder: str | Path | None = None) -> Tokenizer:
    """The tokeniser of a text encoder.

    Args:
        config: whose.
        folder: a local copy (`Tokenizer.tokenizer.save_pretrained`); by default `config.name`.

    Raises:
        RuntimeError: it could not be loaded or downloaded.
        ValueError: it has more tokens than the encoder.
    """
    from transformers import AutoTokenizer

    name = str(folder or config.name)
    if name == TOY:
        tokenizer: Any = toy_tokenizer()
    else:
        with transformers_loading("tokeniser", name):
            tokenizer = AutoTokenizer.from_pretrained(name)
    if len(tokenizer) > config.vocabulary:
        raise ValueError(
            f"the tokeniser {name} has {len(tokenizer)} tokens, but the text encoder only "
            f"{config.vocabulary}. Use the tokeniser it was trained with."
        )
    # RoBERTa counts positions from 2 on.
    reserved = 2 if config.kind == "roberta" else 0
    return Tokenizer(tokenizer, config.positions - reserved)


def toy_tokenizer(words: Iterable[str] = ()) -> Any:
    """A WordPiece tokeniser made on the spot: single characters, and whole words if given.

    Args:
        words: lower-case words that become one token each, such as class names.
    """
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [
        *SPECIAL_TOKENS,
        *characters,
        *(f"##{c}" for c in characters),
        *sorted({*as_texts(words)}),
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    pipeline = Pipeline(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[arg-type]
    pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    pipeline.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=pipeline, **special)
