"""The drawn world on disk: two standard layouts, complete or absent, never lost."""

import json

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.table import find_benchmark, read_dataset
from talk2dino.cli.toy import Toy
from talk2dino.features.captions import CaptionInput
from talk2dino.toy.objects import OBJECTS, WORLDS
from talk2dino.toy.scene import CLASS_NAMES, TEXTURES, class_names, draw_scene
from talk2dino.toy.world import (
    World,
    WorldConfig,
    check_world,
    write_captions,
    write_world,
)

SMALL = WorldConfig(train_images=4, val_images=2, evaluation_images=3, captions=3, size=64)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world") / "data", SMALL)


def every_file(world: World):
    paths = sorted(path for path in world.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(world.folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_settings_give_the_same_bytes(world, tmp_path, workers):
    again = write_world(tmp_path / "again", SMALL, workers=workers)
    assert every_file(again) == every_file(world)


def test_another_seed_gives_another_world(world, tmp_path):
    other = write_world(tmp_path / "other", WorldConfig(4, 2, 3, 3, 64, seed=1))
    name = "coco/train2014/COCO_train2014_000000000000.jpg"
    assert every_file(other)[name] != every_file(world)[name]


def test_more_pictures_leave_the_first_ones_as_they_were(world, tmp_path):
    more = every_file(write_world(tmp_path / "more", WorldConfig(6, 2, 3, 3, 64)))
    pictures = {k: v for k, v in every_file(world).items() if k.endswith((".jpg", ".png"))}
    assert pictures.items() <= more.items()


def test_the_captions_files_are_read_by_the_extraction(world):
    for split, images in (("train", 4), ("val", 2)):
        collection = CaptionInput(world.captions(split), world.coco).split(0, 1)
        assert collection.features.num_images == images
        assert len(collection.features.annotations) == 3 * images
        for source in collection.sources:
            assert source.exists()


def test_annotations_describe_their_image(world):
    content = json.loads(world.captions("train").read_text())
    for image in content["images"]:
        path = world.coco / "train2014" / image["file_name"]
        assert Image.open(path).size == (image["width"], image["height"]) == (64, 64)
    assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}


def test_the_voc_layout_has_a_mask_of_class_ids_for_every_listed_picture(world):
    names = (world.voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert names == ["000000", "000001", "000002"]
    for index, name in enumerate(names):
        mask = Image.open(world.voc / "SegmentationClass" / f"{name}.png")
        image = Image.open(world.voc / "JPEGImages" / f"{name}.jpg")
        assert mask.mode == "P"
        assert mask.size == image.size == (64, 64)
        scene = draw_scene(64, np.random.default_rng([SMALL.seed, 2, index, 0]))
        np.testing.assert_array_equal(np.asarray(mask), scene.mask)
        assert np.abs(np.asarray(image, int) - scene.image).mean() < 8  # JPEG
    assert find_benchmark("toy", world.folder).classes == CLASS_NAMES


def test_training_and_evaluation_pictures_are_different_draws(world):
    files = every_file(world)
    pictures = [content for name, content in files.items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 9


def test_a_world_that_is_there_is_not_drawn_again(world):
    drawn = []
    before = world.captions("train").stat().st_mtime_ns
    assert write_world(world.folder, SMALL, on_picture=lambda: drawn.append(1)) == world
    assert not drawn
    assert world.captions("train").stat().st_mtime_ns == before


def test_a_world_with_other_settings_is_replaced_only_when_asked(tmp_path):
    small, larger = WorldConfig(1, 1, 1, 1, 48), WorldConfig(2, 1, 1, 1, 48)
    write_world(tmp_path / "data", small)
    with pytest.raises(FileExistsError, match=r"train_images was 1, now 2\).*--overwrite"):
        write_world(tmp_path / "data", larger)
    assert check_world(tmp_path / "data", small)
    write_world(tmp_path / "data", larger, overwrite=True)
    assert check_world(tmp_path / "data", larger)


def test_a_folder_with_something_else_is_never_removed(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="is no drawn world"):
        write_world(tmp_path / "thesis", SMALL, overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "data", SMALL, on_picture=stop)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(NotADirectoryError, match="is a file"):
        write_world(tmp_path / "data", SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": 0}, "train_images must be at least 1, got 0"),
        ({"captions": 0}, "captions must be at least 1"),
        ({"size": 20}, "size must be at least 48, got 20"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**changes)


def test_the_first_world_is_drawn_as_when_there_was_no_other(world):
    files = every_file(world)
    assert "dataset.yaml" not in files and 'world"' not in files["world.json"].decode()


def test_the_second_world_has_other_objects_on_the_same_grounds_and_its_own_data_set(tmp_path):
    world = write_world(tmp_path / "two", WorldConfig(1, 1, 12, size=96, world=2))
    assert find_benchmark("toy", world.folder).classes[:2] == ("orange", "leaf")
    assert not set(WORLDS[1]) & set(WORLDS[2])
    row = read_dataset(world.dataset, tmp_path)
    assert row.classes == class_names(2) and row.protocol.window == 96
    captions = json.loads(world.captions("train").read_text())["annotations"]
    words = {word.strip(".,") for entry in captions for word in entry["caption"].split()}
    assert not words & set(WORLDS[1])


def test_the_command_draws_a_world_once_and_refuses_another_in_its_place(tmp_path, capsys):
    argv = ["--output", str(tmp_path / "world"), "--images", "2", "--world"]
    assert Toy.main([*argv, "2"]) == Toy.main([*argv, "2"]) == 0
    assert "--benchmarks " + str(tmp_path / "world" / "dataset.yaml") in capsys.readouterr().out
    assert Toy.main([*argv, "1"]) == 2
    assert "was drawn with" in capsys.readouterr().err
    assert Toy.main([*argv, "3"]) == 2
    assert "unknown world 3. Known: 1, 2." in capsys.readouterr().err


def named(sentence):
    words = sentence.replace(",", " ").replace(".", " ").split()
    return {name for name in CLASS_NAMES if name in words}


def described(objects, texture, count=5, seed=0):
    return write_captions(objects, texture, count, np.random.default_rng(seed))


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("objects", [(), ("apple",), ("cat", "grapes"), ("lemon", "frog", "heart")])
def test_captions_never_name_what_is_not_there(objects, texture):
    for seed in range(20):
        for sentence in described(objects, texture, seed=seed):
            assert named(sentence)
            assert named(sentence) <= {*objects, texture}


def test_the_first_caption_names_everything():
    assert named(described(("lemon", "frog", "heart"), "snow")[0]) == {
        "lemon",
        "frog",
        "heart",
        "snow",
    }


def test_an_empty_ground_is_named_by_every_caption():
    assert all(named(sentence) == {"water"} for sentence in described((), "water"))


def test_articles_fit_the_noun():
    text = " ".join(described(tuple(OBJECTS), "grass", count=40))
    assert "an apple" in text
    assert "a apple" not in text
    assert "a cat" in text
    assert "a grapes" not in text


def test_captions_are_deterministic_and_as_many_as_asked():
    assert described(("cat",), "snow", 7) == described(("cat",), "snow", 7)
    assert len(described(("cat",), "snow", 7)) == 7


def test_captions_of_one_picture_differ():
    assert len(set(described(("lemon", "frog", "heart"), "snow", 5))) >= 4
