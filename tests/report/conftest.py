"""Small results as the evaluation writes them."""

import json

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.data.labels import IGNORED
from talk2dino.report import plots

CLASSES = ["background", "cat & <dog>", "sofa", "tree"]
NUM_IMAGES = 7


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without plots, whose drawing takes most of their time."""
    for name in ("draw_overview", "draw_class_bars", "draw_confusion", "save_png"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr(plots, "figure_svg", lambda _: b"")


@pytest.fixture
def data(tmp_path):
    """Seven images of 8 x 6 with labels; sofa is right, cat depends on the run, tree is nowhere."""
    root = tmp_path / "data"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(NUM_IMAGES):
        labels = np.zeros((6, 8), np.uint8)
        labels[:, 4:] = 1 + number % 2
        labels[0, 0] = IGNORED
        Image.fromarray(labels).save(root / "labels" / f"{number}.png")
        pixels = np.full((6, 8, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
    return root


def write_run(root, folder, name="voc_toy_11111111", *, wrong=1, kept=True, **changes):
    """A result whose image k has k * `wrong` background pixels predicted as cat."""
    confusion = np.zeros((4, 4), np.int64)
    areas = {
        key: np.zeros((NUM_IMAGES, 4), np.int64) for key in ("intersect", "union", "label_area")
    }
    for number in range(NUM_IMAGES):
        labels = np.asarray(Image.open(root / "labels" / f"{number}.png"))
        guess = np.where(labels == IGNORED, 0, labels)
        guess.ravel()[1 : 1 + number * wrong] = 1
        counted = labels != IGNORED
        np.add.at(confusion, (labels[counted], guess[counted]), 1)
        for label in range(4):
            both = (labels == label) & (guess == label)
            areas["intersect"][number, label] = both[counted].sum()
            any_of = ((labels == label) | (guess == label))[counted].sum()
            areas["union"][number, label] = any_of
            areas["label_area"][number, label] = (labels == label).sum()
        if kept:
            path = folder / "predictions" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(guess).save(path)
    hits, union = areas["intersect"].sum(0), areas["union"].sum(0)
    iou = [100 * h / u if u else None for h, u in zip(hits.tolist(), union.tolist(), strict=True)]
    mean = float(np.mean([value for value in iou if value is not None]))
    result = {
        "format": 1,
        "benchmark": "voc",
        "title": "VOC",
        "model": "toy",
        "pamr": False,
        "bg_thresh": 0.55,
        "num_images": NUM_IMAGES,
        "mIoU": mean,
        "mAcc": 80.0,
        "aAcc": 90.0,
        "mIoU_interval": [mean - 2, mean + 2],
        "published": 61.5,
        "per_class": dict(zip(CLASSES, iou, strict=True)),
        "data_root": str(root),
        "predictions": str(folder / "predictions" / name) if kept else None,
    } | changes
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result))
    files = {
        "images": np.array([f"images/{number}.png" for number in range(NUM_IMAGES)]),
        "labels": np.array([f"labels/{number}.png" for number in range(NUM_IMAGES)]),
    }
    np.savez(folder / f"{name}.npz", confusion=confusion, **areas, **files)
    return folder


@pytest.fixture
def results(data, tmp_path):
    """Two runs of one benchmark, and one of another."""
    folder = write_run(data, tmp_path / "results")
    write_run(data, folder, "voc_toy_pamr_22222222", wrong=0, pamr=True)
    write_run(data, folder, "ade20k_toy_33333333", benchmark="ade20k", title="ADE20K")
    return folder
