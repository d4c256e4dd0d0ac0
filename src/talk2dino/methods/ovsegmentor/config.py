"""What defines an OVSegmentor: its architectures; and its pretraining: a recipe.

A recipe is one YAML file of `configs/ovsegmentor_*.yaml`, read strictly.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from talk2dino.config import build, check_at_least, check_between, check_name, split_names
from talk2dino.devices import AMP_TYPES
from talk2dino.files import find_in_checkout
from talk2dino.methods.ovsegmentor.data.words import PUBLISHED, EntityTable, own_entities
from talk2dino.textfiles import parse_yaml, read_yaml

STAGES = ("evaluation", "stage1", "stage2")
"""What a model holds: the two encoders; also the entity decoder; also the EMA teacher."""


@dataclass(frozen=True)
class VisionConfig:
    """The image encoder: a ViT whose middle turns patches into groups."""

    width: int = 768
    """Width C of patches, tokens and groups."""
    num_heads: int = 8
    """Heads of the blocks. The published ViT-B has 8, though its DINO weights had 12."""
    cross_heads: int = 8
    """Heads of the cross-attentions, of the grouping block and of the entity decoder."""
    depth_patches: int = 6
    """Blocks over patches and group tokens, before the grouping."""
    depth_groups: int = 6
    """Blocks over the groups, after it."""
    num_tokens: int = 64
    """Learned group tokens."""
    num_groups: int = 8
    """Groups G that the tokens are mixed into."""
    image_size: int = 224
    """Side of a training image in pixels; it gives the grid of position embeddings."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    drop_path: float = 0.1
    """Drop-path rate of the last block; it grows linearly from 0. Training only."""

    def __post_init__(self) -> None:
        counts = dataclasses.asdict(self)
        drop_path = counts.pop("drop_path")
        check_at_least(1, **counts)
        for name in ("num_heads", "cross_heads"):
            if self.width % counts[name]:
                raise ValueError(f"width {self.width} cannot be split into {counts[name]} {name}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        check_between(0, 0.99, drop_path=drop_path)

    @property
    def grid(self) -> int:
        """Patches along each side of a training image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """The text encoder, a BERT or a RoBERTa of the transformers library."""

    kind: str = "bert"
    """bert or roberta."""
    name: str = "bert-base-uncased"
    """Model id or local folder of the tokeniser, and of the weights a pretraining starts from."""
    width: int = 768
    """Width E of its tokens."""
    depth: int = 12
    """Blocks."""
    num_heads: int = 12
    """Attention heads."""
    vocabulary: int = 30522
    """Size of the vocabulary."""
    positions: int = 512
    """Rows of the position embedding; RoBERTa does not use the first two."""
    dropout: float = 0.1
    """Dropout of hidden states and attention weights. Training only."""

    def __post_init__(self) -> None:
        check_name("text encoder (kind)", self.kind, ("bert", "roberta"))
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} cannot be split into {self.num_heads} num_heads")


@dataclass(frozen=True)
class OVSegmentorConfig:
    """The whole model."""

    name: str
    """What users call it."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """Image encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text encoder."""
    projector_width: int = 4096
    """Hidden width of the three projectors."""
    joint_width: int = 256
    """Width D of the space where images and texts meet."""

    def __post_init__(self) -> None:
        check_at_least(1, projector_width=self.projector_width, joint_width=self.joint_width)

    @property
    def decoder_width(self) -> int:
        """Width of the entity decoder: the narrower of the two encoders'."""
        return min(self.vision.width, self.text.width)


_BERT = TextConfig()
_ROBERTA = TextConfig(kind="roberta", name="roberta-base", vocabulary=50265, positions=514)

PRESETS: dict[str, OVSegmentorConfig] = {
    config.name: config
    for config in (
        OVSegmentorConfig("ovsegmentor_vitb", VisionConfig(), _BERT),
        # No configuration of the ViT-S was published; its head count is not in its weights either.
        OVSegmentorConfig("ovsegmentor_vits", VisionConfig(width=384), _ROBERTA),
        OVSegmentorConfig(
            "ovsegmentor_toy",
            VisionConfig(
                width=64,
                num_heads=4,
                depth_patches=2,
                depth_groups=2,
                num_tokens=16,
                patch_size=32,
                drop_path=0.0,
            ),
            TextConfig(name="toy", width=64, depth=2, num_heads=4, vocabulary=256, positions=96),
            projector_width=256,
            joint_width=64,
        ),
    )
}
"""Name -> architecture. The first two are the published ones; toy runs on any CPU."""


def get_preset(name: str) -> OVSegmentorConfig:
    """The architecture called `name`.

    Raises:
        ValueError: there is none; the known ones are listed.
    """
    return PRESETS[check_name("OVSegmentor model", name, PRESETS)]


LR_BATCH = 4096
"""Learning rates in recipes are for this many samples per step."""


@dataclass(frozen=True)
class PretrainingData:
    """The `data:` section."""

    metafile: str
    """A csv or tsv with image_id and caption (stage 2 also pairindex and pairentity), COCO
    captions, or tars."""
    images: str = ""
    """Folder of the images that a metafile names."""
    entities: str = ""
    """Words to look for, separated by commas; by default those of the paper."""
    lemmas: str = "auto"
    """Source of singulars: auto, lemminflect or wordnet."""

    def __post_init__(self) -> None:
        if not self.metafile:
            raise ValueError("'metafile:' is empty")
        self.table  # noqa: B018  # refuses its own wrong values

    @property
    def table(self) -> EntityTable:
        """The words that count as entities."""
        words = map(str.strip, split_names(self.entities))
        return own_entities(words) if self.entities else PUBLISHED


@dataclass(frozen=True)
class AugmentConfig:
    """The `augment:` section: how training images are changed."""

    deit: bool = True
    """DeiT's augmentation (stage 1), or only crop and flip (stage 2)."""
    smallest_crop: float = 0.08
    """Smallest share of an image's area that a crop takes: 0.08 in stage 1, 0.4 in stage 2."""

    def __post_init__(self) -> None:
        check_between(1e-6, 1, smallest_crop=self.smallest_crop)


@dataclass(frozen=True)
class TrainConfig:
    """The `train:` section: optimiser, schedule and batches (defaults: published stage 1)."""

    epochs: int = 30
    """Passes over the captions."""
    batch_size: int = 256
    """Samples per process and micro-batch. Negatives come from all processes' micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimiser step, whose gradients are averaged."""
    base_lr: float = 6.4e-4
    """Highest learning rate, for 4096 samples per step; it is scaled to the actual number."""
    min_lr: float = 1.6e-4
    """The cosine's last value, scaled alike."""
    warmup_lr: float = 1.6e-5
    """The warm-up's first value, scaled alike."""
    warmup_epochs: int = 2
    """Epochs of linear rise; 0 for none."""
    weight_decay: float = 0.05
    """Of AdamW; biases and other vectors have none."""
    clip_grad: float = 5.0
    """Largest norm of all gradients together, once per optimiser step."""
    freeze_text: bool = False
    """Keep the language model's weights (stage 2); its dropout stays active, as published."""
    amp: str | None = None
    """Mixed precision: auto, bfloat16, float16, tf32; null for float32. Losses stay in float32."""
    text_length: int = 77
    """Tokens of a text, padded and cut."""
    log_every: int = 50
    """Steps between looks at the losses, entries in the log, and chances to save the state."""
    seed: int = 0
    """Of the first weights, orders, augmentation, noise and dropout."""

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "accumulate", "text_length", "log_every")
        check_at_least(1, **{name: getattr(self, name) for name in positive})
        check_at_least(0, warmup_epochs=self.warmup_epochs, seed=self.seed)
        rates = ("base_lr", "min_lr", "warmup_lr", "weight_decay", "clip_grad")
        check_between(0, math.inf, **{name: getattr(self, name) for name in rates})
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leave nothing of {self.epochs}")
        if self.amp is not None:
            check_name("amp", self.amp, AMP_TYPES)


PUBLISHED_BATCH = 128
"""Images per process in the published second stage."""


@dataclass(frozen=True)
class LossConfig:
    """The `losses:` section of a recipe (section 3 of the paper)."""

    entity: float = 1.0
    """Weight of the masked entity completion."""
    mask: float = 0.1
    """Weight of the mask consistency; stage 2."""
    threshold: float = 0.6
    """A pixel of the target counts where its sigmoid reaches this share of its map's maximum; stage
    2."""
    group_ratio: float = 0.5
    """Share of the groups, those least like the entity, whose maps get no gradient; stage 2."""
    ema: float = 0.99
    """How much of itself the teacher keeps at every optimiser step; stage 2."""

    def __post_init__(self) -> None:
        check_between(0, math.inf, entity=self.entity, mask=self.mask)
        check_between(0, 1, threshold=self.threshold, group_ratio=self.group_ratio, ema=self.ema)


@dataclass(frozen=True)
class StartConfig:
    """The `start:` section: the weights a run begins with."""

    dino: str | None = None
    """Stage 1: a file of DINO weights, `pretrained` (downloaded by timm), or null for none."""
    text: str | None = None
    """Stage 1: `pretrained` (the model's own), an id or a folder of transformers, or null."""
    stage1: str | None = None
    """Stage 2: a folder that stage 1 wrote, or a published file."""


@dataclass(frozen=True)
class SelectionConfig:
    """The `selection:` section: captions that choose the epoch and are neither trained on nor
    reported. Without a metafile the last epoch's weights are kept."""

    metafile: str | None = None
    """Metafile, COCO captions or tars, as in the data section."""
    images: str = ""
    """Folder of their images."""
    batch_size: int = 256
    """Images and captions that are told apart at once, per process."""

    def __post_init__(self) -> None:
        check_at_least(2, batch_size=self.batch_size)


SECTIONS = ("data", "augment", "train", "losses", "start", "selection")
_KEYS = ("model", "stage", "compat", *SECTIONS)


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that the final weights depend on, apart from the number of processes."""

    model: str
    """Name of the architecture; see talk2dino.methods.ovsegmentor.config."""
    stage: int
    """1 or 2."""
    data: PretrainingData
    """Captions and images."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How images are changed."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimiser, schedule, batches."""
    losses: LossConfig = field(default_factory=LossConfig)
    """Weights and constants of the losses."""
    start: StartConfig = field(default_factory=StartConfig)
    """First weights."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Held-out captions."""
    compat: bool = False
    """Do what the published training does where this one is corrected: questions and answers of
    its loader, and a mask loss that is a sum over the images of a process."""
    path: Path = Path()
    """Where it was read from."""

    def __post_init__(self) -> None:
        config = self.config
        if self.compat and self.data.entities:
            raise ValueError("entities cannot be chosen under compat, which has the published ones")
        if self.stage not in (1, 2):
            raise ValueError(f"stage must be 1 or 2, got {self.stage}")
        if self.train.text_length > config.text.positions:
            raise ValueError(
                f"train: text_length {self.train.text_length} is more than the "
                f"{config.text.positions} positions of {self.model}"
            )
        if self.stage == 2 and not self.start.stage1:
            raise ValueError("stage 2 goes on from stage 1: give its folder as start: stage1:")
        if self.stage == 2 and (self.start.dino or self.start.text):
            raise ValueError("stage 2 starts from stage 1 alone: leave out start: dino and text")
        if self.stage == 1 and self.start.stage1:
            raise ValueError("start: stage1 is for stage 2; stage 1 starts from dino and text")

    @property
    def config(self) -> OVSegmentorConfig:
        """The architecture."""
        return get_preset(self.model)

    @property
    def mask_batch(self) -> int | None:
        """What the loss of the masks is scaled to; under `compat` it is the plain sum."""
        return None if self.compat else PUBLISHED_BATCH


def load_pretraining_recipe(path: str | Path, changes: Sequence[str] = ()) -> PretrainingRecipe:
    """Read a recipe.

    Args:
        path: the YAML file.
        changes: `section.key=value` or `key=value`, which replace what the file says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown section or key, a wrong value, or one that contradicts another.
    """
    path = find_in_checkout(path)
    content: dict[str, Any] = dict(read_yaml(path))
    for name in content:
        check_name(f"key of {path.name}", str(name), _KEYS)
    for change in changes:
        name, equals, text = change.partition("=")
        section, dot, key = name.partition(".")
        if equals:
            check_name("key in --set", section, _KEYS)
        if not equals or (section in SECTIONS) != bool(dot):
            wanted = "write section.key=value, or one of model, stage, compat"
            raise ValueError(f"--set {change}: {wanted}")
        value = parse_yaml(text, f"--set {change[:200]}: the value")
        content[section] = {**(content.get(section) or {}), key: value} if dot else value
    given = {key: value for key, value in content.items() if value is not None}
    return replace(build(PretrainingRecipe, given, path.name), path=path)
