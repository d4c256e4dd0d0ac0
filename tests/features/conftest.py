"""A small COCO-layout folder, and the commands run in this process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Coco:
    """A folder with `captions.json` and images; every image has two captions but the last, one."""

    def __init__(self, folder: Path, count: int, pattern: str = "{:03d}.jpg") -> None:
        self.folder, self.path = folder, folder / "captions.json"
        rng = np.random.default_rng(0)
        self.images, self.annotations = [], []
        for number in range(count):
            name = pattern.format(number)
            height, width = int(rng.integers(56, 90)), int(rng.integers(56, 90))
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((width, height)).save(file)
            self.images.append({"id": 100 + number, "file_name": name, "height": height})
            for which in range(2 if number < count - 1 else 1):
                words = " ".join(["word"] * int(rng.integers(1, 12)))
                annotation = {"id": 2 * number + which, "image_id": 100 + number}
                self.annotations.append({**annotation, "caption": f"picture {number} {words}"})
        self.save()

    def save(self, **changes):
        content = {
            "info": {"year": 2014},
            "images": self.images,
            "annotations": self.annotations,
            "licenses": [],
        }
        self.path.write_text(json.dumps({**content, **changes}))

    def arguments(self, out, *more: str) -> list[str]:
        """Flags of a quick extraction."""
        return [
            *f"--ann_path {self.path} --data_dir {self.folder} --out_path {out}".split(),
            *["--model", "toy", "--resize_dim", "56", "--crop_dim", "56"],
            *["--device", "cpu", "--workers", "0", *more],
        ]


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path / "coco", 6)


@pytest.fixture
def make_coco():
    return Coco
