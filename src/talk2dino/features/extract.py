"""Image features: decode, run the frozen backbone, pool, store (paper section 3.1).

Images are read ahead by worker processes; bad ones are reported, not raised. A BLIP or BLIP-2 model
can write new captions for them, in place of the ones in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from talk2dino.backbones.seeded import default_weights, require_transformers
from talk2dino.backbones.vision import (
    EXACT,
    RESIZES,
    ImageTransform,
    VisionBackbone,
    average_attention,
    check_sides,
    check_vision,
    head_embeddings,
    load_vision,
    patch_size,
    recorded_normalisation,
)
from talk2dino.config import check_at_least, check_name, reason
from talk2dino.devices import check_compiler, compile_blocks, mixed_precision, resolve_dtype
from talk2dino.features.captions import Collection, ImageSource, check_exist
from talk2dino.features.chunks import Chunk, Extraction
from talk2dino.features.keys import IMAGE_KEYS
from talk2dino.features.store import FeatureFile, Record
from talk2dino.pictures.images import MAX_PIXELS


@dataclass(eq=False, kw_only=True)
class ImageExtraction(Extraction):
    """Features of images; those that cannot be read are left out with their captions."""

    unit = "images"
    cpu_batch = 4

    model: str = "dinov2_vitl14_reg"
    """Vision backbone; see talk2dino.backbones.vision."""
    resize_dim: int = 518
    """Short side after resizing, in pixels."""
    crop_dim: int = 518
    """Side of the central square that is kept, in pixels."""
    resize: str = EXACT
    """`exact`: PIL's resizing. `fast`: PyTorch's, and large JPEGs decoded at a part of their size;
    pixels differ by a few levels."""
    keys: tuple[str, ...] = ("dino_features",)
    """What is stored; names of IMAGE_KEYS."""
    compile: bool = False
    """Compile the backbone, which takes a minute at the start and is faster afterwards."""
    blip_model: str | None = None
    """BLIP model that writes new captions in place of the old ones."""
    workers: int = 2
    """Processes that read images."""
    section: str = field(default="vision", init=False)

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name("image feature", key, IMAGE_KEYS)
        check_at_least(1, resize_dim=self.resize_dim, crop_dim=self.crop_dim)
        check_at_least(0, workers=self.workers)
        check_name("resize", self.resize, RESIZES)
        if self.crop_dim > self.resize_dim:
            raise ValueError(
                f"--crop_dim {self.crop_dim} is larger than --resize_dim {self.resize_dim}: "
                "the pictures would get black borders"
            )
        check_vision(self.model, self.weights)
        super().__post_init__()
        check_sides(self.model, patch_size(self.model), self.crop_dim)
        if self.compile:
            check_compiler(self.runs_on)
        if self.blip_model:
            require_transformers("--blip_model")

    def recorded(self) -> dict[str, Any]:
        """What decides the numbers; stored in the feature file as settings["vision"]."""
        return {
            "model": self.model,
            "weights": self.weights or default_weights(self.model),
            "resize_dim": self.resize_dim,
            "crop_dim": self.crop_dim,
            "dtype": self.dtype,
            "amp": self.amp == "auto" or self.amp or False,
            **({} if self.resize == EXACT else {"resize": self.resize}),
            **({"compile": True} if self.compile else {}),
            **recorded_normalisation(self.model),
        }

    @cached_property
    def models(self) -> tuple[VisionBackbone, Captioner | None]:
        captioner = Captioner(self.blip_model, self.runs_on) if self.blip_model else None
        backbone = load_vision(self.model, self.weights, self.runs_on)
        if self.compile:
            compile_blocks(backbone.model.blocks)
        return backbone, captioner

    def items(self, collection: Collection) -> list[Any]:
        """Id, name, and what changes with the file."""
        check_exist(collection.sources)
        return [
            (image["id"], _name(image), source.state())
            for image, source in zip(collection.features.images, collection.sources, strict=True)
        ]

    def results(self, collection: Collection, chunks: Sequence[range]) -> Iterator[Chunk]:
        """One batch is one chunk; batches are decoded ahead."""
        backbone, captioner = self.models
        transform = backbone.image_transform(self.resize_dim, self.crop_dim, self.resize)
        positions: Any = chunks
        inputs = captioner.transform if captioner else None
        loader = DataLoader(
            positions,
            batch_size=None,
            collate_fn=partial(decoded_batch, collection.sources, transform, inputs),
            num_workers=self.workers,
            pin_memory=self.runs_on.type == "cuda",
        )
        try:
            for decoded in loader:
                yield self._found(decoded, collection.features.images)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RuntimeError(
                f"a process that reads images has ended ({error}). If memory is short, pass fewer "
                "--workers; run the same command again to go on."
            ) from error

    def _found(self, decoded: DecodedBatch, images: list[Record]) -> Chunk:
        backbone, captioner = self.models
        columns: dict[str, Tensor] = {}
        captions: list[str] = []

        def features(pixels: Tensor) -> dict[str, Tensor]:
            return image_features(backbone, pixels, self.keys, self.amp)

        if len(decoded.images):
            found = self.pieces(features, decoded.images.to(self.runs_on, non_blocking=True))
            dtype = resolve_dtype(self.dtype)
            columns = {key: torch.cat([p[key].to(dtype) for p in found]) for key in found[0]}
            if captioner:
                made = self.pieces(captioner, decoded.caption_inputs)
                captions = [caption for piece in made for caption in piece]
        failures = {
            row: f"image {images[row]['id']} ({_name(images[row])}): {why}"
            for row, why in decoded.failures.items()
        }
        return Chunk(columns, failures, captions)

    def completed(self, features: FeatureFile, made: Chunk) -> FeatureFile:
        """Where new captions are made, each image has one, whose id is the image's.

        Old ones are kept as `original_captions`, and their features are dropped.
        """
        result = super().completed(features, made)
        if not self.blip_model:
            return result
        old: dict[Any, list[str]] = {image["id"]: [] for image in result.images}
        for annotation in result.annotations:
            old[annotation["image_id"]].append(annotation["caption"])
        annotations = [
            {"id": own, "image_id": own, "caption": caption, "original_captions": before}
            for (own, before), caption in zip(old.items(), made.captions, strict=True)
        ]
        settings = {**result.settings, "captions": {"blip_model": self.blip_model}}
        settings.pop("text", None)
        settings.pop("bert", None)
        return replace(result, annotations=annotations, caption_features={}, settings=settings)


class DecodedBatch(NamedTuple):
    images: Tensor
    """(B, 3, crop, crop) uint8 RGB of those that could be read, in order."""
    failures: dict[int, str]
    """Position -> why it could not be read."""
    caption_inputs: Tensor
    """(B, 3, h, w) float, for the captioning model, if there is one."""


def decoded_batch(
    sources: Sequence[ImageSource],
    transform: ImageTransform,
    caption_transform: Callable[[Image.Image], Tensor] | None,
    positions: range,
) -> DecodedBatch:
    """Decode the images at some positions; bad ones are reported, not raised."""
    images, inputs, failures = [], [], {}
    for position in positions:
        try:
            image_rgb = sources[position].read(transform.least)
            short, long = sorted(image_rgb.size)
            if transform.resize_dim**2 * long > MAX_PIXELS * short:
                raise ValueError(
                    f"its sides are {image_rgb.width} x {image_rgb.height} pixels: resized to a "
                    f"short side of {transform.resize_dim} it would have more than {MAX_PIXELS} "
                    "pixels"
                )
            pixels = transform(image_rgb)
            if caption_transform:
                inputs.append(caption_transform(image_rgb))
        # One image must not end a run of hours, whatever a decoder raises: it is named.
        except Exception as error:
            failures[position] = str(error) or type(error).__name__
        else:
            images.append(pixels)
    return DecodedBatch(_stacked(images), failures, _stacked(inputs))


def _stacked(pixels: list[Tensor]) -> Tensor:
    return torch.stack(pixels) if pixels else torch.empty(0)


@torch.inference_mode()
def image_features(
    backbone: VisionBackbone, images: Tensor, keys: Iterable[str], amp: str = ""
) -> dict[str, Tensor]:
    """The stored features of a batch of images.

    Args:
        backbone: on the device of `images`.
        images: (B, 3, h, w) uint8 RGB.
        keys: names of IMAGE_KEYS.
        amp: number type of mixed precision in the backbone, a name of AMP_TYPES; pooling is
            float32 in any case.

    Returns:
        Key -> (B, ...) float32, on the same device: `dino_features`, `second_last_out` and
        `avg_self_attn_out` (B, D), `disentangled_self_attn` (B, H, D), `self_attn_maps` (B, H, P),
        `patch_tokens` (B, P, D).
    """
    with mixed_precision(amp, images.device):
        found = backbone(backbone.normalise(images))
    logits, patches = found.attention_logits.float(), found.patches.float()
    make = {
        "dino_features": lambda: found.cls.float(),
        "avg_self_attn_out": lambda: average_attention(logits, patches),
        "disentangled_self_attn": lambda: head_embeddings(logits, patches),
        "self_attn_maps": lambda: logits,
        "patch_tokens": lambda: patches,
        "second_last_out": lambda: found.penultimate_cls.float(),
    }
    return {key: make[key]() for key in keys}


def _name(image: dict[str, Any]) -> str:
    return str(image.get("file_name") or image.get("coco_url") or Path())


MODEL_CLASSES = {
    "blip": "BlipForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
}
"""`model_type` of a model's configuration -> its class in transformers."""
MAX_NEW_TOKENS = 30


class Captioner:
    """A frozen captioning model; greedy decoding, so the same image gives the same caption.

    Args:
        name: Hugging Face id or local folder of a BLIP or BLIP-2 model.
        device: where it runs.

    Raises:
        ImportError: transformers is not installed.
        ValueError: it is another kind of model.
        RuntimeError: it could not be loaded or downloaded.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        require_transformers("--blip_model")
        import transformers

        try:
            kind = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
            check_name(f"kind of captioning model in {name}", kind, MODEL_CLASSES)
            processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
            model = getattr(transformers, MODEL_CLASSES[kind]).from_pretrained(name)
        except OSError as error:
            raise RuntimeError(
                f"could not load the captioning model {name!r} ({reason(error)}). "
                "Give --blip_model a local folder that holds it."
            ) from error
        self.transform = partial(_caption_pixels, processor.image_processor)
        self._tokenizer = processor.tokenizer
        self._model = model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> list[str]:
        """(B, 3, h, w) pixels of `transform` to one caption each."""
        pixels = pixels.to(self._model.device, self._model.dtype)
        tokens = self._model.generate(
            pixel_values=pixels, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS
        )
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _caption_pixels(processor: Any, image_rgb: Image.Image) -> Tensor:
    """An RGB image to the captioning model's (3, h, w) float."""
    pixels: Tensor = processor(images=image_rgb, return_tensors="pt")["pixel_values"][0]
    return pixels
