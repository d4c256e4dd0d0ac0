"""Training written as published: one dict per pair, a loader that stacks them, Adam. The oracle."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset


class PairDataset(Dataset):
    """One dict per caption, with the tensors of its image."""

    def __init__(self, head_embeddings, texts, caption_rows):
        """(N, H, D) of all images, (M, E) of all captions, (M,) the image of each caption."""
        images = [{"disentangled_self_attn": row.clone()} for row in head_embeddings]
        self.samples = [
            {"image": images[row]["disentangled_self_attn"], "annotation": text.clone()}
            for row, text in zip(caption_rows.tolist(), texts, strict=True)
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Projection(nn.Module):
    """Captions (B, E) to the space of the patches (B, D)."""

    def __init__(self, text_dim, patch_dim):
        super().__init__()
        self.linear_layer = nn.Linear(text_dim, patch_dim)
        self.act = nn.Tanh()
        self.hidden_layers = nn.ModuleList([nn.Linear(patch_dim, patch_dim)])

    def forward(self, visual, text):
        """Scores (B texts, B images) with the head of each image that is closest to its text."""
        text = self.hidden_layers[0](self.act(self.linear_layer(text.float())))
        visual = F.normalize(visual, p=2, dim=-1)
        text = F.normalize(text, p=2, dim=-1)
        similarity = torch.einsum("bhd,bd->bh", visual, text)
        best = similarity.softmax(dim=-1).argmax(dim=-1)
        chosen = visual[torch.arange(len(visual), device=visual.device), best]
        return text @ chosen.transpose(1, 0)


def infonce(scores):
    logits = scores * (1 / 0.07)
    target = torch.arange(len(scores), device=scores.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.transpose(1, 0), target)) / 2
    return loss / len(scores) ** 2


def make_loader(dataset, order, batch_size, workers):
    """Batches of the captions in `order`."""
    batches = [part.tolist() for part in order.split(batch_size)]
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0
    )


def train_epoch(model, loader, lr, device="cpu"):
    """One epoch; returns the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for batch in loader:
        visual, text = batch["image"].to(device), batch["annotation"].to(device)
        loss = infonce(model(visual, text))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
