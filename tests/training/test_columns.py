"""Features in memory and left on disk give the same batches."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from talk2dino.features.store import read_features, write_features
from talk2dino.training import columns
from talk2dino.training.columns import HeldColumns, MappedColumns
from talk2dino.training.dataset import FeatureChoice, StoredPairs

UNIT = FeatureChoice(unit_visual=True)
BATCHES = [torch.tensor([5, 0, 7]), torch.tensor([1, 1]), torch.tensor([], dtype=torch.int64)]


@pytest.fixture
def stored(tiny_features, tmp_path):
    path = tmp_path / "features.pth"
    write_features(tiny_features(), path)
    return path


def pairs_of(path, choice, memory_bytes):
    return StoredPairs(read_features(path), choice, path, memory_bytes=memory_bytes)


@pytest.mark.parametrize("choice", [FeatureChoice(), UNIT])
def test_batches_are_the_same_from_memory_and_from_disk(stored, choice, monkeypatch):
    monkeypatch.setattr(columns, "BYTES_MAPPED", 100)  # every batch maps anew
    held, mapped = (pairs_of(stored, choice, size) for size in (1 << 20, 0))
    assert isinstance(held.columns, HeldColumns)
    assert isinstance(mapped.columns, MappedColumns)
    features = read_features(stored, mmap=False)
    heads = features.image_features["disentangled_self_attn"]
    for pairs in (held, mapped):
        for batch, index in zip(pairs.batches(BATCHES), BATCHES, strict=True):
            expected = heads[features.caption_rows[index]]
            if choice.unit_visual:
                expected = F.normalize(expected, dim=-1)
            torch.testing.assert_close(batch.visual, expected)
            assert torch.equal(batch.text, features.caption_features["ann_feats"][index])
            assert batch.visual_is_unit == choice.unit_visual


def test_what_is_in_memory_already_is_not_copied(tiny_features):
    features = tiny_features()
    pairs = StoredPairs(features, UNIT, "f.pth", memory_bytes=0)
    assert isinstance(pairs.columns, HeldColumns)
    lengths = next(pairs.batches(BATCHES)).visual.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 3))
    assert features.image_features["disentangled_self_attn"].norm(dim=-1).std() > 0.1


def test_half_precision_is_scaled_in_float32_and_counts_as_such(tiny_features, tmp_path):
    features, path = tiny_features(), tmp_path / "half.pth"
    heads = features.image_features["disentangled_self_attn"].half()
    features.image_features["disentangled_self_attn"] = heads
    write_features(features, path)
    size = 4 * heads.numel() + features.caption_features["ann_feats"].nbytes
    for memory_bytes, kind in ((size, HeldColumns), (size - 1, MappedColumns)):
        pairs = pairs_of(path, UNIT, memory_bytes)
        assert type(pairs.columns) is kind
        batch = next(pairs.batches([torch.tensor([0])]))
        torch.testing.assert_close(batch.visual, F.normalize(heads[:1].float(), dim=-1))


def test_a_file_that_is_replaced_under_a_training_stops_it(stored, tiny_features, monkeypatch):
    monkeypatch.setattr(columns, "BYTES_MAPPED", 1)
    pairs = pairs_of(stored, UNIT, 0)
    batches = pairs.batches([torch.tensor([number]) for number in range(20)])
    next(batches)
    write_features(tiny_features(seed=1), stored)
    with pytest.raises(RuntimeError, match=r"features\.pth was replaced while it was being"):
        list(batches)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_a_file_is_never_mapped_more_often_than_batches_are_read_ahead(stored, monkeypatch):
    monkeypatch.setattr(columns, "BYTES_MAPPED", 1)
    pairs = pairs_of(stored, UNIT, 0)
    most = 0
    for _ in pairs.batches([torch.tensor([number % 8]) for number in range(100)]):
        maps = Path("/proc/self/maps").read_text()
        most = max(most, maps.count(os.fspath(stored)))
    assert 1 <= most <= 2 * columns.BATCHES_AHEAD + 4


def test_no_batches_asked_for_are_none_given(stored):
    assert list(pairs_of(stored, UNIT, 0).batches([])) == []
