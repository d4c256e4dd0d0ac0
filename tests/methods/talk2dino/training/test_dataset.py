import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from talk2dino.features.store import read_features, write_features
from talk2dino.methods.talk2dino.projection import (
    ProjectionConfig,
    average_tokens,
    end_positions,
)
from talk2dino.methods.talk2dino.recipe import Recipe
from talk2dino.methods.talk2dino.training import dataset
from talk2dino.methods.talk2dino.training.dataset import (
    FeatureChoice,
    StoredPairs,
    check_widths,
    forget,
)

PLAIN = FeatureChoice(config=ProjectionConfig(cosine=False))


def only_batch(pairs, index):
    return next(pairs.batches([torch.tensor(index)]))


def test_a_caption_comes_with_the_features_of_its_own_image(tiny_features):
    features = tiny_features(images=4, per_image=2)
    pairs = StoredPairs(features, PLAIN, "f.pth")
    batch = only_batch(pairs, [7, 0, 3])
    assert torch.equal(batch.visual, features.image_features["disentangled_self_attn"][[3, 0, 1]])
    assert torch.equal(batch.text, features.caption_features["ann_feats"][[7, 0, 3]])
    assert batch.extras == {}
    assert len(pairs) == 8
    assert pairs.features.annotations[7]["id"] == 1007
    assert pairs.features.annotations[7]["image_id"] == 103


def test_features_stored_in_half_precision_are_used_in_float32(tiny_features):
    features = tiny_features()
    for columns in (features.image_features, features.caption_features):
        columns.update({k: v.half() for k, v in columns.items() if v.is_floating_point()})
    batch = only_batch(StoredPairs(features, PLAIN, "f.pth"), [0, 1])
    assert batch.visual.dtype == batch.text.dtype == torch.float32


def test_validation_uses_one_vector_per_image_where_training_uses_one_per_head():
    assert FeatureChoice().for_validation().visual == "avg_self_attn_out"
    routed = FeatureChoice(config=ProjectionConfig(alignment_strategy="soft_routing"))
    assert routed.for_validation() == routed
    assert routed.for_retrieval().visual == "avg_self_attn_out"
    assert FeatureChoice("dino_features").for_validation().visual == "dino_features"
    weighted = FeatureChoice(config=ProjectionConfig(weight_attn_heads="static"))
    assert weighted.for_validation() == weighted


def test_learned_head_weights_take_patches_maps_and_cls(tiny_features):
    features = tiny_features()
    choice = FeatureChoice(config=ProjectionConfig(weight_attn_heads="conditioned"))
    batch = only_batch(StoredPairs(features, choice, "f.pth"), [4])
    assert torch.equal(batch.visual, features.image_features["patch_tokens"][[1]])
    assert torch.equal(
        batch.extras["self_attn_maps"], features.image_features["self_attn_maps"][[1]]
    )
    assert torch.equal(batch.extras["cls"], features.image_features["dino_features"][[1]])
    static = FeatureChoice(config=ProjectionConfig(weight_attn_heads="static"))
    assert "cls" not in only_batch(StoredPairs(features, static, "f.pth"), [4]).extras


def test_token_level_text_comes_with_its_mask_and_end_positions(tiny_features):
    features = tiny_features()
    config = ProjectionConfig(alignment_strategy="sum")
    choice = FeatureChoice(config=config, text="clip_txt_out_tokens")
    batch = only_batch(StoredPairs(features, choice, "f.pth"), [2, 5])
    mask = features.caption_features["text_input_mask"][[2, 5]]
    assert batch.text.shape == (2, 7, 64)
    assert torch.equal(batch.extras["text_input_mask"], mask)


def test_the_last_layer_is_trained_on_the_output_of_the_one_before(tiny_features):
    features = tiny_features()
    choice = FeatureChoice(config=ProjectionConfig(model_class="CLIPLastLayer"))
    batch = only_batch(StoredPairs(features, choice, "f.pth"), [2])
    assert torch.equal(batch.text, features.caption_features["clip_second_last_out"][[2]])
    assert torch.equal(batch.extras["text_argmax"], features.caption_features["text_argmax"][[2]])


def test_the_average_leaves_out_the_first_and_the_end_of_text_position():
    tokens = torch.tensor([[[100.0], [1.0], [3.0], [200.0], [400.0]]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert average_tokens(tokens, mask).item() == 2
    assert average_tokens(tokens, mask, keep_cls=True).item() == pytest.approx(104 / 3)
    assert average_tokens(tokens, mask, keep_end_seq=True).item() == 68
    assert mask.sum() == 4  # the input is not modified


def test_the_average_of_an_empty_caption_is_zero_not_nan():
    mask = torch.tensor([[True, True, False]])
    assert torch.equal(average_tokens(torch.ones(1, 3, 2), mask), torch.zeros(1, 2))


def test_an_exclamation_mark_inside_a_caption_does_not_move_its_end():
    ids = torch.tensor([[49406, 320, 0, 320, 49407, 0, 0]])  # "!" is token 0, like the padding
    assert end_positions(ids > 0).tolist() == [4]


def test_averaged_tokens_are_one_vector_per_caption(tiny_features):
    features = tiny_features()
    choice = FeatureChoice(config=ProjectionConfig(), text="clip_txt_out_tokens_avg")
    batch = only_batch(StoredPairs(features, choice, "f.pth"), [1])
    length = int(features.caption_features["text_input_mask"][1].sum())
    expected = features.caption_features["clip_txt_out_tokens"][1, 1 : length - 1].mean(dim=0)
    torch.testing.assert_close(batch.text[0], expected)


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("ann_feats", r"python text_features_extraction.py --ann_path f.pth"),
        ("disentangled_self_attn", r"python dino_extraction_v2.py .*--extract_disentangled"),
    ],
)
def test_a_missing_key_names_the_command_that_adds_it(tiny_features, key, command):
    features = tiny_features()
    features.image_features.pop(key, None)
    features.caption_features.pop(key, None)
    with pytest.raises(ValueError, match=f"f.pth holds no '{key}'.*{command}"):
        StoredPairs(features, PLAIN, "f.pth")


def test_a_file_without_captions_is_refused(tiny_features):
    with pytest.raises(ValueError, match=r"f\.pth holds no captions"):
        StoredPairs(tiny_features(per_image=0), PLAIN, "f.pth")


@pytest.mark.parametrize(
    ("config", "visual", "text", "message"),
    [
        ({}, "disentangeld_self_attn", None, "unknown image feature.*'disentangled_self_attn'"),
        ({}, None, "ann_feat", "unknown text feature.*Did you mean 'ann_feats'"),
        ({}, None, "clip_second_last_out", "CLIPLastLayer is the one"),
        ({}, None, "clip_txt_out_tokens", "max_score cannot use. Choose one of sum, mean"),
        ({"model_class": "CLIPLastLayer"}, None, "ann_feats", "does not go with"),
        ({"weight_attn_heads": "static"}, "dino_features", None, "needs --feature_name patch_tok"),
    ],
)
def test_features_that_do_not_go_with_the_model_are_refused(config, visual, text, message):
    with pytest.raises(ValueError, match=message):
        FeatureChoice(visual or "", text or "", ProjectionConfig(**config))


def checked(features, recipe):
    columns = features.image_features, features.caption_features
    check_widths(*columns, FeatureChoice(config=recipe.model), recipe, "f.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dino_embed_dim": 768, "clip_embed_dim": 64}, "dino_embed_dim: 768.* image .*have 6"),
        ({"dino_embed_dim": 6}, "clip_embed_dim: 512, but the text .*have 64"),
        (
            {"dino_embed_dim": 6, "clip_embed_dim": 64, "weight_attn_heads": "static"},
            "num_attn_head: 16, but the attention map .*have 3",
        ),
        (
            {"dino_embed_dim": 6, "clip_embed_dim": 64, "num_attn_head": 12},
            "num_attn_head: 12, but the attention map .*have 3",
        ),
    ],
)
def test_features_of_another_width_than_the_recipe_are_refused(tiny_features, config, message):
    recipe = Recipe(ProjectionConfig(**config), path=Path("vitb.yaml"), written=tuple(config))
    with pytest.raises(ValueError, match=f"vitb.yaml says {message}"):
        checked(tiny_features(), recipe)


def test_a_number_of_heads_that_decides_nothing_may_be_left_out(tiny_features):
    config = ProjectionConfig(dino_embed_dim=6, clip_embed_dim=64)
    checked(tiny_features(), Recipe(config))


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
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 100)  # several blocks
    held, mapped = (pairs_of(stored, choice, size) for size in (1 << 20, 0))
    assert mapped.on_disk and not held.on_disk
    features = read_features(stored, mmap=False)
    heads = features.image_features["disentangled_self_attn"]
    for pairs in (held, mapped):
        for batch, index in zip(pairs.batches(BATCHES), BATCHES, strict=True):
            expected = heads[features.caption_rows[index]]
            if choice is UNIT:
                expected = F.normalize(expected, dim=-1)
            torch.testing.assert_close(batch.visual, expected)
            assert torch.equal(batch.text, features.caption_features["ann_feats"][index])
            assert batch.extras == ({"visual_is_unit": True} if choice is UNIT else {})


def test_what_is_in_memory_already_is_not_copied(tiny_features):
    features = tiny_features()
    pairs = StoredPairs(features, UNIT, "f.pth", memory_bytes=0)
    assert not pairs.on_disk
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
        assert pairs.on_disk != fits
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


def test_a_file_that_was_cut_short_in_place_is_named_before_the_next_epoch(stored):
    held, mapped = (pairs_of(stored, UNIT, size) for size in (1 << 20, 0))
    next(mapped.batches([torch.arange(24)]))
    size = stored.stat().st_size
    os.truncate(stored, size // 2)
    with pytest.raises(RuntimeError, match=f"features.pth had {size} bytes .* has {size // 2} now"):
        next(mapped.batches([torch.arange(24)]))
    assert len(next(held.batches([torch.arange(24)])).text) == 24
