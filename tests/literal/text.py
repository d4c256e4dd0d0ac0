"""CLIP's text tower as published: batches in the file's order, 77 positions, plain attention."""

import open_clip
import torch
import torch.nn.functional as F


def attention(x, state, block, heads):
    """Causal self-attention of (B, T, D) with its B x H x T x T matrix."""
    batch, length, width = x.shape
    qkv = F.linear(x, state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"])
    q, k, v = qkv.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    mixed = scores.masked_fill(later, float("-inf")).softmax(dim=-1) @ v
    mixed = mixed.transpose(1, 2).reshape(batch, length, width)
    return F.linear(
        mixed, state[f"{block}.attn.out_proj.weight"], state[f"{block}.attn.out_proj.bias"]
    )


def norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def caption_vectors(tokens, state, heads):
    """(B, 77) token ids -> (B, E): the projected vector of each end-of-text token."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    depth = len({name.split(".")[2] for name in state if name.startswith("transformer.")})
    for number in range(depth):
        block = f"transformer.resblocks.{number}"
        x = x + attention(norm(x, state, f"{block}.ln_1"), state, block, heads)
        hidden = norm(x, state, f"{block}.ln_2")
        hidden = F.linear(
            hidden, state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"]
        )
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + F.linear(
            hidden, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"]
        )
    x = norm(x, state, "ln_final")
    ends = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    return ends @ state["text_projection"]


@torch.no_grad()
def extract(captions, state, heads, batch_size=256):
    """Adds its vector to every caption's own dict, as the published script does."""
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    device = state["text_projection"].device
    annotations = [{"caption": caption} for caption in captions]
    for start in range(0, len(annotations), batch_size):
        batch = annotations[start : start + batch_size]
        tokens = tokenizer([annotation["caption"] for annotation in batch]).to(device)
        for annotation, vector in zip(batch, caption_vectors(tokens, state, heads), strict=True):
            annotation["ann_feats"] = vector.clone()
    return annotations
