"""DINOv2 feature extraction as published: decoding in the main process, P x P attention."""

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

HEAD_WIDTH = 64
PATCH = 14
GRID = 37  # of the position embeddings


def preprocessing(resize_dim, crop_dim):
    return transforms.Compose(
        [
            transforms.Resize(resize_dim, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop_dim),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def attention(x, state, block):
    """(B, N, D) -> (B, N, D), and its (B, H, N, N) logits."""
    batch, length, width = x.shape
    heads = width // HEAD_WIDTH
    qkv = linear(x, state, f"{block}.attn.qkv").view(batch, length, 3, heads, HEAD_WIDTH)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) * HEAD_WIDTH**-0.5
    mixed = logits.softmax(dim=-1) @ v
    mixed = mixed.transpose(1, 2).reshape(batch, length, width)
    return linear(mixed, state, f"{block}.attn.proj"), logits


def embedded(images, state):
    """(B, 3, h, w) normalised -> (B, 1 + registers + P, D) with positions."""
    patches = F.conv2d(
        images,
        state["patch_embed.proj.weight"],
        state["patch_embed.proj.bias"],
        stride=PATCH,
    )
    batch, width, *grid = patches.shape
    positions = state["pos_embed"]
    square = positions[:, 1:].reshape(1, GRID, GRID, width).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
    tokens = patches.flatten(2).transpose(1, 2) + square.flatten(2).transpose(1, 2)
    cls = (state["cls_token"] + positions[:, :1]).expand(batch, -1, -1)
    registers = state["register_tokens"].expand(batch, -1, -1)
    return torch.cat([cls, registers, tokens], dim=1)


def backbone(images, state):
    """Final tokens (B, N, D) and the last block's attention logits (B, H, N, N)."""
    x = embedded(images, state)
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for number in range(depth):
        block = f"blocks.{number}"
        mixed, logits = attention(norm(x, state, f"{block}.norm1"), state, block)
        x = x + mixed * state[f"{block}.ls1.gamma"]
        hidden = F.gelu(linear(norm(x, state, f"{block}.norm2"), state, f"{block}.mlp.fc1"))
        x = x + linear(hidden, state, f"{block}.mlp.fc2") * state[f"{block}.ls2.gamma"]
    return norm(x, state, "norm"), logits


@torch.no_grad()
def extract(paths, state, batch_size=64, resize_dim=448, crop_dim=448):
    """One dict of tensors per photograph."""
    transform = preprocessing(resize_dim, crop_dim)
    prefix = 1 + state["register_tokens"].shape[1]
    device = state["cls_token"].device
    records = [{"file_name": str(path)} for path in paths]
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        pictures = [transform(Image.open(record["file_name"]).convert("RGB")) for record in batch]
        tokens, logits = backbone(torch.stack(pictures).to(device), state)
        patches, maps = tokens[:, prefix:], logits[:, :, 0, prefix:]
        average = maps.mean(dim=1).softmax(dim=-1)
        heads = maps.softmax(dim=-1)
        for row, record in enumerate(batch):
            record["avg_self_attn_out"] = (average[row].unsqueeze(-1) * patches[row]).mean(dim=0)
            weighted = heads[row].unsqueeze(-1) * patches[row].unsqueeze(0)
            record["disentangled_self_attn"] = weighted.mean(dim=1)
    return records
