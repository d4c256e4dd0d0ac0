"""New captions from a tiny, randomly initialised BLIP."""

import sys

import pytest
import torch
from PIL import Image

from talk2dino.cli.extract import Extract
from talk2dino.features.chunks import Chunk
from talk2dino.features.extract import Captioner, ImageExtraction
from talk2dino.features.store import FeatureFile, read_features

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "cat", "dog", "on"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    images = transformers.BlipImageProcessor(size={"height": 28, "width": 28})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={
            **small,
            **{"vocab_size": len(WORDS), "intermediate_size": 16, "encoder_hidden_size": 16},
            **{"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0},
        },
        vision_config={**small, "image_size": 28, "patch_size": 14, "intermediate_size": 16},
    )
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_an_image_gets_the_same_caption_every_time(blip):
    captioner = Captioner(str(blip), torch.device("cpu"))
    pixels = captioner.transform(Image.new("RGB", (40, 30), (200, 0, 0)))
    assert pixels.shape == (3, 28, 28)
    one, two = captioner(torch.stack([pixels, pixels]))
    assert one == two
    assert set(one.split()) <= set(WORDS)


def test_the_command_replaces_captions_and_keeps_the_old_ones(tmp_path, coco, blip):
    flags = ["--blip_model", str(blip), "--batch_size", "4"]
    assert Extract.main(coco.arguments(tmp_path / "a.pth", *flags, "--workers", "1")) == 0
    stored = read_features(tmp_path / "a.pth")
    assert [a["image_id"] for a in stored.annotations] == list(range(100, 106))
    assert [a["id"] for a in stored.annotations] == [image["id"] for image in coco.images]
    old = [a["caption"] for a in coco.annotations if a["image_id"] == 100]
    assert stored.annotations[0]["original_captions"] == old
    assert stored.annotations[0]["caption"] not in old
    assert stored.settings["captions"] == {"blip_model": str(blip)}
    assert Extract.main(coco.arguments(tmp_path / "b.pth", *flags)) == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_features_of_replaced_captions_are_dropped():
    features = FeatureFile(
        [{"id": 1}, {"id": 2}, {"id": 7}],
        [
            {"id": 7, "image_id": 2, "caption": "old"},
            {"id": 8, "image_id": 2, "caption": "older"},
        ],
        caption_features={"ann_feats": torch.ones(2, 3)},
        settings={"text": {"model": "toy"}, "vision": {"model": "toy"}},
    )
    assert features.caption_rows.tolist() == [1, 1]
    extraction = ImageExtraction(model="toy", resize_dim=56, crop_dim=56, blip_model="blip")
    made = Chunk({"dino_features": torch.ones(3, 4)}, {}, ["one", "two", "three"])
    features = extraction.completed(features, made)
    assert [(a["id"], a["image_id"], a["caption"]) for a in features.annotations] == [
        (1, 1, "one"),
        (2, 2, "two"),
        (7, 7, "three"),
    ]
    assert features.caption_rows.tolist() == [0, 1, 2]
    assert features.caption_features == {}
    assert set(features.settings) == {"vision", "captions"}


def test_another_kind_of_model_is_refused(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unknown kind of captioning model.*Known: blip, blip-2"):
        Captioner(str(tmp_path), torch.device("cpu"))


def test_a_model_that_is_not_there_is_refused(tmp_path, coco, capsys):
    missing = str(tmp_path / "nothing")
    assert Extract.main(coco.arguments(tmp_path / "a.pth", "--blip_model", missing)) == 1
    assert f"could not load the captioning model '{missing}'" in capsys.readouterr().err
    assert not (tmp_path / "a.pth.parts").exists()


def test_without_transformers_the_command_says_what_to_install(tmp_path, coco, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert Extract.main(coco.arguments(tmp_path / "a.pth", "--blip_model", "blip")) == 2
    assert "--blip_model needs transformers: pip install transformers" in capsys.readouterr().err
