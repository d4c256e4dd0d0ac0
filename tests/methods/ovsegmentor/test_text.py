"""Text encoders and tokenisers, without a download."""

import dataclasses

import pytest
import torch

from talk2dino.config import build
from talk2dino.methods.ovsegmentor.config import OVSegmentorConfig, TextConfig, get_preset
from talk2dino.methods.ovsegmentor.text import TextEncoder, Tokenizer, load_tokenizer, toy_tokenizer

TINY_ROBERTA = TextConfig(
    kind="roberta", name="toy", width=32, depth=1, num_heads=2, vocabulary=256, positions=34
)


def test_a_mask_token_stays_one_token(tokenizer):
    ids = tokenizer(["a [MASK] sits"]).ids[0]
    tokens = tokenizer.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "a", "[MASK]", "s", "##i", "##t", "##s", "[SEP]"]


def test_texts_are_padded_to_the_longest_or_to_a_length(tokenizer):
    tokens = tokenizer(["a", "a b c"])
    assert tokens.ids.shape == (2, 5)
    assert tokens.mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert tokenizer(["a"], 77).ids.shape == (1, 77)


def test_a_text_too_long_is_cut_and_still_ends(tokenizer):
    tokens = tokenizer(["a " * 300])
    assert tokens.ids.shape == (1, 96)
    assert int(tokens.ids[0, -1]) == tokenizer.tokenizer.sep_token_id
    assert tokenizer(["a " * 300], 500).ids.shape == (1, 96)


def test_words_may_become_tokens_of_their_own():
    tokenizer = Tokenizer(toy_tokenizer(["circle"]), 96)
    tokens = tokenizer.tokenizer.convert_ids_to_tokens(tokenizer(["Circle 日"]).ids[0])
    assert tokens == ["[CLS]", "circle", "[UNK]", "[SEP]"]


def test_a_tokeniser_comes_from_a_folder_or_is_made(tmp_path):
    config = get_preset("ovsegmentor_toy").text
    made = load_tokenizer(config)
    made.tokenizer.save_pretrained(str(tmp_path))
    assert torch.equal(load_tokenizer(config, tmp_path)(["a cat."]).ids, made(["a cat."]).ids)


def test_a_tokeniser_with_more_tokens_than_the_encoder_is_refused():
    config = TextConfig(name="toy", width=32, depth=1, num_heads=2, vocabulary=100)
    with pytest.raises(ValueError, match="has 141 tokens, but the text encoder only 100"):
        load_tokenizer(config)


def test_what_cannot_be_downloaded_is_named(tmp_path):
    config = TextConfig(name=str(tmp_path / "bert"), width=32, depth=1, num_heads=2)
    with pytest.raises(RuntimeError, match="could not load the tokeniser .*local folder"):
        load_tokenizer(config)
    with pytest.raises(RuntimeError, match="could not load the text encoder .*local folder"):
        TextEncoder(config).load_pretrained()


def test_an_encoder_starts_from_a_local_folder(tmp_path):
    config = get_preset("ovsegmentor_toy").text
    source, target = TextEncoder(config), TextEncoder(config)
    source.transformer.save_pretrained(str(tmp_path))
    target.load_pretrained(tmp_path)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_roberta_counts_its_positions_from_two():
    tokenizer = load_tokenizer(TINY_ROBERTA)
    tokens = tokenizer(["b " * 100])
    assert tokens.ids.shape == (1, 32)
    encoder = TextEncoder(TINY_ROBERTA).eval()
    assert encoder(tokens).shape == (1, 32, 32)


def test_a_configuration_survives_being_written():
    config = get_preset("ovsegmentor_vits")
    written = dataclasses.asdict(config)
    assert build(OVSegmentorConfig, written, "config.json") == config
    for change, message in (
        ({"widht": 1}, "config.json: unknown key 'widht'"),
        ({"vision": {"widht": 1}}, "vision: unknown key 'widht'. Did you mean 'width'"),
        ({"joint_width": 0}, "config.json: joint_width must be at least 1"),
        ({"text": {"kind": "gpt"}}, "unknown text encoder .kind. 'gpt'"),
        ({"text": {"num_heads": 7}}, "width 768 cannot be split into 7"),
    ):
        with pytest.raises(ValueError, match=message):
            build(OVSegmentorConfig, written | change, "config.json")
    with pytest.raises(ValueError, match="config.json: 'name:' is missing"):
        build(OVSegmentorConfig, {}, "config.json")
