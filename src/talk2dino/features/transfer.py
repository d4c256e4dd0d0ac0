"""Copies to and from a GPU beside its work: the next batch goes in, the last one comes out.

On other devices batches pass through as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from talk2dino.devices import Fetched
from talk2dino.features.chunks import Chunk
from talk2dino.features.decode import DecodedBatch


def sent_ahead(batches: Iterable[DecodedBatch], device: torch.device) -> Iterator[DecodedBatch]:
    """Batches with their pixels on `device`; on CUDA the next is sent while one is worked on.

    The copy is only asynchronous from pinned memory (`DecodedBatch.pin_memory`).
    """
    if device.type != "cuda":
        for batch in batches:
            yield _sent(batch, device)
        return
    side = torch.cuda.Stream(device)
    waiting: DecodedBatch | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            coming = _sent(batch, device)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(side)
        _used_by_current_stream(coming, device)
        waiting = coming
    if waiting is not None:
        yield waiting


def _sent(batch: DecodedBatch, device: torch.device) -> DecodedBatch:
    inputs = batch.caption_inputs
    return DecodedBatch(
        batch.images.to(device, non_blocking=True),
        batch.failures,
        None if inputs is None else inputs.to(device, non_blocking=True),
    )


def _used_by_current_stream(batch: DecodedBatch, device: torch.device) -> None:
    """Keep the allocator from handing the pixels' memory to the side stream while in use."""
    for pixels in (batch.images, batch.caption_inputs):
        if pixels is not None:
            pixels.record_stream(torch.cuda.current_stream(device))


def fetched_behind(batches: Iterable[Chunk], device: torch.device) -> Iterator[Chunk]:
    """Batches with their columns in main memory.

    On CUDA a batch is handed out when the work of the next one has been launched, so that storing
    it takes no time of the GPU's.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _arrived(batch, Fetched(list(batch.columns.values())))
        return
    side = torch.cuda.Stream(device)
    waiting: tuple[Chunk, Fetched] | None = None
    for batch in batches:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for column in batch.columns.values():
                column.record_stream(side)
            coming = batch, Fetched(list(batch.columns.values()))
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = coming
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Chunk, fetched: Fetched) -> Chunk:
    columns = dict(zip(batch.columns, fetched.read(), strict=True))
    return Chunk(columns, batch.failures, batch.captions)
