"""Benchmark evaluation as the paper's protocol reads: one window at a time, all steps in full.

The oracle of `talk2dino.benchmarks`, and what it is timed against.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tests.literal.pamr import pamr

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def read_image(path):
    """(1, 3, h, w) RGB 0..255, short side 448 unless the long one would exceed 2048; (H, W)."""
    image = cv2.imread(str(path))
    height, width = image.shape[:2]
    scale = min(2048 / max(height, width), 448 / min(height, width))
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    image = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float(), (height, width)


def read_label(path, reduce_zero_label=False):
    label = np.array(Image.open(path)).astype(np.int64)
    if reduce_zero_label:
        label[label == 0] = 255
        label = label - 1
        label[label == 254] = 255
    return torch.from_numpy(label)


def backbone(model, window):
    """Patches (P, D) and the logits of the last block's CLS token towards them (H, P)."""
    inputs = []
    attention = model.blocks[-1].attn
    hook = attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    tokens = model.forward_features((window / 255 - MEAN) / STD)
    hook.remove()
    query, key, _ = attention.qkv(inputs[0]).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * attention.scale  # every pair
    prefix = model.num_prefix_tokens
    return tokens[0, prefix:], logits[0, :, 0, prefix:]


def clean(mask, patches, logits, classes, weight=0.2):
    heads = F.normalize((logits[:, :, None] * patches).mean(dim=1), dim=-1)
    share = (classes @ heads.T).softmax(dim=-1)
    attention = (share @ logits).softmax(dim=-1)
    attention = (attention - attention.min()) / attention.max()
    attention = attention * (mask.max() - mask.min()) + mask.min()
    return (mask + weight * attention) / (1 + weight)


def window_scores(model, window, classes, background=None, cleaning=False, refine=False):
    """(1, 3, h, w) to (1, C, h, w), with a background in front if it has a threshold."""
    height, width = window.shape[-2:]
    resized = F.interpolate(
        window, size=(448, 448), mode="bilinear", antialias=True, align_corners=False
    )
    patches, logits = backbone(model, resized)
    mask = (F.normalize(patches, dim=-1, eps=1e-6) @ classes.T).T.sigmoid()  # (C, P)
    if cleaning:
        mask = clean(mask, patches, logits, classes)
    mask = mask.reshape(1, len(classes), 448 // 14, 448 // 14)
    mask = F.interpolate(mask, size=(height, width), mode="bilinear", align_corners=True)
    if refine:
        mask = torch.cat([pamr(window, part) for part in mask.split(30, dim=1)], dim=1)
    if background is not None:
        mask = torch.cat([torch.full_like(mask[:, :1], background), mask], dim=1)
    return mask


def image_labels(score, image, original, size=448, stride=224):
    """Slide windows over (1, 3, h, w), average, resize to the original, softmax, argmax."""
    height, width = image.shape[-2:]
    rows = max(height - size + stride - 1, 0) // stride + 1
    columns = max(width - size + stride - 1, 0) // stride + 1
    total, hits = 0, torch.zeros(1, 1, height, width)
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride + size, height), min(column * stride + size, width)
            top, left = max(bottom - size, 0), max(right - size, 0)
            scores = score(image[:, :, top:bottom, left:right])
            total = total + F.pad(scores, (left, width - right, top, height - bottom))
            hits[:, :, top:bottom, left:right] += 1
    scores = F.interpolate(total / hits, size=original, mode="bilinear", align_corners=False)
    return scores.softmax(dim=1).argmax(dim=1)[0]


def areas(predicted, target, num_classes):
    """Intersection, union, predicted and labelled area per class (4, C), by histograms."""
    counted = target != 255
    predicted, target = predicted[counted], target[counted]

    def histogram(labels):
        return torch.histc(labels.float(), bins=num_classes, min=0, max=num_classes - 1)

    hit, found = histogram(predicted[predicted == target]), histogram(predicted)
    labelled = histogram(target)
    return torch.stack([hit, found + labelled - hit, found, labelled])


@torch.no_grad()
def evaluate(files, score, num_classes, reduce_zero_label=False):
    """Areas (N, 4, C) of (image, label) files, with `score` from windows to scores."""
    results = []
    for image_path, label_path in files:
        image, original = read_image(Path(image_path))
        predicted = image_labels(score, image, original)
        label = read_label(Path(label_path), reduce_zero_label)
        results.append(areas(predicted, label, num_classes))
    return torch.stack(results)
