"""The ids of open_clip's tokeniser, for texts of every kind."""

import random

import open_clip
import torch

from speed.text import captions
from talk2dino.backbones import text as tokens
from talk2dino.backbones.text import Tokenizer

THEIRS = open_clip.SimpleTokenizer(context_length=77)
SPACES = "\x1c|\x1f|\x85|\xa0|\u2028|\u200b|\ufeff|\t\t|\r\n|\0|\x7f"
ODD = """&amp; &amp;amp;lt; &lt;b&gt; &nbsp; &#39; don't DON'T 'S we'll it'd ''s <start_of_text> &
<END_OF_TEXT> <end_of_text><end_of_text> \x1b[31mred\x1b[0m ﬁne ＡＢＣ İstanbul ß ẞ ǅ naïve cafÃ©
â€œquotedâ€\x9d “curly” ‘s ’ll 日本語 한국어 العربية 🐈 👩‍👩‍👧 e\u0301 ½ ⅷ 12,345.67
a_b __ -- ... !!! C:\\x
http://a.b/c?d=e&f=g #tag @you 100% A.B.C."""


def texts(count):
    """Captions, words, single characters and noise, much of it beyond ASCII; always the same."""
    drawn = random.Random(0)
    sentences, odd = captions(500), [*ODD.split(), *SPACES.split("|")]
    words = sorted({word for text in sentences for word in text.split()})
    ascii_ = [chr(code) for code in range(128)]
    anything = [chr(code) for code in [*range(1, 0x3100), 0x1F408, 0xD55C, 0xFB01]]
    kinds = [
        lambda: drawn.choice(sentences),
        lambda: " ".join(drawn.choices(words, k=8)).title(),
        lambda: drawn.choice(" \n-").join(drawn.choices(words + odd, k=drawn.randrange(6))),
        lambda: "".join(drawn.choices(ascii_, k=drawn.randrange(8))),
        lambda: "".join(drawn.choices(anything, k=drawn.randrange(4))),
    ]
    return [*odd, *map(chr, range(0xD800)), *(drawn.choice(kinds)() for _ in range(count - 0xD800))]


def test_ids_are_those_of_open_clip_for_a_hundred_thousand_texts():
    ours = Tokenizer(77)
    start, end = THEIRS.all_special_ids
    different = [t for t in texts(100_000) if ours.ids(t) != [start, *THEIRS.encode(t), end]]
    assert different == []


def test_the_table_of_ids_is_that_of_open_clip_and_long_texts_are_cut():
    some = ["", "a cat", "word " * 75, "word " * 76, "word " * 300, "é " * 200, "<end_of_text> a"]
    assert torch.equal(Tokenizer(77)(some), THEIRS(some))
    assert torch.equal(Tokenizer(5)(some), THEIRS(some, context_length=5))
    assert Tokenizer(77)([]).shape == (0, 77)


def test_a_full_cache_changes_nothing(monkeypatch):
    monkeypatch.setattr(tokens, "_WORDS", 3)
    ours, some = Tokenizer(77), captions(20)
    assert torch.equal(ours(some), THEIRS(some))
    assert len(ours._of_word) <= 3
