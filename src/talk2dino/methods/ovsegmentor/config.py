"""What defines an OVSegmentor: the two published architectures, and a toy one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from talk2dino.config import check_at_least, check_between, check_name

STAGES = ("evaluation", "stage1", "stage2")
"""What a model holds: the two encoders; also the entity decoder; also the EMA teacher."""
TEXT_KINDS = ("bert", "roberta")


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
        check_name("text encoder (kind)", self.kind, TEXT_KINDS)
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
