"""Pictures of the groups that some methods divide an image into before they know any class."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from talk2dino.inference import resize_picture, resize_scores, score_labels
from talk2dino.pictures.drawing import blend
from talk2dino.pictures.images import rgb_tensor
from talk2dino.pictures.vocabularies import group_colours
from talk2dino.segmenter import Segmenter, require_groups
from talk2dino.sizes import Protocol


@torch.inference_mode()
def draw_groups(segmenter: Segmenter, image: np.ndarray, device: torch.device) -> list[Image.Image]:
    """One picture per stage of grouping: half the image, half the colours of its groups.

    The image is grouped as a whole, in one window of a benchmark's size.

    Args:
        segmenter: one with groups, see `talk2dino.segmenter.Grouping`.
        image: (H, W, 3) uint8 RGB.
        device: where the segmenter is.

    Raises:
        ValueError: the segmenter has no groups.
    """
    grouping = require_groups(segmenter)
    size_hw = Protocol().scored_size(image.shape[0], image.shape[1])
    window = resize_picture(rgb_tensor(Image.fromarray(image)), size_hw)[None]
    window = window.to(device, torch.float32)
    pictures, first = [], 0
    for maps in grouping.group_maps(window):
        colours = group_colours(first + maps.shape[1])[first:]
        first += maps.shape[1]
        labels = score_labels(resize_scores(maps[0], (image.shape[0], image.shape[1])))
        pictures.append(Image.fromarray(blend(image, colours[labels.cpu().numpy()])))
    return pictures
