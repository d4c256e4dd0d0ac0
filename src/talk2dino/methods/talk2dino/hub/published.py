"""The models that have a name of their own: the authors' four, and the toy one."""

from __future__ import annotations

from dataclasses import dataclass

from talk2dino.backbones.seeded import PREFIX
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.projection import ProjectionConfig

WEIGHTS, CONFIG = ("model.safetensors", "config.json")
"""What a model's repository holds, and all that is downloaded of it."""

TOY = "toy"
TOY_THRESHOLD = 0.52  # an untrained projection never reaches the published 0.55


@dataclass(frozen=True)
class PublishedModel:
    """One of the authors' models."""

    repo: str
    """Repository on the Hugging Face Hub with the whole model."""
    vision_model: str
    """Backbone, as in talk2dino.backbones.vision."""
    width: int
    """D, of the backbone's patches."""
    projection_file: str
    """Name of the authors' file with the projection alone."""
    projection_sha256: str | None
    """Checksum of that file; None where it is not recorded."""

    def config(self, projection_weights: str) -> SegmenterConfig:
        """The segmenter, with backbones that timm and open_clip download."""
        heads = self.width // 64  # as every DINO
        return SegmenterConfig(
            projection=ProjectionConfig(
                hidden_layer=True, dino_embed_dim=self.width, num_attn_head=heads
            ),
            projection_weights=projection_weights,
            vision_model=self.vision_model,
        )


PUBLISHED = {
    "vitb": PublishedModel(
        repo="lorebianchi98/Talk2DINO-ViTB",
        vision_model="dinov2_vitb14_reg",
        width=768,
        projection_file="vitb_mlp_infonce.pth",
        projection_sha256="5f6efcc520f22916ecf3dfdfb01d6f57e701c1c2e1feda71a80d89e3cd752f0f",
    ),
    "vitl": PublishedModel(
        repo="lorebianchi98/Talk2DINO-ViTL",
        vision_model="dinov2_vitl14_reg",
        width=1024,
        projection_file="vitl_mlp_infonce.pth",
        projection_sha256=None,
    ),
    "dinov3_vitb": PublishedModel(
        repo="lorebianchi98/Talk2DINOv3-ViTB",
        vision_model="vit_base_patch16_dinov3.lvd1689m",
        width=768,
        projection_file="dinov3_vitb_mlp_infonce.pth",
        projection_sha256="6fc5ce7a05d8f1c829c174d87b861da05399cf0bfe50de3711ac940115d85fcc",
    ),
    "dinov3_vitl": PublishedModel(
        repo="lorebianchi98/Talk2DINOv3-ViTL",
        vision_model="vit_large_patch16_dinov3.lvd1689m",
        width=1024,
        projection_file="dinov3_vitl_mlp_infonce.pth",
        projection_sha256=None,
    ),
}
"""Short name -> model."""


def short_name(repo: str) -> str | None:
    """The short name of one of the authors' repositories; None for any other."""
    return next((name for name, model in PUBLISHED.items() if model.repo == repo), None)


def toy_config() -> SegmenterConfig:
    """The toy pair with an untrained projection: needs no file, and knows nothing."""
    return SegmenterConfig(
        projection=ProjectionConfig(hidden_layer=True, dino_embed_dim=192, num_attn_head=3),
        projection_weights="seeded:0",
        vision_model=TOY,
        vision_weights="seeded:0",
        text_model=TOY,
        text_weights="seeded:0",
    )


def demo_threshold(config: SegmenterConfig) -> float:
    """Background threshold for pictures that belong to no benchmark."""
    untrained = config.projection_weights.startswith(PREFIX)
    return TOY_THRESHOLD if untrained else default_threshold(config.projection.dino_embed_dim)


def default_threshold(width: int) -> float:
    """Published background threshold for a backbone of width D: lower for the large models."""
    return 0.54 if width >= 1024 else 0.55
