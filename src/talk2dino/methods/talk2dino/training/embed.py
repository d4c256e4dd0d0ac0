"""What a projection makes of a set of pairs: vectors for retrieval, and chosen heads."""

from __future__ import annotations

import torch
from torch import Tensor

from talk2dino.methods.talk2dino.alignment import selected_heads
from talk2dino.methods.talk2dino.projection import Projection, ProjectionConfig
from talk2dino.methods.talk2dino.training.dataset import DENSE_TEXT, Batch, FeatureChoice, Pairs

BATCH_SIZE = 256


def embed_pairs(model: Projection, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Every caption, and every image that has one, in the common space.

    Args:
        model: the projection.
        pairs: with one vector per image; see `check_retrieval`.

    Returns:
        (M, D) captions, (N, D) images, and (M,) the row of each caption's image.
    """
    _, rows = pairs.caption_rows.unique(return_inverse=True)
    first_caption = torch.full((int(rows.max()) + 1,), len(pairs))
    first_caption.scatter_reduce_(0, rows, torch.arange(len(pairs)), "amin")
    everything = torch.arange(len(pairs)).split(BATCH_SIZE)
    with torch.no_grad():
        text = [_embed(model, batch)[1] for batch in pairs.batches(everything)]
        visual = [
            _embed(model, batch)[0] for batch in pairs.batches(first_caption.split(BATCH_SIZE))
        ]
    return torch.cat(text), torch.cat(visual), rows


def chosen_heads(model: Projection, batch: Batch) -> Tensor:
    """(B,) head that represents each image for its own caption, before the step's update."""
    with torch.no_grad():
        return selected_heads(*_embed(model, batch))


def check_retrieval(choice: FeatureChoice) -> None:
    """Raise ValueError unless the features give one vector per caption and per image."""
    if choice.text == DENSE_TEXT or (choice.visual == "patch_tokens" and not choice.with_maps):
        raise ValueError(
            "--test_dataset ranks one vector per caption and per image, "
            f"which {choice.visual} with {choice.text} are not. Leave the flag out."
        )


def check_heads_recorded(config: ProjectionConfig, choice: FeatureChoice) -> None:
    """Raise ValueError unless the training chooses a head for each caption."""
    if config.alignment_strategy != "max_score" or choice.visual != "disentangled_self_attn":
        raise ValueError(
            "--save_head_activations needs alignment_strategy: max_score and "
            f"--feature_name disentangled_self_attn: {config.alignment_strategy} on "
            f"{choice.visual} chooses no head"
        )


def _embed(model: Projection, batch: Batch) -> tuple[Tensor, Tensor]:
    extras = {key: value for key, value in batch.extras.items() if key != "text_input_mask"}
    return model.embed(batch.visual, batch.text, **extras, visual_is_unit=batch.visual_is_unit)
