"""The published README's extraction lines, as written, on a small folder in COCO's layout."""

import json

import pytest

from talk2dino.cli import extract, extract_text
from talk2dino.features.store import read_features

IMAGE_LINES = [
    "python dino_extraction_v2.py --ann_path ../coco/captions_val2014.json "
    "--out_path ../coco2014_b14/val.pth --model dinov2_vitb14_reg --resize_dim 448 --crop_dim 448 "
    "--extract_avg_self_attn --extract_disentangled_self_attn",
    "python dino_extraction_v2.py --ann_path ../coco/captions_train2014.json "
    "--out_path ../coco2014_b14/train.pth --model dinov2_vitb14_reg --resize_dim 448 "
    "--crop_dim 448 --extract_avg_self_attn --extract_disentangled_self_attn",
]
TEXT_LINES = [
    "python text_features_extraction.py --ann_path ../coco2014_b14/val.pth",
    "python text_features_extraction.py --ann_path ../coco2014_b14/train.pth",
]


@pytest.fixture
def checkout(tmp_path, make_coco, monkeypatch):
    """An empty checkout beside `coco/`, with images in `val2014/` and `train2014/`."""
    for split in ("val", "train"):
        pattern = f"{split}2014/COCO_{split}2014_{{:012d}}.jpg"
        coco = make_coco(tmp_path / "coco", 2, pattern)
        for image in coco.images:
            image["file_name"] = image["file_name"].split("/")[1]
        coco.path.unlink()
        content = {"images": coco.images, "annotations": coco.annotations}
        path = tmp_path / "coco" / f"captions_{split}2014.json"
        path.write_text(json.dumps(content))
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    return tmp_path


def arguments(line, *substitutes):
    """The line's own arguments; substitutes come last and only choose weights that are at hand."""
    return [*line.split()[2:], *substitutes]


def test_the_published_lines_work_one_after_the_other(checkout):
    for line in IMAGE_LINES:
        quick = ["--model", "toy", "--resize_dim", "56", "--crop_dim", "56", "--workers", "0"]
        assert extract.main(arguments(line, *quick)) == 0
    for line in TEXT_LINES:
        assert extract_text.main(arguments(line, "--model", "toy")) == 0
    for split in ("val", "train"):
        stored = read_features(checkout / "coco2014_b14" / f"{split}.pth")
        assert sorted(stored.image_features) == ["avg_self_attn_out", "disentangled_self_attn"]
        assert stored.caption_features["ann_feats"].shape == (3, 512)


def test_the_published_model_and_sizes_work(checkout):
    substitute = ["--vision_weights", "seeded:0", "--workers", "0"]
    assert extract.main(arguments(IMAGE_LINES[0], *substitute)) == 0
    stored = read_features(checkout / "coco2014_b14" / "val.pth")
    assert stored.image_features["disentangled_self_attn"].shape == (2, 12, 768)
    assert stored.settings["vision"]["model"] == "dinov2_vitb14_reg"
    assert stored.settings["vision"]["resize_dim"] == 448


@pytest.mark.parametrize("line", IMAGE_LINES)
def test_the_published_image_lines_parse(line):
    args = extract.COMMAND.parser().parse_args(arguments(line))
    assert (args.model, args.crop_dim) == ("dinov2_vitb14_reg", 448)
    assert str(args.data_dir) == "../coco"


@pytest.mark.parametrize("line", TEXT_LINES)
def test_the_published_text_lines_parse(line):
    args = extract_text.COMMAND.parser().parse_args(arguments(line))
    assert args.model == "ViT-B/16"
