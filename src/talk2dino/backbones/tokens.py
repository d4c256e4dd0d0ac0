"""CLIP's tokeniser with a cache of words: the ids of open_clip's, several times faster."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

import open_clip
import torch
from torch import Tensor

# Text that cleaning (ftfy, HTML's entities) leaves as it is.
_PLAIN = re.compile(r"[ -%'-~\t\n]*")
_WORDS = 1 << 18  # that are kept: some tens of MB


class Tokenizer:
    """Captions to token ids, with a start and an end.

    Args:
        context_length: most ids of a caption; a longer one keeps its end-of-text token, last.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self._tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
        self._of_word: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Of one caption, without padding."""
        start, end = self._tokenizer.all_special_ids
        # No token reaches over white space.
        plain = _PLAIN.fullmatch(text)
        words = (text.lower() if plain else self._tokenizer.clean_fn(text)).split()
        cached = self._of_word
        ids = [start, *chain.from_iterable([cached.get(w) or self._word(w) for w in words]), end]
        if len(ids) > self.context_length:
            ids[self.context_length - 1 :] = [end]
        return ids

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, context_length) int64, padded with zeros."""
        rows = [self.ids(text) for text in texts]
        padded = [ids + [0] * (self.context_length - len(ids)) for ids in rows]
        return torch.tensor(padded, dtype=torch.int64).view(-1, self.context_length)

    def _word(self, word: str) -> list[int]:
        tokenizer, ids = self._tokenizer, list[int]()
        for part in tokenizer.pat.findall(word):
            characters = "".join(tokenizer.byte_encoder[byte] for byte in part.encode())
            ids += [tokenizer.encoder[piece] for piece in tokenizer.bpe(characters).split(" ")]
        if len(self._of_word) >= _WORDS:
            self._of_word.clear()
        self._of_word[word] = ids
        return ids
