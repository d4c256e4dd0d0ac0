"""Text encoders: trimming is exact, local files load, wrong names are answered."""

import functools
import json
import random
import shutil

import open_clip
import pytest
import torch
from torch import nn

from speed.text import captions
from talk2dino.backbones import text as text_module
from talk2dino.backbones.text import (
    CLIP_MODELS,
    BertEncoder,
    check_text,
    create_text_tower,
    is_bert,
    load_text,
    tokenize,
)
from tests.literal import text as literal

CAPTIONS = ["a cat", "two dogs play with a red frisbee in the park", ""]


@pytest.fixture(scope="module")
def toy():
    return load_text("toy")


def test_vectors_are_those_of_the_literal_tower_at_77_positions(toy):
    found = literal.extract(CAPTIONS, dict(toy.model.state_dict()), heads=8, batch_size=2)
    expected = torch.stack([annotation["ann_feats"] for annotation in found])
    torch.testing.assert_close(toy.encode(CAPTIONS), expected, rtol=1e-4, atol=1e-5)
    untrimmed = toy(toy.tokenize(CAPTIONS)).pooled
    torch.testing.assert_close(untrimmed, expected, rtol=1e-4, atol=1e-5)


def test_token_ids_are_cut_behind_the_longest_caption(toy):
    assert toy.trimmed(toy.tokenize(["a cat", ""])).tolist() == [
        [49406, 320, 2368, 49407],
        [49406, 49407, 0, 0],
    ]


def test_outputs_are_only_made_when_asked_for(toy):
    tokens = toy.tokenize(CAPTIONS)
    assert toy(tokens).tokens is None
    assert toy(tokens).penultimate is None
    features = toy(tokens, dense=True, penultimate=True)
    assert features.tokens.shape == features.penultimate.shape == (3, 77, 512)


def test_a_long_caption_keeps_its_end_of_text_token(toy):
    tokens = toy.tokenize(["word " * 200])
    assert int(tokens[0, -1]) == 49407
    assert int(toy(tokens).end_positions[0]) == 76


def test_batches_are_put_together_and_no_text_gives_no_rows(toy):
    assert torch.allclose(toy.encode(CAPTIONS, batch_size=2), toy.encode(CAPTIONS), atol=1e-5)
    assert toy.encode([]).shape == (0, 512)


class OpenAILike(nn.Module):
    """A module with the names of OpenAI's whole CLIP, in half precision."""

    def __init__(self, tower):
        super().__init__()
        for name, child in tower.named_children():
            self.add_module(name, child)
        self.positional_embedding = tower.positional_embedding
        self.text_projection = tower.text_projection
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.visual = nn.Linear(2, 2)
        self.register_buffer("input_resolution", torch.tensor(224))


@pytest.mark.parametrize("kind", ["OpenAI", "open_clip", "open_clip custom"])
def test_local_files_hold_the_same_weights_under_several_namings(tmp_path, toy, kind):
    state = OpenAILike(load_text("toy").model).half().state_dict()
    if kind == "open_clip":
        state["attn_mask"] = torch.zeros(77, 77)
    if kind == "open_clip custom":
        state = {f"text.{k}": v for k, v in toy.model.state_dict().items()}
        state["visual.x"] = torch.zeros(1)
    torch.save(state, tmp_path / "clip.pt")
    encoder = load_text("toy", str(tmp_path / "clip.pt"))
    assert encoder.model.text_projection.dtype == torch.float32
    assert torch.allclose(encoder.encode(CAPTIONS), toy.encode(CAPTIONS), rtol=1e-2, atol=1e-2)


def test_a_file_of_another_size_is_refused(tmp_path, toy):
    torch.save(toy.model.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"clip.pt does not fit .* missing keys: .*resblocks.3"):
        load_text("ViT-B/16", str(tmp_path / "clip.pt"))


def test_every_known_clip_model_can_be_built():
    with torch.device("meta"):
        widths = {name: create_text_tower(name).output_dim for name in CLIP_MODELS}
    assert widths["ViT-B/16"] == 512
    assert widths["ViT-L/14"] == 768


def test_seeded_weights_depend_on_the_seed(toy):
    other = load_text("toy", "seeded:1")
    assert not torch.allclose(other.encode(["a cat"]), toy.encode(["a cat"]))


def test_a_misspelt_model_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown text model 'ViT-B16'. Known: toy, ViT-B/16"):
        check_text("ViT-B16")


def test_missing_weights_are_refused():
    with pytest.raises(FileNotFoundError, match=r"no text weights at 'absent.pt'"):
        check_text("ViT-B/16", "absent.pt")
    with pytest.raises(ValueError, match="no pretrained weights"):
        check_text("toy", "pretrained")
    with pytest.raises(ValueError, match="weights 'a.pt' are not used"):
        check_text("bert-base-uncased", "a.pt")


def test_without_network_the_message_says_what_to_do():
    with pytest.raises(
        RuntimeError, match=r"could not download .*--text_weights FILE.*https://.*ViT-B"
    ):
        load_text("ViT-B/16", "pretrained")
    with pytest.raises(RuntimeError, match="could not load the BERT model 'bert-none'"):
        load_text("bert-none")


def drawn_tower(name):
    """A text tower of open_clip with random weights."""
    tower = create_text_tower(name).eval()
    for name, parameter in tower.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return tower


def test_pretrained_weights_are_downloaded_by_open_clip_and_read_by_us(monkeypatch, tmp_path):
    torch.save(drawn_tower("ViT-B/16").state_dict(), tmp_path / "clip.pt")
    asked = []

    def download(entry):
        asked.append(entry["hf_hub"])
        return str(tmp_path / "clip.pt")

    monkeypatch.setattr(text_module.open_clip, "download_pretrained", download)
    assert load_text("ViT-B/16").weights == "pretrained"
    assert asked == ["timm/vit_base_patch16_clip_224.openai/"]


@pytest.fixture(scope="module")
def gelu_file(tmp_path_factory):
    """A text tower of open_clip, whose tensors do not say that its activation is GELU."""
    path = tmp_path_factory.mktemp("clip") / "gelu.pt"
    torch.manual_seed(0)
    model = drawn_tower("ViT-B/32-gelu")
    torch.save(model.state_dict(), path)
    with torch.no_grad():
        return path, model(open_clip.get_tokenizer("ViT-B-32")(CAPTIONS))


def test_an_activation_that_a_file_does_not_say_is_assumed_aloud_or_chosen(gelu_file, caplog):
    path, theirs = gelu_file
    assumed = load_text("ViT-B/32", str(path)).encode(CAPTIONS)
    assert not torch.allclose(assumed, theirs, atol=1e-4)
    assert "QuickGELU is assumed" in caplog.text and "ViT-B/32-gelu" in caplog.text
    caplog.clear()
    chosen = load_text("ViT-B/32-gelu", str(path)).encode(CAPTIONS)
    torch.testing.assert_close(chosen, theirs, atol=1e-4, rtol=0)
    assert not caplog.text


@pytest.mark.parametrize("quick", [None, False, True])
def test_the_configuration_of_open_clip_beside_a_file_says_the_activation(
    gelu_file, tmp_path, caplog, quick
):
    model = {"embed_dim": 512} | ({} if quick is None else {"quick_gelu": quick})
    shutil.copy(gelu_file[0], tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    encoder = load_text("ViT-B/32", str(tmp_path / "gelu.pt"))
    assert encoder.name == ("ViT-B/32" if quick else "ViT-B/32-gelu")
    assert not caplog.text
    if quick:
        with pytest.raises(ValueError, match="says QuickGELU. Name the model ViT-B/32"):
            load_text("ViT-B/32-gelu", str(tmp_path / "gelu.pt"))


@pytest.mark.parametrize("content", ["[]", "{", '{"model_cfg": 3}'])
def test_a_damaged_configuration_beside_a_file_is_named(gelu_file, tmp_path, content):
    shutil.copy(gelu_file[0], tmp_path)
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match="open_clip_config.json is no configuration of open_clip"):
        load_text("ViT-B/32", str(tmp_path / "gelu.pt"))


def test_openai_has_no_weights_of_the_other_activation():
    with pytest.raises(ValueError, match="has no weights of OpenAI"):
        check_text("ViT-B/32-gelu")


def test_a_clip_of_transformers_is_refused_with_the_file_that_is_needed(tmp_path):
    for prefix in ("text_model.", ""):
        names = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
        torch.save({prefix + name: torch.ones(1) for name in names}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"transformers library.*Needed is OpenAI's .*B-32"):
            load_text("ViT-B/32", str(tmp_path / "a.pt"))


def test_a_folder_with_bert_in_its_name_is_a_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    transformers.BertModel(config).save_pretrained(folder)
    encoder = load_text(str(folder))
    assert isinstance(encoder, BertEncoder)
    assert is_bert(str(folder))
    assert encoder.embed_dim == 16
    vectors = encoder.encode(["a cat", "a dog " * 50, "a"], batch_size=2)
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors[0], encoder.encode(["a cat"])[0], rtol=1e-4, atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)


def test_an_unknown_tower_is_named():  # as a configuration of somebody else may say
    with pytest.raises(ValueError, match=r"unknown text model '\.\./x'"):
        create_text_tower("../x")


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
    some = map(chr, range(0, 0xD800, 3))
    return [*odd, *some, *(drawn.choice(kinds)() for _ in range(count - 0xD800 // 3))]


def test_ids_are_those_of_open_clip_for_a_hundred_thousand_texts(monkeypatch):
    some = texts(100_000)
    monkeypatch.setattr(THEIRS, "encode", functools.cache(THEIRS.encode))  # a third are repeated
    for part in (some[start : start + 5000] for start in range(0, len(some), 5000)):
        assert torch.equal(tokenize(part, 160), THEIRS(part, context_length=160))


def test_the_table_of_ids_is_that_of_open_clip_and_long_texts_are_cut():
    some = ["", "a cat", "word " * 75, "word " * 76, "word " * 300, "é " * 200, "<end_of_text> a"]
    assert torch.equal(tokenize(some, 77), THEIRS(some))
    assert torch.equal(tokenize(some, 5), THEIRS(some, context_length=5))
    assert tokenize([], 77).shape == (0, 77)
