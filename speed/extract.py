"""Image extraction: the whole command against a literal one, and against the bare backbone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from PIL import Image

from speed.case import LITERAL, SHIPPED, Case, Step

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS, GPU_BATCH = 32, 64
MODEL, WEIGHTS, SIDE = "dinov2_vitb14_reg", "seeded:0", 448
KEYS = ("avg_self_attn_out", "disentangled_self_attn")
BARE = "bare_backbone"


def photographs(folder: Path, count: int = PHOTOGRAPHS) -> None:
    """JPEG crops of the carried photographs at COCO's size (640 x 480), and their captions file."""
    drawn = random.Random(0)
    originals = [
        Image.open(ROOT / "assets" / f"{name}.png").convert("RGB")
        for name in ("astronaut", "chelsea", "coffee")
    ]
    images, annotations = [], []
    for number in range(count):
        original = originals[number % len(originals)]
        width = drawn.randint(original.width // 2, original.width)
        height = min(width * 3 // 4, original.height)
        left = drawn.randint(0, original.width - width)
        top = drawn.randint(0, original.height - height)
        crop = original.crop((left, top, left + width, top + height)).resize((640, 480))
        crop.save(folder / f"{number:03d}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number:03d}.jpg"})
        annotations.append({"id": number, "image_id": number, "caption": "a photograph"})
    content = {"images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))


def _shipped(device: str, folder: Path) -> Step:
    from talk2dino.cli.extract import default_workers
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.extract import ImageExtraction
    from talk2dino.features.job import Job

    sides = {"resize_dim": SIDE, "crop_dim": SIDE}
    how = {"weights": WEIGHTS, "device": device, "workers": default_workers()}
    extraction = ImageExtraction(model=MODEL, keys=KEYS, **sides, **how)
    _ = extraction.models  # loaded before anything is timed

    def step() -> list[torch.Tensor]:
        data = CaptionInput(folder / "captions.json", folder)
        with Job(data, extraction, folder / "features.pth", overwrite=True) as job:
            features = job.make(0)
            assert features is not None
            return [features.image_features[key].clone() for key in KEYS]

    return step


def _literal(device: str, folder: Path) -> Step:
    from talk2dino.backbones.seeded import seeded_state
    from talk2dino.backbones.vision import load_vision, official_shapes
    from tests.literal.extraction import extract

    shapes = official_shapes(load_vision(MODEL, WEIGHTS).model)
    state = {name: value.to(device) for name, value in seeded_state(0, shapes).items()}
    paths = sorted(folder.glob("*.jpg"))

    def step() -> list[torch.Tensor]:
        records = extract(paths, state)
        return [torch.stack([record[key] for record in records]) for key in KEYS]

    return step


def _bare(device: str, folder: Path) -> Step:
    """timm's own forward pass over pixels that are decoded and normalised already."""
    from talk2dino.backbones.vision import load_vision
    from talk2dino.features.extract import ImageExtraction

    backbone = load_vision(MODEL, WEIGHTS, device)
    transform = backbone.image_transform(SIDE, SIDE)
    pixels = [transform(Image.open(path)) for path in sorted(folder.glob("*.jpg"))]
    size = ImageExtraction.cpu_batch if device == "cpu" else 64
    batches = [backbone.normalise(p.to(device)) for p in torch.stack(pixels).split(size)]

    def step() -> None:
        with torch.inference_mode():
            for batch in batches:
                backbone.model.forward_features(batch)

    return step


def _decoded(amp: str, device: str, folder: Path) -> Step:
    """The backbone and the pooling over pixels that are on the device already."""
    from talk2dino.backbones.vision import load_vision
    from talk2dino.features.extract import image_features

    backbone = load_vision(MODEL, WEIGHTS, device)
    generator = torch.Generator().manual_seed(0)
    size = (GPU_BATCH, 3, SIDE, SIDE)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(device)
    return lambda: image_features(backbone, pixels, KEYS, amp)


def _resized(resize: str, device: str, folder: Path) -> Step:
    """From JPEG to the pixels that a backbone gets, in this process."""
    from talk2dino.backbones.vision import ImageTransform
    from talk2dino.pictures.images import read_rgb

    transform, paths = ImageTransform(SIDE, SIDE, resize), sorted(folder.glob("*.jpg"))
    return lambda: [transform(read_rgb(path, transform.least)) for path in paths] and None


def _case(count: int) -> Case:
    return Case(
        f"image extraction, {count} photographs, {MODEL} at {SIDE}, from JPEG to feature file",
        {SHIPPED: _shipped, BARE: _bare, LITERAL: _literal},
        inputs=lambda folder: photographs(folder, count),
        targets={BARE: 1 / 1.05},
        work=count,
        unit="images",
    )


CASES = {
    "extract": _case(PHOTOGRAPHS),
    "extract_8": _case(8),  # the same, in a quarter of the time
    "resize": Case(
        f"reading {PHOTOGRAPHS} photographs for {SIDE} px with --resize fast, and exact",
        {
            SHIPPED: lambda device, folder: _resized("fast", device, folder),
            "exact": lambda device, folder: _resized("exact", device, folder),
        },
        inputs=photographs,
        targets={"exact": 1.5},
        work=PHOTOGRAPHS,
        unit="images",
    ),
    "extract_decoded": Case(  # for GPUs
        f"features of {GPU_BATCH} decoded photographs, {MODEL} at {SIDE}, bfloat16",
        {
            SHIPPED: lambda device, folder: _decoded("bfloat16", device, folder),
            "float32": lambda device, folder: _decoded("", device, folder),
        },
        cuda_rate=1500,
        work=GPU_BATCH,
        unit="images",
    ),
}
