"""ONNX files of a model, for devices without PyTorch: the image side, and the text side."""

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import talk2dino
from talk2dino.backbones.templates import get_templates
from talk2dino.backbones.text import TextEncoder
from talk2dino.backbones.vision import VisionBackbone
from talk2dino.files import atomic_files, check_replaceable
from talk2dino.methods.talk2dino.api import Talk2DINO
from talk2dino.methods.talk2dino.projection import CLIPLastLayer
from talk2dino.methods.talk2dino.segmenter import EPS, Talk2DinoSegmenter

IMAGE_FILE, TEXT_FILE, DESCRIPTION = "image.onnx", "text.onnx", "talk2dino.json"
FILES = (IMAGE_FILE, TEXT_FILE, DESCRIPTION)
OPSET = 18
TOLERANCE = 1e-4
"""Largest accepted relative error of onnxruntime against PyTorch, over a whole output."""


class ImageSide(nn.Module):
    """Pixels (B, 3, S, S), float32 RGB in [0, 255], to patches and attention logits."""

    names = ("pixels", ["patches", "attention_logits"])

    def __init__(self, segmenter: Talk2DinoSegmenter) -> None:
        super().__init__()
        self.vision = FixedSizeBackbone(segmenter.vision, segmenter.config.input_size)
        self.projection = segmenter.projection

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, D) as `Talk2DINO.encode_image`, and (B, H, P) for background cleaning."""
        features = self.vision(self.vision.normalise(pixels))
        return self.projection.project_visual(features.patches), features.attention_logits


class FixedSizeBackbone(VisionBackbone):
    """A backbone for one input size, with its positions as a constant.

    Interpolating positions depends on nothing but the size, and ONNX's bicubic differs.
    """

    def __init__(self, vision: VisionBackbone, size: int) -> None:
        super().__init__(vision.model, vision.name, vision.weights)
        black = torch.zeros(1, 3, size, size)
        with torch.no_grad():
            tokens, rope = vision._embed(black)
            patches = vision.model.patch_embed(black).flatten(1, 2)
        self.positions: Tensor
        prefix = vision.model.num_prefix_tokens
        # The tokens of an image are its embedded patches plus these: prefix, and positions.
        self.register_buffer("positions", tokens - F.pad(patches, (0, 0, prefix, 0)))
        self.rope: Tensor | None
        self.register_buffer("rope", rope.get("rope"))

    def _embed(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        patches = self.model.patch_embed(images).flatten(1, 2)
        tokens = F.pad(patches, (0, 0, self.model.num_prefix_tokens, 0)) + self.positions
        return tokens, {} if self.rope is None else {"rope": self.rope}


class TextSide(nn.Module):
    """CLIP's token ids (C, T, 77) of every class's T prompts to unit-length classes (C, D)."""

    names = ("tokens", ["classes"])

    def __init__(self, segmenter: Talk2DinoSegmenter) -> None:
        super().__init__()
        self.text = segmenter.text
        self.projection = segmenter.projection

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Talk2DinoSegmenter.embed_class_tokens`."""
        # Asking for the second-to-last block keeps all 77 positions: a graph has fixed lengths.
        vectors = self.text(tokens.flatten(0, 1), penultimate=True).pooled
        means = vectors.unflatten(0, (tokens.shape[0], tokens.shape[1])).mean(dim=1)
        return F.normalize(self.projection.project_clip_txt(means), dim=-1, eps=EPS)


def export_onnx(model: Talk2DINO, folder: str | Path, overwrite: bool = False) -> dict[str, float]:
    """Write `image.onnx`, `text.onnx` and `talk2dino.json`, which describes both.

    Batch, number of classes and number of prompts are free; the image's size is the model's.
    Where onnxruntime is installed, it is compared with PyTorch before anything is kept: all three
    files are written, or none.

    Args:
        model: on the CPU.
        folder: where to write; made if it is not there.
        overwrite: replace existing files.

    Returns:
        Relative error of onnxruntime per output; empty if it was not compared.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: a model that these two graphs cannot express.
        FileExistsError: a file is there already and `overwrite` is false.
        RuntimeError: onnxruntime gives other numbers.
    """
    folder, segmenter = Path(folder), model.segmenter
    check_exportable(segmenter)
    check_replaceable(folder, FILES, overwrite)
    size, templates = segmenter.config.input_size, get_templates(segmenter.config.template)
    assert isinstance(segmenter.text, TextEncoder)
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, size, size, generator=random) * 255
    prompts = [[t.format(name) for t in templates[:3]] for name in ("cat", "polar bear")]
    tokens = torch.stack([segmenter.text.tokenize(texts) for texts in prompts])
    with atomic_files(folder, *FILES) as written:
        image, text = ImageSide(segmenter).eval(), TextSide(segmenter).eval()
        errors = _write_graph(image, pixels, written / IMAGE_FILE, {0: "batch"})
        errors |= _write_graph(text, tokens, written / TEXT_FILE, {0: "classes", 1: "prompts"})
        content = json.dumps(_description(model, errors), indent=2, ensure_ascii=False) + "\n"
        (written / DESCRIPTION).write_text(content, encoding="utf-8")
    return errors


def check_exportable(segmenter: Talk2DinoSegmenter) -> None:
    """Raise ImportError or ValueError for what `export_onnx` cannot do."""
    check_installed()
    config = segmenter.config
    if isinstance(segmenter.projection, CLIPLastLayer) or config.average_tokens:
        raise ValueError("only models that embed a text by its end-of-text vector are exported.")
    if not isinstance(segmenter.text, TextEncoder):
        raise ValueError(f"{segmenter.text.name} is no CLIP text encoder, and is not exported.")
    if segmenter.device.type != "cpu":
        raise ValueError(f"load the model with device='cpu' for the export, not {segmenter.device}")


def check_installed() -> None:
    """Raise ImportError unless the packages that write ONNX files are here."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the export needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime"
        )


def _write_graph(
    side: ImageSide | TextSide, example: Tensor, path: Path, free: dict[int, str]
) -> dict[str, float]:
    """Trace, write and compare; returns the relative error per output."""
    given, outputs = side.names
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter's remarks on its own progress
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                side,
                (example,),
                str(path),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=[given],
                output_names=outputs,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(before)
    if find_spec("onnxruntime") is None:
        return {}
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    errors = dict.fromkeys(outputs, 0.0)
    for some in (example, example[:1]):
        with torch.no_grad():
            expected = side(some)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(outputs, {given: some.numpy()})
        for name, ours, theirs in zip(outputs, expected, found, strict=True):
            error = float((torch.from_numpy(theirs) - ours).norm() / ours.norm())
            errors[name] = max(errors[name], error)
    if wrong := {name: error for name, error in errors.items() if not error <= TOLERANCE}:
        raise RuntimeError(
            f"onnxruntime differs from PyTorch by {wrong} (relative), more than "
            f"{TOLERANCE}. Nothing was kept; try other versions of onnxscript or onnxruntime."
        )
    return errors


def _description(model: Talk2DINO, errors: dict[str, float]) -> dict[str, Any]:
    """What a program needs to know to use the two files."""
    segmenter = model.segmenter
    vision, projection, size = segmenter.vision, segmenter.projection, segmenter.config.input_size
    side, text = size // vision.patch_size, segmenter.text
    width = segmenter.embed_texts(["a"]).shape[-1]
    assert isinstance(text, TextEncoder)
    return {
        "model": model.loaded.origin,
        "vision_model": vision.name,
        "text_model": text.name,
        "projection": type(projection).__name__,
        IMAGE_FILE: {
            "inputs": {
                "pixels": f"(batch, 3, {size}, {size}) float32 RGB in 0..255, resized "
                "bilinearly with antialiasing; normalisation is inside"
            },
            "outputs": {
                "patches": f"(batch, {side * side}, {width}) float32, not normalised, rows of a "
                f"{side} x {side} grid first",
                "attention_logits": f"(batch, {vision.num_heads}, {side * side}) float32, for "
                "background cleaning only",
            },
        },
        TEXT_FILE: {
            "inputs": {
                "tokens": f"(classes, prompts, {text.context_length}) int64 CLIP token ids, "
                "padded with 0"
            },
            "outputs": {"classes": f"(classes, {width}) float32 of unit length"},
        },
        "scores": "sigmoid(patches / |patches| @ classes.T), resized bilinearly to the image with "
        "aligned corners: the corner pixels of grid and image coincide (align_corners=True)",
        "templates": list(get_templates(segmenter.config.template)),
        "background_threshold": model.loaded.background_threshold,
        "relative_errors": errors,
        "opset": OPSET,
        "versions": {"talk2dino": talk2dino.__version__, "torch": torch.__version__},
    }
