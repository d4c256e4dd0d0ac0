"""OVSegmentor as a whole: encoders and projectors; decoder and teacher when it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from talk2dino.config import check_name
from talk2dino.methods.ovsegmentor.config import (
    PUBLISHED_BATCH,
    STAGES,
    LossConfig,
    OVSegmentorConfig,
)
from talk2dino.methods.ovsegmentor.losses import (
    infonce,
    least_similar_groups,
    mask_consistency,
    similarity_scale,
    stop_gradient_of,
)
from talk2dino.methods.ovsegmentor.text import TextEncoder, Tokens
from talk2dino.methods.ovsegmentor.vision import (
    EntityDecoder,
    GroupFeatures,
    ImageEncoder,
    affinity,
)
from talk2dino.processes import num_processes, sum_over_processes

TEACHER = "img_encoder_momentum"


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of all processes together.

    It computes what `torch.nn.SyncBatchNorm` does, which only runs on accelerators, on any device.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, T) over B, T and the processes."""
        if not self.training or num_processes() == 1:
            return super().forward(input)
        x = input.float()
        own = torch.stack([x.new_tensor(x.shape[0] * x.shape[2])]).expand(1)
        sums = sum_over_processes(torch.cat([x.sum(dim=(0, 2)), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean[:, None]
        variance = sum_over_processes(centred.square().sum(dim=(0, 2))) / count
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():  # the running variance is the unbiased one
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        normalised = centred * (variance + self.eps).rsqrt()[:, None]
        return (normalised * self.weight[:, None] + self.bias[:, None]).to(input.dtype)


class Projector(nn.Module):
    """Linear, batch norm, ReLU, linear; nothing is normalised to unit length here.

    The linear layers are stored as convolutions of width 1, as published.

    Args:
        width: of the input.
        hidden: of the layer between.
        out: of the joint space.
        shared: take batch statistics over all processes; the bridge's are per process.
    """

    def __init__(self, width: int, hidden: int, out: int, shared: bool = True) -> None:
        super().__init__()
        norm = SharedBatchNorm(hidden) if shared else nn.BatchNorm1d(hidden)
        self.linear_hidden = nn.Sequential(nn.Conv1d(width, hidden, 1), norm, nn.ReLU())
        self.linear_out = nn.Conv1d(hidden, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, D), or (B, T, C) to (B, T, D); statistics are over B, or B and T."""
        columns = x[:, :, None] if x.ndim == 2 else x.transpose(1, 2)  # (B, C, T)
        projected = self.linear_out(self.linear_hidden(columns))
        return projected[:, :, 0] if x.ndim == 2 else projected.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images in the joint space; nothing is of unit length."""

    embedding: Tensor
    """(B, D) projected mean of the groups."""
    groups: Tensor
    """(B, G, D) projected groups."""
    features: GroupFeatures
    """Before the projection."""

    @property
    def soft(self) -> Tensor:
        """(B, G, P) how much each patch belongs to each group."""
        return self.features.assignment.soft.float()

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.features.grid_hw


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts in the joint space."""

    embedding: Tensor
    """(B, D) projected first token, not of unit length."""
    tokens: Tensor
    """(B, T, E) all tokens of the last layer, before the projection."""


class PretrainingBatch(NamedTuple):
    """One step's samples; images are normalised RGB of the training size."""

    images: Tensor
    """(B, 3, H, W)."""
    captions: Tokens
    """The captions."""
    questions: Tokens
    """The captions with [MASK] for every entity."""
    answers: Tokens
    """A prompt with the entities."""
    paired_images: Tensor | None = None
    """(B, 3, H, W) other images that share an entity; stage 2."""
    paired_entities: Tokens | None = None
    """`A photo of ` and the shared entity; stage 2."""

    def to(self, device: str | torch.device) -> PretrainingBatch:
        parts: list[Any] = [None if part is None else part.to(device) for part in self]
        return PretrainingBatch(*parts)


class Losses(NamedTuple):
    """What one step costs."""

    total: Tensor
    """matching + entity + 0.1 mask."""
    matching: Tensor
    """InfoNCE of images and captions."""
    entity: Tensor
    """InfoNCE of completed captions and answers."""
    mask: Tensor
    """Consistency of the masks of paired images; 0 in stage 1."""


class OVSegmentor(nn.Module):
    """Image and text encoders with projectors; its state dict has the published names.

    Args:
        config: the architecture.
        stage: `evaluation`, `stage1` (also the entity decoder) or `stage2` (also the teacher).
        losses: their weights, and how masks are compared in stage 2.
        mask_batch: what the loss of the masks is scaled to; see `mask_consistency`.
    """

    def __init__(
        self,
        config: OVSegmentorConfig,
        stage: str = "evaluation",
        losses: LossConfig | None = None,
        mask_batch: int | None = PUBLISHED_BATCH,
    ) -> None:
        super().__init__()
        check_name("stage", stage, STAGES)
        self.config = config
        self.stage = stage
        self.losses = losses or LossConfig()
        self.mask_batch = mask_batch
        hidden, joint = config.projector_width, config.joint_width
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.img_encoder = ImageEncoder(config.vision)
        self.text_encoder = TextEncoder(config.text)
        self.img_projector = Projector(config.vision.width, hidden, joint)
        self.text_projector = Projector(config.text.width, hidden, joint)
        if stage != "evaluation":
            width = config.decoder_width
            # The wider encoder is mapped to the decoder's width; the other one is taken as it is.
            self.align_proj_img, self.align_proj_text = (
                nn.Identity() if own == width else nn.Linear(own, width)
                for own in (config.vision.width, config.text.width)
            )
            self.multimodal_groupingblock = EntityDecoder(width, config.vision.cross_heads)
            self.bridge_projector = Projector(width, hidden, joint, shared=False)
        if stage == "stage2":
            self.logit_scale_mask = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # never read
            self.img_encoder_momentum = ImageEncoder(config.vision).requires_grad_(False)
            self.img_encoder_momentum.load_state_dict(self.img_encoder.state_dict())

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """The factor on cosines."""
        return similarity_scale(self.logit_scale)

    def encode_images(self, images: Tensor) -> EncodedImages:
        """Normalised RGB images (B, 3, h, w) to groups in the joint space."""
        features = self.img_encoder(images)
        # In training both calls move the projector's running statistics, as published.
        embedding = self.img_projector(features.mean)
        return EncodedImages(embedding, self.img_projector(features.groups), features)

    def encode_texts(self, tokens: Tokens) -> EncodedTexts:
        """Token ids (B, T) to the joint space.

        In training every token is projected as well, padding included: nothing reads the result,
        but it moves the projector's running statistics, with which the published model is used.
        """
        encoded = self.text_encoder(tokens)
        embedding = self.text_projector(encoded[:, 0])
        if self.training:
            with torch.no_grad():
                self.text_projector(encoded)
        return EncodedTexts(embedding, encoded)

    def forward(self, batch: PretrainingBatch) -> Losses:
        """The losses of one step (see `losses`); every process gives batches of equal size.

        Stage 2 needs paired images; a model that was built for evaluation has no losses.
        """
        captions = self.encode_texts(batch.captions)
        images = self.encode_images(batch.images)
        questions = self.encode_texts(batch.questions)
        answers = self.encode_texts(batch.answers)
        completed = self.complete(images.features.groups, questions.tokens)
        matching = infonce(images.embedding, captions.embedding, self.scale)
        entity = infonce(completed, answers.embedding, self.scale)
        total = matching + self.losses.entity * entity
        if self.stage == "stage1":
            return Losses(total, matching, entity, torch.zeros_like(total))
        mask = self._mask_loss(batch, images)
        return Losses(total + self.losses.mask * mask, matching, entity, mask)

    def complete(self, groups: Tensor, question: Tensor) -> Tensor:
        """Groups (B, G, C) and question tokens (B, T, E) to completed captions (B, D)."""
        decoded = self.multimodal_groupingblock(
            self.align_proj_img(groups), self.align_proj_text(question)
        )
        return self.bridge_projector(decoded)

    @torch.no_grad()
    def update_teacher(self, decay: float = LossConfig.ema) -> None:
        """Move the teacher towards the image encoder; called after every optimiser step."""
        students = self.img_encoder.parameters()
        for teacher, student in zip(self.img_encoder_momentum.parameters(), students, strict=True):
            teacher.mul_(decay).add_(student, alpha=1 - decay)

    def _mask_loss(self, batch: PretrainingBatch, images: EncodedImages) -> Tensor:
        assert batch.paired_images is not None and batch.paired_entities is not None
        with torch.no_grad():
            # As published the teacher runs in the student's mode, drop path included.
            paired = self.img_encoder_momentum(batch.paired_images)
            if self.training:  # unused as well, but it moves the running statistics
                self.img_projector(paired.mean)
                self.img_projector(paired.groups)
            entities = self.encode_texts(batch.paired_entities).embedding
        queries = images.features.assignment.queries
        keys = paired.assignment.keys
        with torch.autocast(queries.device.type, enabled=False):
            student = affinity(queries.float(), keys.float())  # (B, G, P)
            teacher = affinity(paired.assignment.queries.float(), keys.float())
            ignored = least_similar_groups(images.groups, entities, self.losses.group_ratio)
            student = stop_gradient_of(student, ignored)
            grid = paired.grid_hw
            height, width = batch.paired_images.shape[-2:]
            return mask_consistency(
                student.unflatten(-1, grid),
                teacher.unflatten(-1, grid),
                (height, width),
                self.losses.threshold,
                self.mask_batch,
            )
