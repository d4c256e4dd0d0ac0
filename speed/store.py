"""The feature file: opened and read for a first batch, against records with tensors inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from speed.case import LITERAL, SHIPPED, Case, Step

IMAGES, CAPTIONS = 82_783, 414_113
"""Of COCO's train2014."""
HEADS, PATCH_DIM, TEXT_DIM, BATCH = 12, 768, 512, 128


class _SparseFile:
    """Written like a file; blocks of zeros take no space on the disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, data: Any) -> int:
        """Write, or skip what is zero."""
        values = np.frombuffer(data, np.uint8)
        if values.any():
            self._file.write(data)
        else:
            self._file.seek(len(values), 1)
        return len(values)

    def flush(self) -> None:
        """Give the file the length of all that was written."""
        self._file.truncate(self._file.tell())
        self._file.flush()


def _records() -> tuple[list[dict[str, Any]], list[dict[str, Any]], torch.Tensor]:
    images = [
        {
            "id": number,
            "file_name": f"COCO_train2014_{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2014/COCO_train2014_{number:012d}.jpg",
            "height": 480,
            "width": 640,
        }
        for number in range(IMAGES)
    ]
    rows = torch.arange(CAPTIONS) % IMAGES
    annotations = [
        {"id": number, "image_id": row, "caption": f"A photograph number {number} of something."}
        for number, row in enumerate(rows.tolist())
    ]
    return images, annotations, rows


def _write(folder: Path) -> None:
    """The same records in both layouts; all features are zero, so that they take no disk."""
    from talk2dino.features.store import FORMAT, VERSION, json_bytes
    from tests.literal.store import save_records

    images, annotations, rows = _records()
    columnar = {
        "format": FORMAT,
        "version": VERSION,
        "images": json_bytes(images),
        "annotations": json_bytes(annotations),
        "extra": json_bytes({}),
        "settings": json_bytes({}),
        "num_images": IMAGES,
        "caption_rows": rows,
        "image_features": {"disentangled_self_attn": torch.zeros(IMAGES, HEADS, PATCH_DIM)},
        "caption_features": {"ann_feats": torch.zeros(CAPTIONS, TEXT_DIM)},
    }
    sparse = _SparseFile(folder / "columnar.pth")
    torch.save(columnar, sparse)  # type: ignore[arg-type]
    sparse.flush()
    # Every record has a tensor of its own, all of them on the bytes of one.
    visual, text = torch.zeros(HEADS, PATCH_DIM), torch.zeros(TEXT_DIM)
    in_all = ([visual[:] for _ in images], [text[:] for _ in annotations])
    save_records(images, annotations, *in_all, folder / "records.pth")


def _captions() -> torch.Tensor:
    return torch.randperm(CAPTIONS, generator=torch.Generator().manual_seed(0))[:BATCH]


def _shipped(device: str, folder: Path) -> Step:
    from talk2dino.features.store import read_features
    from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs

    path, captions = folder / "columnar.pth", _captions()

    def step() -> list[torch.Tensor]:
        pairs = StoredPairs(read_features(path), FeatureChoice(), path, device, memory_bytes=0)
        batch = next(pairs.batches([captions]))
        return [batch.visual, batch.text]

    return step


def _literal(device: str, folder: Path) -> Step:
    from tests.literal.store import open_and_read_batch

    path, captions = folder / "records.pth", _captions().tolist()
    return lambda: list(open_and_read_batch(path, captions))


CASES = {
    "store": Case(
        f"open a file of {IMAGES:,} images and {CAPTIONS:,} captions, read {BATCH} pairs",
        {SHIPPED: _shipped, LITERAL: _literal},
        inputs=_write,
        limits={"seconds": 2, "resident_mb": 500},
        work=1,
        unit="openings",
    )
}
