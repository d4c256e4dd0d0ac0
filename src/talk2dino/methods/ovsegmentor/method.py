"""OVSegmentor as a method: its models, options, thresholds and names of"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino.backbones.seeded import PREFIX
from talk2dino.backbones.templates import ALIASES, get_templates
from talk2dino.benchmarks.table import BENCHMARKS, STUFF_BACKGROUND, Benchmark
from talk2dino.files import content_digest, find_in_checkout
from talk2dino.methods.base import Method, MethodOptions, PictureRules, Published
from talk2dino.methods.ovsegmentor.checkpoints import check_source, is_converted
from talk2dino.methods.ovsegmentor.config import PRESETS
from talk2dino.methods.ovsegmentor.segmenter import OVSegmentorSegmenter, build_ovsegmentor
from talk2dino.segmenter import ClassWords, Segmenter
from talk2dino.sizes import Protocol

_PUBLISHED_ON = ("voc", "context", "coco_object", "coco_stuff", "ade20k")
_VITB = {"voc": 53.8, "context": 20.4, "coco_object": 25.1, "ade20k": 5.6}
_VITS = {"voc": 44.5, "context": 18.3, "coco_object": 19.0, "ade20k": 4.3}
_README = "OVSegmentor's README"  # which has none for COCO-Stuff; VOC also selected the checkpoint
_PUBLISHED = {
    "ovsegmentor_vitb": Published(_VITB, _README),
    "ovsegmentor_vits": Published(_VITS, _README),
}
_ALIASES: dict[str, dict[str, str]] = {
    "voc": {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"},
    "context": {"aeroplane": "airplane", "pottedplant": "plant", "tvmonitor": "monitor"},
}
_ALIASES |= {"voc20": _ALIASES["voc"], "context59": _ALIASES["context"]}

# COCO-Stuff is evaluated with a background as class 0, so with 172 classes.
_THRESHOLDS = {"voc": 0.95, "context": 0.35, "coco_object": 0.9, "coco_stuff": 0.95}

DEFAULT_THRESHOLD = 0.95
"""For images of no benchmark; the published demo's."""


@dataclass(frozen=True)
class OVSegmentorOptions(MethodOptions):
    """Choices beside a model's name."""

    weights: str | None = None
    """The whole model: a converted folder, a published file, or seeded:<n>."""
    template: str = "simple"
    """Prompt set."""

    def __post_init__(self) -> None:
        get_templates(self.template)


@dataclass(frozen=True)
class OVSegmentorMethod(Method):
    """OVSegmentor (CVPR 2023)."""

    options: OVSegmentorOptions

    NAMES = tuple(PRESETS)
    PUBLISHED = _PUBLISHED
    Options = OVSegmentorOptions
    threshold_meaning = (
        "products of two softmaxes over the classes; the published ones are 0.35 to 0.95"
    )

    @classmethod
    def claims(cls, place: str) -> bool:
        """A converted folder has to be named by its size."""
        if is_converted(Path(place)):
            raise ValueError(
                f"{place} holds an OVSegmentor. Name its size: --model {'|'.join(cls.NAMES)} "
                f"--weights {place}"
            )
        return False

    @property
    def weights(self) -> str:
        """A converted folder, a published file, or `seeded:<n>`; by default those in weights/.

        A toy that nobody pretrained has random ones.
        """
        folder = find_in_checkout(f"weights/{self.model}")
        usual = folder if folder.is_dir() else find_in_checkout(f"weights/{self.model}.pth")
        if self.options.weights is None and self.toy and not usual.exists():
            return f"{PREFIX}0"
        return self.options.weights or str(usual)

    @property
    def untrained(self) -> bool:
        """Whether its weights are random."""
        return self.weights.startswith(PREFIX)

    @property
    def demo(self) -> PictureRules:
        """As its published demo."""
        return PictureRules(
            DEFAULT_THRESHOLD, always_background=True, protocol=Protocol(), groups=True
        )

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """The five of its repository."""
        return [self.benchmark(BENCHMARKS[key]) for key in _PUBLISHED_ON]

    def benchmark(self, row: Benchmark) -> Benchmark:
        """COCO-Stuff is evaluated with the background as a class of its own."""
        return STUFF_BACKGROUND if row == BENCHMARKS["coco_stuff"] else row

    @property
    def patch_size(self) -> int:
        """Of its image encoder."""
        return PRESETS[self.model].vision.patch_size

    def threshold(self, row: Benchmark) -> float | None:
        """The published one, or that of the published demo."""
        if not row.background:
            return None
        return _THRESHOLDS.get(_published_key(row), DEFAULT_THRESHOLD)

    def words(self, row: Benchmark | None = None) -> ClassWords:
        """The published prompt names; others as they are, the blank of ADE20K's `bed ` included."""
        aliases = {} if row is None else _ALIASES.get(_published_key(row), {})
        return ClassWords(lambda name: (aliases.get(name, name),))

    def check(self) -> None:
        """See `check_source`."""
        check_source(self.weights)

    def settings(self) -> dict[str, Any]:
        """Model, weights and template."""
        return {
            "model": self.model,
            "weights": content_digest(self.weights),
            "template": ALIASES.get(self.options.template, self.options.template),
        }

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> OVSegmentorSegmenter:
        """See `build_ovsegmentor`."""
        if isinstance(loaded, OVSegmentorSegmenter):
            return OVSegmentorSegmenter(loaded.model, loaded.tokenizer, self.options.template)
        return build_ovsegmentor(self.weights, self.model, device, self.options.template)


def _published_key(row: Benchmark) -> str:
    return "coco_stuff" if row == STUFF_BACKGROUND else row.key
