"""New captions from a BLIP or BLIP-2 model of transformers, in place of the ones in the file."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from talk2dino.config import check_name, reason
from talk2dino.features.store import FeatureFile

MODEL_CLASSES = {
    "blip": "BlipForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
}
"""`model_type` of a model's configuration -> its class in transformers."""
MAX_NEW_TOKENS = 30


class CaptionTransform:
    """PIL image to the captioning model's pixels; can be sent to worker processes."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image_rgb: Image.Image) -> Tensor:
        """An RGB image to (3, h, w) float."""
        return self._processor(images=image_rgb, return_tensors="pt")["pixel_values"][0]


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
        check_installed()
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
        self.transform = CaptionTransform(processor.image_processor)
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


def check_installed() -> None:
    """Raise ImportError unless transformers can be imported."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("--blip_model needs transformers: pip install transformers") from error


def recaptioned(features: FeatureFile, captions: list[str], model: str) -> None:
    """Give every image of `features` its one new caption, in place; its id is the image's.

    Old captions are kept as `original_captions`. Their features are dropped.

    Args:
        features: with one row per caption in `images`.
        captions: (N,) new ones, in the order of the images.
        model: name to record.
    """
    old: dict[Any, list[str]] = {image["id"]: [] for image in features.images}
    for annotation in features.annotations:
        old[annotation["image_id"]].append(annotation["caption"])
    features.annotations = [
        {"id": own, "image_id": own, "caption": caption, "original_captions": before}
        for (own, before), caption in zip(old.items(), captions, strict=True)
    ]
    features.__dict__.pop("caption_rows", None)
    features.caption_features = {}
    features.settings.pop("text", None)
    features.settings.pop("bert", None)
    features.settings["captions"] = {"blip_model": model}
