"""ProxyCLIP, CLIP-DINOiser and FreeDA as their papers read, from what the towers give.

Window by window, every attention head on its own, region masks against all features at once.
"""

import torch
import torch.nn.functional as F

EPS = 1.19209e-7


def proxyclip_scores(segmenter, window, classes):
    """Cosines (1, C, h, w) of one window (1, 3, h, w) whose sides need no padding."""
    size_hw, last = window.shape[-2:], segmenter.image.blocks[-1]
    grid = [side // segmenter.vision.patch_size for side in size_hw]
    patches = segmenter.vision(segmenter.vision.normalise(window)).patches
    values = segmenter.last_values(window, grid)  # (1, P, D)
    unit = F.normalize(patches, dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    logits = 3.0 * (similarity - 1.2 * similarity.mean())
    diagonal = torch.eye(logits.shape[-1], dtype=torch.bool)
    mask = torch.zeros_like(logits).masked_fill((logits < 0) & ~diagonal, float("-inf"))
    heads = last.attn.num_heads
    attention = (logits + mask).unsqueeze(1).repeat(1, heads, 1, 1).softmax(dim=-1)
    per_head = values.unflatten(-1, (heads, -1)).transpose(1, 2)  # (1, H, P, D / H)
    mixed = (attention @ per_head).transpose(1, 2).flatten(2)
    dense = F.normalize(segmenter.image.project(last.attn.out_proj(mixed)), dim=-1)
    cosines = (dense @ classes.T).transpose(1, 2).unflatten(-1, grid)
    return F.interpolate(cosines, size=size_hw, mode="bilinear", align_corners=False)


def clip_dinoiser_scores(segmenter, window, classes):
    """Probabilities (1, C, h, w) of one window (1, 3, h, w) whose sides need no padding."""
    features, middle = segmenter.dense_features(window)
    alike = F.normalize(segmenter.heads.obj_proj(middle), dim=1).flatten(2)  # (1, K, P)
    correlation = alike.transpose(1, 2) @ alike
    correlation[correlation < 0.2] = 0
    smooth = correlation @ features / (correlation.sum(dim=-1, keepdim=True) + 1e-6)
    cosines = (F.normalize(smooth, dim=-1) @ classes.T).transpose(1, 2)
    scores = (100 * cosines).softmax(dim=1).unflatten(-1, middle.shape[-2:])
    return F.interpolate(scores, size=window.shape[-2:], mode="bilinear", align_corners=False)


def freeda_scores(segmenter, window, classes):
    """Mixed scores (1, C, h, w) of one window (1, 3, h, w); classes hold prototypes and texts."""
    size_hw = window.shape[-2:]
    patches = segmenter.vision(segmenter.dino_input(window)).patches[0]  # (P, D)
    side = round(len(patches) ** 0.5)
    prototypes, texts = classes.split([patches.shape[1], classes.shape[1] - patches.shape[1]], 1)
    dense = torch.sigmoid(prototypes @ F.normalize(patches, dim=-1, eps=1e-6).T)
    dense = dense.view(1, -1, side, side)
    local = F.interpolate(dense, size=size_hw, mode="bilinear", align_corners=True)[0]
    labels = segmenter.superpixels.of(window[0])
    masks = F.one_hot(labels).permute(2, 0, 1)[None].float()
    weights = F.interpolate(masks, size=(side, side), mode="bilinear", align_corners=True)
    weights = weights[0].flatten(1)  # (R, P)
    pooled = (weights[:, :, None] * patches).sum(dim=1) / (weights.sum(dim=1)[:, None] + EPS)
    for region, mean in enumerate(pooled):
        if mean.any():
            found = torch.sigmoid(prototypes @ (mean / mean.norm()))
            local[:, labels == region] = found[:, None]
    opinion = texts @ segmenter.embed_windows(window)[0]
    return (0.8 * local + 0.2 * opinion[:, None, None])[None]
