"""A dozen drawn images with captions, and toy recipes for both stages."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from talk2dino.methods.ovsegmentor.config import load_pretraining_recipe
from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob
from talk2dino.training.job import carry_out
from talk2dino.training.run import Hooks

COLOURS = {"cat": (200, 30, 30), "frog": (30, 200, 30), "whale": (30, 30, 200)}
IMAGES = 12


def write_captions(folder, count=IMAGES):
    """COCO captions of squares on noise; every third caption names two things."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        name, other = (list(COLOURS)[(number + shift) % 3] for shift in (0, 1))
        pixels = np.random.default_rng(number).integers(90, 160, (48, 64, 3), np.uint8)
        pixels[8:40, 8:30] = COLOURS[name]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        caption = f"a {name} and a {other}" if number % 3 == 0 else f"picture {number} of a {name}"
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations.append({"id": number, "image_id": number, "caption": caption})
    content = {"images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "captions.json"


def recipe_values(captions, stage=1, **train):
    """The content of a recipe that is done in a second."""
    values = {
        "model": "ovsegmentor_toy",
        "stage": stage,
        "data": {
            "metafile": str(captions),
            "images": str(captions.parent),
            "entities": "cat, frog, whale",
            "lemmas": "lemminflect",
        },
        "augment": {"deit": stage == 1, "smallest_crop": 0.4},
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "base_lr": 0.5,
            "min_lr": 0.1,
            "warmup_lr": 0.1,
            "warmup_epochs": 0,
            "text_length": 16,
            "log_every": 1,
            **train,
        },
    }
    if stage == 2:
        values["start"] = {"stage1": "stage1"}
    return values


class Stop(Exception):
    pass


def interrupted(recipe, out, after, epoch=2):
    """Run with every step saved, and stop after some steps of an epoch."""

    def watch(steps, now, total):
        for step in steps:
            if (now, step) == (epoch, after):
                raise Stop
            yield step

    job = PretrainingJob(recipe, out, "cpu", checkpoint_seconds=0)
    with pytest.raises(Stop):
        carry_out(job, Hooks(progress=watch))


@pytest.fixture(scope="session")
def captions(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("captions"))


@pytest.fixture
def write_recipe(tmp_path, captions):
    """Write a recipe file; sections are merged into the tiny one's."""

    def write(stage=1, name="tiny.yaml", **sections):
        values = recipe_values(captions, stage)
        for section, content in sections.items():
            if isinstance(content, dict):
                values[section] = {**values.get(section, {}), **content}
            else:
                values[section] = content
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def make_recipe(write_recipe):
    return lambda *args, **sections: load_pretraining_recipe(write_recipe(*args, **sections))
