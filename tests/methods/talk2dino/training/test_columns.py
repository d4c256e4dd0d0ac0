"""Features in memory and left on disk give the same batches."""

import pytest
import torch
import torch.nn.functional as F

from talk2dino.features.store import read_features, write_features
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.training import columns
from talk2dino.methods.talk2dino.training.columns import forget
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs

UNIT, PLAIN = FeatureChoice(), FeatureChoice(config=ProjectionConfig(cosine=False))
BATCHES = [torch.tensor([5, 0, 7]), torch.tensor([1, 1]), torch.tensor([], dtype=torch.int64)]


@pytest.fixture
def stored(tiny_features, tmp_path):
    path = tmp_path / "features.pth"
    write_features(tiny_features(), path)
    return path


def pairs_of(path, choice, memory_bytes):
    return StoredPairs(read_features(path), choice, path, memory_bytes=memory_bytes)


@pytest.mark.parametrize("choice", [PLAIN, UNIT])
def test_batches_are_the_same_from_memory_and_from_disk(stored, choice, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK_BYTES", 100)  # several blocks
    held, mapped = (pairs_of(stored, choice, size) for size in (1 << 20, 0))
    assert mapped.columns.on_disk and not held.columns.on_disk
    features = read_features(stored, mmap=False)
    heads = features.image_features["disentangled_self_attn"]
    for pairs in (held, mapped):
        for batch, index in zip(pairs.batches(BATCHES), BATCHES, strict=True):
            expected = heads[features.caption_rows[index]]
            if choice is UNIT:
                expected = F.normalize(expected, dim=-1)
            torch.testing.assert_close(batch.visual, expected)
            assert torch.equal(batch.text, features.caption_features["ann_feats"][index])
            assert batch.visual_is_unit == (choice is UNIT)


def test_what_is_in_memory_already_is_not_copied(tiny_features):
    features = tiny_features()
    pairs = StoredPairs(features, UNIT, "f.pth", memory_bytes=0)
    assert not pairs.columns.on_disk
    lengths = next(pairs.batches(BATCHES)).visual.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 3))
    assert features.image_features["disentangled_self_attn"].norm(dim=-1).std() > 0.1


def test_half_precision_is_scaled_in_float32_and_counts_as_such(tiny_features, tmp_path):
    features, path = tiny_features(), tmp_path / "half.pth"
    heads = features.image_features["disentangled_self_attn"].half()
    features.image_features["disentangled_self_attn"] = heads
    write_features(features, path)
    size = 4 * heads.numel() + features.caption_features["ann_feats"].nbytes
    for memory_bytes, fits in ((size, True), (size - 1, False)):
        pairs = pairs_of(path, UNIT, memory_bytes)
        assert pairs.columns.on_disk != fits
        batch = next(pairs.batches([torch.tensor([0])]))
        torch.testing.assert_close(batch.visual, F.normalize(heads[:1].float(), dim=-1))


def test_a_file_that_is_replaced_is_still_read_as_it_was(stored, tiny_features):
    pairs = pairs_of(stored, UNIT, 0)
    before = next(pairs.batches([torch.arange(24)]))
    write_features(tiny_features(seed=1), stored)
    after = next(pairs.batches([torch.arange(24)]))
    assert torch.equal(before.visual, after.visual)
    assert torch.equal(before.text, after.text)


def test_what_is_given_back_is_read_again(stored):
    column = read_features(stored).image_features["disentangled_self_attn"]
    before = column.clone()
    for _ in range(3):
        forget(column[2:5])
        forget(column)
        assert torch.equal(column, before)


def test_no_batches_asked_for_are_none_given(stored):
    assert list(pairs_of(stored, UNIT, 0).batches([])) == []
