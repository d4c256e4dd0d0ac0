"""The drawn world on disk, in the two layouts that researchers have: COCO captions for training and
validation, Pascal VOC segmentation for evaluation.

    coco/captions_train.json  coco/train2014/COCO_train2014_000000000000.jpg ...
    coco/captions_val.json    coco/val2014/COCO_val2014_000000000000.jpg ...
    VOCdevkit/VOC2012/        JPEGImages, SegmentationClass, ImageSets/Segmentation/val.txt,
                              class_names.txt
    dataset.yaml              the evaluation's data set file, of all worlds but the first
    world.json                what it was made from

Nothing is read or downloaded, and the same settings give the same bytes.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from talk2dino.config import check_at_least, differences
from talk2dino.files import atomic_path, check_folder_writable, remove_leftovers
from talk2dino.pictures.drawing import indexed_mask
from talk2dino.textfiles import read_json
from talk2dino.toy.objects import WORLDS
from talk2dino.toy.scene import SMALLEST, Scene, class_names, class_palette, draw_scene

VERSION = 1
"""Of the drawing: a world made by another version is another world."""

_SPLITS = ("train", "val", "evaluation")
_JPEG_QUALITY = 95
_EVALUATION_SHARE = 10
_WHERE = {
    "grass": ("on the grass", "in the grass"),
    "water": ("in the water", "on the water"),
    "snow": ("in the snow", "on the snow"),
    "lavender": ("in the lavender", "on the lavender"),
}
_OPENINGS = (
    "",
    "a photo of ",
    "a picture of ",
    "a drawing of ",
    "there is ",
    "we see ",
    "this is ",
)
_CLOSINGS = ("", "", "", " in the picture", " in this photo")
_EMPTY = ("a lot of {}", "{}", "only {}", "nothing but {}", "{} everywhere", "just {}")


@dataclass(frozen=True)
class WorldConfig:
    """How large the world is."""

    train_images: int = 1536
    """Captioned pictures to train on."""
    val_images: int = 100
    """Captioned pictures for the validation loss."""
    evaluation_images: int = 100
    """Pictures with masks; all three sets are different draws."""
    captions: int = 3
    """Sentences per captioned picture."""
    size: int = 224
    """Side of a picture in pixels."""
    seed: int = 0
    """Of everything; picture k of a set does not depend on how many there are."""
    world: int = 1
    """Which objects there are; one of `objects.WORLDS`."""

    def __post_init__(self) -> None:
        names = ("train_images", "val_images", "evaluation_images", "captions")
        check_at_least(1, **{name: getattr(self, name) for name in names})
        check_at_least(SMALLEST, size=self.size)
        check_at_least(0, seed=self.seed)
        if self.world not in WORLDS:
            known = ", ".join(map(str, WORLDS))
            raise ValueError(f"unknown world {self.world}. Known: {known}.")


def world_of_size(images: int, seed: int = 0, world: int = 1) -> WorldConfig:
    """A world with so many pictures to train on; a tenth, at most 100, to validate and evaluate."""
    held_out = min(-(-images // _EVALUATION_SHARE), 100)
    return WorldConfig(images, held_out, held_out, seed=seed, world=world)


@dataclass(frozen=True)
class World:
    """Where the parts of a world are."""

    folder: Path
    """Holds everything below."""

    @property
    def coco(self) -> Path:
        """The `--data_dir` of the captioned images."""
        return self.folder / "coco"

    def captions(self, split: str) -> Path:
        """The COCO captions file of `train` or `val`."""
        return self.coco / f"captions_{split}.json"

    @property
    def voc(self) -> Path:
        """The VOC-layout folder of the evaluation."""
        return self.folder / "VOCdevkit" / "VOC2012"

    @property
    def dataset(self) -> Path:
        """The data set file of the evaluation; the first world is known as `toy` without it."""
        return self.folder / "dataset.yaml"


def write_world(
    folder: str | Path,
    config: WorldConfig,
    overwrite: bool = False,
    on_picture: Callable[[], object] = lambda: None,
    workers: int = 0,
) -> World:
    """Draw a world, or find it drawn already.

    Args:
        folder: where to put it; written beside it and renamed, so it is complete or absent.
        overwrite: replace a world that was made with other settings.
        on_picture: called after each picture.
        workers: processes that draw; 0 draws in this one.

    Raises:
        FileExistsError: `folder` holds something else and `overwrite` is false.
        PermissionError, NotADirectoryError: nothing can be written there.
    """
    world = World(Path(folder))
    if check_world(world.folder, config, overwrite):
        return world
    with atomic_path(world.folder) as temporary:
        building = World(temporary)
        for split, count, write in (
            ("train", config.train_images, _write_coco),
            ("val", config.val_images, _write_coco),
            ("evaluation", config.evaluation_images, _write_voc),
        ):
            scenes = _scenes(config, split, count, on_picture, workers)
            write(building, split, scenes, config)
        settings = json.dumps(_settings(config), indent=2) + "\n"
        (building.folder / "world.json").write_text(settings, encoding="utf-8")
    return world


def check_world(folder: str | Path, config: WorldConfig, overwrite: bool = False) -> bool:
    """Whether this very world is in `folder` already; raises as `write_world` does."""
    folder = Path(folder)
    remove_leftovers(folder.parent)
    check_folder_writable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    found, wanted = _read_settings(folder / "world.json"), _settings(config)
    if found is None:  # it is not ours: not even `overwrite` removes it
        raise FileExistsError(f"{folder} exists and is no drawn world. Choose another folder.")
    differing = differences({"world": 1, **found}, {"world": 1, **wanted})
    if differing and not overwrite:
        raise FileExistsError(
            f"{folder} was drawn with other settings ({differing}). Choose another folder, or "
            "pass --overwrite."
        )
    return not differing


def _settings(config: WorldConfig) -> dict[str, Any]:
    settings = {"drawing_version": VERSION, **dataclasses.asdict(config)}
    if config.world == 1:  # as when there was no other
        del settings["world"]
    return settings


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and "drawing_version" in content else None


def _random(config: WorldConfig, split: str, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, _SPLITS.index(split), index, purpose])


def _scene(config: WorldConfig, split: str, index: int) -> Scene:
    rng = _random(config, split, index, purpose=0)
    return draw_scene(config.size, rng, config.world)


def _scenes(
    config: WorldConfig, split: str, count: int, on_picture: Callable[[], object], workers: int
) -> Iterator[Scene]:
    draw = partial(_scene, config, split)
    scenes: Iterable[Scene] = map(draw, range(count))
    if workers:
        from torch.utils.data import DataLoader  # its processes end when this one is killed

        numbers: Any = range(count)
        scenes = DataLoader(numbers, collate_fn=draw, batch_size=None, num_workers=workers)
    for scene in scenes:
        yield scene
        on_picture()


def _write_coco(world: World, split: str, scenes: Iterator[Scene], config: WorldConfig) -> None:
    """Pictures and a captions file with the fields of the official ones that tools read."""
    folder = world.coco / f"{split}2014"
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        name = f"COCO_{split}2014_{index:012d}.jpg"
        Image.fromarray(scene.image).save(folder / name, quality=_JPEG_QUALITY)
        side = config.size
        images.append({"id": index, "file_name": name, "height": side, "width": side})
        rng = _random(config, split, index, purpose=1)
        for caption in write_captions(scene.objects, scene.texture, config.captions, rng):
            annotations.append({"id": len(annotations), "image_id": index, "caption": caption})
    info = {"description": "A drawn world of shapes on textured grounds", "version": str(VERSION)}
    content = {"info": info, "images": images, "annotations": annotations}
    world.captions(split).write_text(json.dumps(content), encoding="utf-8")


def _write_voc(world: World, split: str, scenes: Iterator[Scene], config: WorldConfig) -> None:
    """Pictures, masks of class ids, the list of names, and the class names by id."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (world.voc / part).mkdir(parents=True)
    names = []
    for index, scene in enumerate(scenes):
        names.append(f"{index:06d}")
        image = world.voc / "JPEGImages" / f"{names[-1]}.jpg"
        Image.fromarray(scene.image).save(image, quality=_JPEG_QUALITY)
        mask = world.voc / "SegmentationClass" / f"{names[-1]}.png"
        indexed_mask(scene.mask, class_palette(config.world)).save(mask)
    _write_lines(world.voc / "ImageSets" / "Segmentation" / "val.txt", names)
    _write_lines(world.voc / "class_names.txt", class_names(config.world))
    if config.world != 1:  # the first one is `--benchmarks toy`
        _write_dataset(world, config)


def _write_dataset(world: World, config: WorldConfig) -> None:
    """The pictures with masks as `--benchmarks <world.dataset>` reads them."""
    voc = world.voc.relative_to(world.folder).as_posix()
    half = max(config.size // 2, 1)
    content = {
        "name": f"toy{config.world}",
        "images": f"{voc}/JPEGImages",
        "labels": f"{voc}/SegmentationClass",
        "split": f"{voc}/ImageSets/Segmentation/val.txt",
        "classes": list(class_names(config.world)),
        "palette": class_palette(config.world).tolist(),
        "protocol": {"short_side": config.size, "window": config.size, "stride": half},
    }
    world.dataset.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_captions(
    objects: Sequence[str], texture: str, count: int, rng: np.random.Generator
) -> list[str]:
    """Describe a picture `count` times.

    The first sentence names every object and the ground, the second every object, the others one
    thing each. Nothing is ever named that is not in the picture.

    Args:
        objects: the object classes in the picture, none for a picture of the ground alone.
        texture: the ground.
        count: number of sentences.
        rng: chooses the words.
    """
    if not objects:
        return [_opening(rng) + str(rng.choice(_EMPTY)).format(texture) + "." for _ in range(count)]
    return [_sentence(objects, texture, index, rng) for index in range(count)]


def _sentence(objects: Sequence[str], texture: str, index: int, rng: np.random.Generator) -> str:
    order = [objects[i] for i in rng.permutation(len(objects))]
    where = str(rng.choice(_WHERE[texture]))
    if index == 0:
        return f"{_opening(rng)}{_listing(order)} {where}."
    if index == 1:
        return f"{_opening(rng)}{_listing(order)}{rng.choice(_CLOSINGS)}."
    if index == 2 and rng.random() < 0.5:
        return f"{_opening(rng)}{texture}{rng.choice(_CLOSINGS)}."
    return f"{_opening(rng)}{_with_article(order[0])}{rng.choice(_CLOSINGS)}."


def _opening(rng: np.random.Generator) -> str:
    return str(rng.choice(_OPENINGS))


def _listing(names: Sequence[str]) -> str:
    """`a cat`, `a cat and a frog`, `a cat, a frog and grapes`."""
    phrases = [_with_article(name) for name in names]
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _with_article(name: str) -> str:
    if name == "grapes":
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
