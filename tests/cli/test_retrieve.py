"""`retrieve`: a text finds images of a feature file, and a picture finds captions."""

import pytest
import torch
from PIL import Image

from talk2dino import Talk2DINO
from talk2dino.cli.retrieve import Retrieve
from talk2dino.features.store import FeatureFile, write_features


@pytest.fixture(scope="module")
def toy():
    return Talk2DINO.from_pretrained("toy", device="cpu")


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """Three pictures of one colour with their features; the second's last head is "a red bus"."""
    folder = tmp_path_factory.mktemp("store")
    colours = ("red", "green", "blue")
    for colour in colours:
        Image.new("RGB", (60, 40), colour).save(folder / f"{colour}.png")
    heads = torch.randn(3, 3, 192, generator=torch.Generator().manual_seed(0))
    heads[1, 2] = 5 * toy.encode_text("a red bus")[0]
    texts = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    images = [{"id": i, "file_name": f"{colour}.png"} for i, colour in enumerate(colours)]
    captions = [{"id": i, "image_id": 2 - i, "caption": f"caption {i}"} for i in range(3)]
    columns = {"disentangled_self_attn": heads}, {"ann_feats": texts}
    write_features(FeatureFile(images, captions, *columns), folder / "store.pth")
    write_features(FeatureFile(images, captions), folder / "bare.pth")
    return folder


def test_a_text_finds_the_image_whose_best_head_it_is_and_draws_it(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    argv = ["--store", str(folder / "store.pth"), "--model", "toy", "--device", "cpu"]
    drawn = ["--sheet", str(sheet), "--images", str(folder)]
    assert Retrieve.main([*argv, "--text", "a red bus", "--top", "2", *drawn]) == 0
    first, second, written = capsys.readouterr().out.splitlines()
    assert first.split() == ["1", "1.0000", "green.png"] and second.split()[0] == "2"
    assert str(sheet) in written
    picture = Image.open(sheet)
    assert picture.size == (448, 224) and picture.getpixel((112, 112)) == (0, 128, 0)


def test_a_picture_finds_the_caption_that_training_would_score_highest(folder, toy, capsys):
    path = folder / "red.png"
    argv = ["--store", str(folder / "store.pth"), "--model", "toy", "--device", "cpu"]
    assert Retrieve.main([*argv, "--image", str(path)]) == 0
    texts = torch.load(folder / "store.pth", weights_only=True)["caption_features"]["ann_feats"]
    pooled = toy.encode_image(path, pool="attention")
    cosines = torch.cosine_similarity(toy.projection.project_clip_txt(texts), pooled)
    best = int(cosines.argmax())
    first = capsys.readouterr().out.splitlines()[0]
    names = ("blue.png", "green.png", "red.png")
    assert first == f"  1  {cosines[best]:.4f}  {names[best]}  caption {best}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--store", "{}/bare.pth", "--text", "cat"], "holds no 'disentangled_self_attn'"),
        (["--store", "{}/bare.pth", "--image", "{}/red.png"], "holds no 'ann_feats'"),
        (["--store", "{}/store.pth", "--text", " "], "--text is empty"),
        (["--store", "{}/store.pth", "--text", "cat", "--top", "0"], "top must be at least 1"),
        (["--store", "{}/store.pth", "--image", "{}/no.png"], "no such picture"),
        (["--store", "{}/store.pth", "--text", "cat", "--sheet", "{}/a.png"], "needs the folder"),
    ],
)
def test_what_cannot_be_found_is_a_sentence(argv, message, folder, capsys):
    assert Retrieve.main([word.format(folder) for word in argv]) == 2
    assert message in capsys.readouterr().err


def test_features_of_another_model_are_refused(folder, tmp_path, capsys):
    other = FeatureFile([{"id": 0}], [], {"disentangled_self_attn": torch.rand(1, 2, 7)})
    write_features(other, tmp_path / "other.pth")
    argv = ["--store", str(tmp_path / "other.pth"), "--text", "cat", "--model", "toy"]
    assert Retrieve.main(argv) != 0
    assert "width 7, but toy needs 192" in capsys.readouterr().err


def test_features_that_are_no_numbers_are_named_and_not_found_first(folder, tmp_path, capsys):
    content = torch.load(folder / "store.pth", weights_only=True)
    content["image_features"]["disentangled_self_attn"][2, 1, 0] = torch.nan
    torch.save(content, tmp_path / "nan.pth")
    argv = ["--store", str(tmp_path / "nan.pth"), "--text", "cat", "--top", "1", "--model", "toy"]
    assert Retrieve.main(argv) == 1
    assert "'disentangled_self_attn' holds numbers that are not finite" in capsys.readouterr().err
