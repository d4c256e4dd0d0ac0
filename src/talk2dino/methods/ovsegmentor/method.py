"""OVSegmentor as a method: scores of groups; its models, options, thresholds and names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.backbones.seeded import PREFIX
from talk2dino.backbones.templates import (
    ALIASES,
    TEMPLATES,  # noqa: F401  for the help
    get_templates,
    prompt_means,
)
from talk2dino.backbones.vision import IMAGENET_MEAN, IMAGENET_STD
from talk2dino.benchmarks.table import BENCHMARKS, STUFF_BACKGROUND, Benchmark
from talk2dino.devices import float32_by_default, in_float32
from talk2dino.files import find_in_checkout
from talk2dino.methods.base import Method, MethodOptions, PictureRules, Published
from talk2dino.methods.dense import WordSegmenter
from talk2dino.methods.ovsegmentor.checkpoints import (
    check_source,
    is_converted,
    load_state,
    read_checkpoint,
)
from talk2dino.methods.ovsegmentor.config import PRESETS
from talk2dino.methods.ovsegmentor.losses import unit_rows
from talk2dino.methods.ovsegmentor.model import EncodedImages, OVSegmentor
from talk2dino.methods.ovsegmentor.text import Tokenizer, load_tokenizer
from talk2dino.segmenter import ClassQuery, ClassWords, Segmenter, pool_words
from talk2dino.sizes import Protocol

MOST_CLASSES = 5
"""Classes a window may show: those its whole image embedding is most like."""


def upsample_groups(soft: Tensor, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """Soft assignments (B, G, P) at every pixel, (B, G, h, w): bilinear, align_corners false."""
    maps = soft.unflatten(-1, grid_hw)
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=False)


def group_class_scores(
    features: EncodedImages,
    classes: Tensor,
    scale: Tensor,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """How much each group shows each class.

    A softmax over all classes times a softmax over the window's five best ones; 0 for the others.

    Args:
        features: of B windows.
        classes: (C, D) unit rows.
        scale: factor on the cosines.
        pool: from cosines with the rows (..., C) to those with classes, where they are words.

    Returns:
        (B, G, C) in [0, 1].
    """
    classes = classes.float()

    def logits_of(vectors: Tensor) -> Tensor:
        if pool is not None:
            return scale * pool(unit_rows(vectors) @ classes.T)
        return scale * unit_rows(vectors) @ classes.T

    logits = logits_of(features.groups)  # (B, G, C)
    # The published order: a softmax first, whose ties (underflow) are broken before the top.
    window = logits_of(features.embedding).softmax(dim=-1)
    best = window.topk(min(MOST_CLASSES, window.shape[-1]), dim=-1).indices
    shown = torch.zeros_like(window, dtype=torch.bool).scatter(1, best, True)  # (B, C)
    gated = logits.masked_fill(~shown[:, None], -torch.inf)
    return gated.softmax(dim=-1) * logits.softmax(dim=-1)


def paint_scores(labels: Tensor, scores: Tensor, background: float | None) -> Tensor:
    """Give every pixel the scores of its group.

    The background is 1 where the group's best class is below the threshold, but the threshold is
    lowered to the best of all the window's scores. That best score may belong to a group without
    any pixel, so it has to be known here: it cannot be read from the painted scores.

    Args:
        labels: (B, h, w) the group of each pixel.
        scores: (B, G, C) of the groups.
        background: threshold on the scores, in [0, 1], or None for no background channel.

    Returns:
        (B, C, h, w), or (B, C+1, h, w) with a first channel that is 1 for background, else 0.
        The other channels are not changed by it.
    """
    if background is not None:
        best = scores.amax(dim=-1)  # (B, G)
        threshold = best.amax(dim=-1, keepdim=True).clamp(max=background)
        is_background = (best < threshold).to(scores.dtype)
        scores = torch.cat([is_background[..., None], scores], dim=-1)
    channels = scores.transpose(1, 2)  # (B, C, G)
    index = labels.flatten(1)[:, None].expand(-1, channels.shape[1], -1)
    return channels.gather(2, index).unflatten(-1, labels.shape[1:])


_PROMPT_BATCH = 256


class OVSegmentorSegmenter(WordSegmenter):
    """A `talk2dino.segmenter.Segmenter` that scores the groups of a window.

    Args:
        model: with its weights; it is put into evaluation mode.
        tokenizer: of its text encoder.
        template: name of the prompt set; see talk2dino.backbones.templates.
    """

    def __init__(self, model: OVSegmentor, tokenizer: Tokenizer, template: str = "simple") -> None:
        super().__init__()
        get_templates(template)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.template = template

    @in_float32
    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Embed class names (C, D): mean of the prompts' projected vectors, then of unit length.

        Raises:
            ValueError: no name, or an empty one.
        """
        return unit_rows(prompt_means(self._encode, names, self.template))

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts (N,) to projected vectors (N, D)."""
        starts = range(0, len(prompts), _PROMPT_BATCH)
        tokens = [self.tokenizer(prompts[start : start + _PROMPT_BATCH]) for start in starts]
        return torch.cat(
            [self.model.encode_texts(some.to(self.device)).embedding.float() for some in tokens]
        )

    @in_float32
    def score_features(self, features: EncodedImages, windows: Tensor, query: ClassQuery) -> Tensor:
        """See `WordSegmenter`; scores are in [0, 1], one value per group and class.

        The background's score is 0 or 1; its threshold is on the groups' scores.
        """
        height, width = windows.shape[-2:]
        labels = upsample_groups(features.soft, features.grid_hw, (height, width)).argmax(dim=1)
        pool = None if query.pooling is None else partial(pool_words, query=query, dim=-1)
        scores = group_class_scores(features, query.rows, self.model.scale, pool)  # (B, G, Q)
        if pool is None:
            scores = pool_words(scores, query, dim=2)
        if query.background is None or scores.shape[2] < len(query.names):
            return paint_scores(labels, scores, query.background)
        painted = paint_scores(labels, scores[..., 1:], query.background)
        words = paint_scores(labels, scores[..., :1], None)
        return torch.cat([torch.maximum(painted[:, :1], words), painted[:, 1:]], dim=1)

    @in_float32
    def patch_features(self, windows: Tensor) -> EncodedImages:
        """What class scores of windows (B, 3, h, w), RGB float in [0, 255], are computed from."""
        return self.model.encode_images(normalise(windows))

    @in_float32
    def group_maps(self, windows: Tensor) -> list[Tensor]:
        """How much each pixel belongs to each group, per grouping stage (here there is one).

        Args:
            windows: (B, 3, h, w) RGB float in [0, 255].

        Returns:
            One (B, G, h, w) per stage; it sums to 1 over the groups.
        """
        features = self.patch_features(windows)
        height, width = windows.shape[-2:]
        return [upsample_groups(features.soft, features.grid_hw, (height, width))]


def normalise(windows: Tensor) -> Tensor:
    """RGB float (B, 3, h, w) in [0, 255] to ImageNet's mean 0 and standard deviation 1."""
    mean = windows.new_tensor(IMAGENET_MEAN)[:, None, None] * 255
    std = windows.new_tensor(IMAGENET_STD)[:, None, None] * 255
    return (windows - mean) / std


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
_THRESHOLDS = {"voc": 0.95, "context": 0.35, "coco_object": 0.9, STUFF_BACKGROUND.key: 0.95}

DEFAULT_THRESHOLD = 0.95
"""For images of no benchmark; the published demo's."""


@dataclass(frozen=True)
class OVSegmentorOptions(MethodOptions):
    """Choices beside a model's name."""

    weights: str | None = None
    """The whole model: a converted folder, a published file, or seeded:<n>."""
    template: str = "simple"
    """Prompt set: {TEMPLATES}."""

    def __post_init__(self) -> None:
        get_templates(self.template)


@dataclass(frozen=True)
class OVSegmentorMethod(Method):
    """OVSegmentor (CVPR 2023)."""

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
                f"{place} holds an OVSegmentor. Name its size: --model {'|'.join(PRESETS)} "
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
        return _THRESHOLDS.get(row.key, DEFAULT_THRESHOLD)

    def class_words(self, benchmark: str | None) -> ClassWords:
        """The published prompt names; others as they are, the blank of ADE20K's `bed ` included."""
        aliases = _ALIASES.get(benchmark or "", {})
        return ClassWords(lambda name: (aliases.get(name, name),))

    def check(self) -> None:
        check_source(self.weights)

    def settings(self) -> dict[str, Any]:
        template = self.options.template
        return super().settings() | {"template": ALIASES.get(template, template)}

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> OVSegmentorSegmenter:
        """See `Method`.

        Raises:
            ValueError, FileNotFoundError: see `checkpoints.read_checkpoint` and `load_state`.
            RuntimeError: the tokeniser could not be loaded or downloaded.
        """
        template = self.options.template
        if isinstance(loaded, OVSegmentorSegmenter):
            return OVSegmentorSegmenter(loaded.model, loaded.tokenizer, template)
        checkpoint = read_checkpoint(self.weights, self.model)
        tokenizer = load_tokenizer(checkpoint.config.text, checkpoint.tokenizer)
        with float32_by_default():
            model = OVSegmentor(checkpoint.config)
        load_state(model, checkpoint.state, checkpoint.source)
        return OVSegmentorSegmenter(model.requires_grad_(False).to(device), tokenizer, template)
