"""Cross-modal retrieval: how early the true image, or a true caption, comes in the ranking."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from talk2dino.config import check_at_least
from talk2dino.methods.talk2dino.projection import Projection
from talk2dino.methods.talk2dino.training.dataset import StoredPairs

SCORES_AT_ONCE = 1 << 24
"""Scores held in memory at a time (64 MiB of float32); M x N of them never are."""
_CAPTIONS = 256  # that are embedded at once
_BLOCK = 1 << 21
"""Numbers of a store read at a time: 8 MiB, which a cache holds for the lengths and the cosines."""


@dataclass(frozen=True)
class RankSummary:
    """One direction of retrieval. Ranks start at 1; recalls are in percent."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    queries: int

    def __str__(self) -> str:
        recalls = f"R@1 {self.r1:.1f}  R@5 {self.r5:.1f}  R@10 {self.r10:.1f}"
        return f"{recalls}  median rank {self.median_rank:g}  mean rank {self.mean_rank:.1f}"


def retrieval(text: Tensor, visual: Tensor, caption_rows: Tensor) -> dict[str, RankSummary]:
    """Rank all images for every caption, and all captions for every image that has one.

    Args:
        text: (M, D) caption embeddings, of any length.
        visual: (N, D) image embeddings in the same space.
        caption_rows: (M,) row of `visual` that each caption belongs to; any number per image.

    Returns:
        Both directions, by their names.
    """
    rows = caption_rows.to(text.device)
    images, described = torch.arange(len(visual), device=rows.device), rows.unique()
    return {
        "text_to_image": summarise(ranks(text, rows, visual, images)),
        "image_to_text": summarise(ranks(visual[described], described, text, rows)),
    }


def embed_pairs(model: Projection, pairs: StoredPairs) -> tuple[Tensor, Tensor, Tensor]:
    """Every caption, and every image that has one, in the common space.

    Args:
        model: the projection.
        pairs: with one vector per caption and per image.

    Returns:
        (M, D) captions, (N, D) images, and (M,) the row of each caption's image.
    """
    _, rows = pairs.caption_rows.unique(return_inverse=True)
    parts = torch.arange(len(pairs)).split(_CAPTIONS)
    texts, images = [], torch.empty(0)
    with torch.no_grad():
        for index, batch in zip(parts, pairs.batches(parts), strict=True):
            visual, text = model.embed(batch.visual, batch.text, **batch.extras)
            texts.append(text)
            if not len(images):
                images = visual.new_empty((int(rows.max()) + 1, *visual.shape[1:]))
            images[rows[index].to(visual.device)] = visual
    return torch.cat(texts), images, rows


def ranks(queries: Tensor, image_of: Tensor, ranked: Tensor, image_of_ranked: Tensor) -> Tensor:
    """(Q,) how early the first of what belongs to a query's image comes.

    What belongs to the same image does not push each other down; ties with others count against.

    Args:
        queries: (Q, D).
        image_of: (Q,) the image of each.
        ranked: (R, D) what is ranked for every query.
        image_of_ranked: (R,) likewise.
    """
    found = []
    for part, scores in cosine_blocks(queries, ranked):
        own = image_of_ranked[None, :] == image_of[part, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        found.append(1 + ((scores >= best) & ~own).sum(dim=1))
    return torch.cat(found)


def best_rows(
    queries: Tensor,
    stored: Tensor,
    top: int,
    project: Callable[[Tensor], Tensor] = Tensor.float,
    done: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows of a store that are most similar to a query; memory is flat in the rows.

    Args:
        queries: (Q, D), of any length; the best of them counts.
        stored, project: see `cosine_blocks`.
        top: rows to find; all if there are fewer.
        done: called after every block; `dataset.forget`, where `stored` is mapped from a file.

    Returns:
        Cosines and row numbers (min(top, N),), the best first; of equals the first.
    """
    check_at_least(1, top=top)
    found, rows = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for part, cosines in cosine_blocks(stored, queries, project):
        if done is not None:
            done()
        found = torch.cat([found, cosines.amax(dim=1).cpu()])
        rows = torch.cat([rows, torch.arange(part.start, part.start + len(cosines))])
        order = found.sort(descending=True, stable=True).indices[:top]
        found, rows = found[order], rows[order]
    return found, rows


def cosine_blocks(
    stored: Tensor,
    queries: Tensor,
    project: Callable[[Tensor], Tensor] = Tensor.float,
) -> Iterator[tuple[slice, Tensor]]:
    """The cosines of a store with queries, some of its rows at a time: how all ranks are found.

    Args:
        stored: (N, E) one vector per row, or (N, H, E) one per head, of which the best counts.
        queries: (Q, D), of any length as the others.
        project: (..., E) to (..., D).

    Yields:
        Which rows, and (rows, Q).
    """
    unit = F.normalize(queries.float(), dim=-1).T
    heads = stored.shape[1] if stored.ndim == 3 else 1
    step = min(SCORES_AT_ONCE // (heads * len(queries)), _BLOCK // stored[:1].numel())
    for start in range(0, len(stored), step := max(1, step)):
        stop = min(start + step, len(stored))
        block = project(stored[start:stop].to(unit.device, torch.float32)).flatten(0, -2)
        lengths = torch.linalg.vector_norm(block, dim=-1, keepdim=True).clamp(min=1e-12)
        cosines = (block @ unit).div_(lengths).view(stop - start, heads, -1)
        yield slice(start, stop), cosines.amax(dim=1)


def summarise(ranks: Tensor) -> RankSummary:
    """Recalls, median and mean of (Q,) ranks that start at 1."""
    ranks = ranks.double()
    r1, r5, r10 = (100 * (ranks <= k).double().mean().item() for k in (1, 5, 10))
    middle = float(np.median(ranks.cpu().numpy()))
    return RankSummary(r1, r5, r10, middle, ranks.mean().item(), len(ranks))
