"""Features in memory and left on disk give the same batches."""

import os

import pytest
import torch
import torch.nn.functional as F

from talk2dino.features.store import FeatureFile, read_features, write_features
from talk2dino.methods.talk2dino.training import columns
from talk2dino.methods.talk2dino.training.columns import Rows
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs

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
    monkeypatch.setattr(columns, "BLOCK_BYTES", 100)  # several blocks
    held, mapped = (pairs_of(stored, choice, size) for size in (1 << 20, 0))
    assert held.columns.held and not mapped.columns.held
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
    assert pairs.columns.held
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
        assert (pairs.columns.held is not None) == fits
        batch = next(pairs.batches([torch.tensor([0])]))
        torch.testing.assert_close(batch.visual, F.normalize(heads[:1].float(), dim=-1))


def test_a_file_that_is_replaced_is_still_read_as_it_was(stored, tiny_features):
    pairs = pairs_of(stored, UNIT, 0)
    before = next(pairs.batches([torch.arange(24)]))
    write_features(tiny_features(seed=1), stored)
    after = next(pairs.batches([torch.arange(24)]))
    assert torch.equal(before.visual, after.visual)
    assert torch.equal(before.text, after.text)


def test_columns_are_found_in_the_file_though_some_have_one_size(tmp_path):
    numbers = torch.arange(24.0).reshape(4, 6)
    path = tmp_path / "same_sizes.pth"
    features = FeatureFile(
        [{"id": number} for number in range(4)],
        [{"id": number, "image_id": number, "caption": ""} for number in range(4)],
        {"a": numbers, "b": numbers + 100, "half": numbers.bfloat16()},
        {"c": numbers + 200},
    )
    write_features(features, path)
    rows = Rows(read_features(path), ("a", "b", "half", "c"))
    index = torch.tensor([3, 0, 3])
    for key, expected in (("a", numbers), ("b", numbers + 100), ("c", numbers + 200)):
        assert torch.equal(rows.take(key, index), expected[index])
        assert torch.equal(rows.block(key, 1, 3), expected[1:3])
    assert torch.equal(rows.take("half", index), numbers.bfloat16()[index])


def test_columns_that_cannot_be_found_are_read_through_the_mapping(stored, monkeypatch):
    expected = next(pairs_of(stored, UNIT, 0).batches(BATCHES))
    monkeypatch.setattr(columns, "_stored_parts", lambda path: [])
    for memory_bytes in (0, 1 << 20):
        found = next(pairs_of(stored, UNIT, memory_bytes).batches(BATCHES))
        torch.testing.assert_close(found.visual, expected.visual)
        assert torch.equal(found.text, expected.text)


def test_a_file_that_is_cut_short_meanwhile_is_named(stored):
    pairs = pairs_of(stored, UNIT, 0)
    os.truncate(stored, 100)
    with pytest.raises(RuntimeError, match=r"features\.pth became shorter while it was read"):
        next(pairs.batches(BATCHES))


def test_no_batches_asked_for_are_none_given(stored):
    assert list(pairs_of(stored, UNIT, 0).batches([])) == []
