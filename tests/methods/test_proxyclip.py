import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from talk2dino.backbones.vision import load_vision
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.methods.proxyclip import (
    MODELS,
    PUBLISHED,
    ProxyClipSegmenter,
    class_words,
    mix_by_proxy,
    proxy_attention,
    shared_words,
)
from talk2dino.methods.registry import find_method, load_segmenter
from talk2dino.pictures.vocabularies import find_vocabulary, read_word_lists
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import Protocol


@pytest.fixture(scope="module")
def toy():
    return load_segmenter("proxyclip_toy", "seeded:0")


def query_of(rows, owner=None, background=None):
    owner = None if owner is None else torch.tensor(owner)
    count = len(rows) if owner is None else int(owner.max()) + 1
    return ClassQuery(tuple(f"class {i}" for i in range(count)), rows, owner, background)


def random_rows(count):
    generator = torch.Generator().manual_seed(0)
    return nn.functional.normalize(torch.randn(count, 512, generator=generator), dim=-1)


def test_patches_attend_to_those_that_are_more_alike_than_usual():
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    attention, mean = proxy_attention(features)
    similarity = features @ features.T
    logits = 3 * (similarity - 1.2 * similarity.mean())
    expected = logits.masked_fill(logits < 0, -torch.inf).softmax(dim=-1)
    assert mean == pytest.approx(similarity.mean().item())
    assert (expected == 0).any()
    torch.testing.assert_close(attention, expected)


def test_where_all_is_alike_every_patch_attends_to_itself():
    attention, mean = proxy_attention(torch.ones(5, 8))
    assert mean == pytest.approx(1.0)
    torch.testing.assert_close(attention, torch.eye(5))


class Allocated(TorchDispatchMode):
    """Keeps every tensor's storage that is made, so that their sum bounds the memory."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, torch.Tensor) else []:
            self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return result


def test_a_window_takes_one_matrix_of_similarities_and_not_one_per_head():
    patches = 1764  # of 8 pixels in a window of 336
    features, values = torch.randn(patches, 16), torch.randn(patches, 768)
    with Allocated() as allocated:
        mix_by_proxy(features, values)
    assert sum(storage.nbytes() for storage in allocated.storages.values()) < 60e6


def test_a_window_of_one_colour_has_finite_scores(toy):
    scores = toy.window_scores(torch.full((1, 3, 64, 64), 127.0), query_of(random_rows(3)))
    assert scores.isfinite().all()
    features = toy.patch_features(torch.full((1, 3, 64, 64), 127.0))
    assert features.mean_similarities[0] > 1 / 1.2  # where the published code gives NaN
    assert toy.uniform_windows(features) == [True]
    assert toy.uniform_windows(features._replace(mean_similarities=(0.83, 0.84))) == [False, True]


def test_a_window_scores_alike_whatever_it_is_batched_with(toy):
    windows = torch.rand(3, 3, 60, 90) * 255
    windows[1] /= 4
    query = query_of(random_rows(4))
    together = toy.window_scores(windows, query)
    alone = torch.cat([toy.window_scores(window[None], query) for window in windows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together.shape == (3, 4, 60, 90)


def test_a_transposed_window_has_a_transposed_grid(toy):
    tall, wide = (toy.patch_features(torch.zeros(1, 3, *hw)) for hw in ((96, 48), (48, 96)))
    assert tall.grid == (12, 6) and wide.grid == (6, 12)
    assert tall.patches.shape == wide.patches.shape == (1, 72, 512)


def test_padding_has_the_mean_colour_of_clip(toy):
    seen = []
    toy.vision.model.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        toy.patch_features(torch.zeros(1, 3, 40, 48))
    finally:
        toy.vision.model.patch_embed._forward_pre_hooks.clear()
    assert seen[0].shape == (1, 3, 48, 48)
    colour = torch.tensor([122.771, 116.746, 104.094]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        seen[0][..., :4, :], toy.vision.normalise(colour.expand(1, 3, 4, 48))
    )


def test_windows_are_padded_to_whole_patches_of_both_models(toy):
    assert toy.multiple == 16
    assert toy.patch_features(torch.zeros(1, 3, 60, 90)).grid == (8, 12)
    scores = toy.window_scores(torch.zeros(1, 3, 60, 90), query_of(random_rows(2)))
    assert scores.shape == (1, 2, 60, 90)


def test_a_word_of_the_background_that_is_a_class_does_not_hide_it(toy):
    rows = random_rows(3)[[0, 1, 1, 2]]  # background, background, bed, chair
    query = query_of(rows, [0, 0, 1, 2], background=0.25)
    assert shared_words(query).tolist() == [False, True, False, False]
    windows = torch.rand(1, 3, 48, 48) * 255
    scores = toy.window_scores(windows, query)
    assert (scores[:, 1] == -1).all() and (scores[:, 2] > -1).all()
    published = ProxyClipSegmenter(toy.image, toy.text, toy.vision, compat=True)
    kept = published.window_scores(windows, query)
    torch.testing.assert_close(kept[:, 1], kept[:, 2])
    assert not shared_words(query_of(rows, [0, 0, 1, 2])).any()


def test_a_single_word_of_the_background_can_be_a_class_too():
    rows = random_rows(2)[[0, 0, 1]]
    assert shared_words(query_of(rows, background=0.2)).tolist() == [True, False, False]


def test_embedding_a_word_twice_gives_a_shared_word(toy):
    rows = torch.cat([toy.embed_classes(words) for words in (["sky", "bed"], ["bed", "cat"])])
    found = shared_words(query_of(rows, [0, 0, 1, 2], background=0.2))
    assert found.tolist() == [False, True, False, False]


def test_different_words_are_not_taken_for_the_same(toy):
    rows = toy.embed_classes(["sky", "sea", "cat"])
    assert not shared_words(query_of(rows, [0, 0, 1], background=0.2)).any()


@pytest.mark.parametrize(
    ("benchmark", "vocabulary", "count"),
    [("voc", "voc", 46), ("coco_object", "coco", 97), ("context", "voc", 21), (None, "voc", 46)],
)
def test_the_background_has_the_published_words(benchmark, vocabulary, count):
    names = find_vocabulary([vocabulary]).names
    lists = class_words(benchmark).lists(names, 0.2)[1]
    assert sum(map(len, lists)) == count


@pytest.mark.parametrize("row", BENCHMARKS.values(), ids=lambda row: row.key)
def test_the_shipped_lists_fit_their_benchmarks_and_are_the_methods_words(row, root):
    path = root / "vocabularies" / f"proxyclip_{row.key}.txt"
    found, names = read_word_lists(path), row.classes[row.background :]
    found.check_fits(row.key, len(names), row.background)
    assert found.names == tuple(class_words(row.key).of(name)[0] for name in names)
    background = tuple(w for w in class_words(row.key).background if w not in found.names)
    assert not row.background or (found.background or ("background",)) == background


def test_only_the_last_blocks_attention_is_replaced(toy):
    windows = torch.rand(1, 3, 48, 48) * 255
    values = toy.last_values(windows, (3, 3))
    torch.testing.assert_close(values.shape, torch.Size([1, 9, 192]))
    features = toy.patch_features(windows)
    query = query_of(random_rows(2))
    torch.testing.assert_close(
        toy.score_features(features, windows, query), toy.window_scores(windows, query)
    )


def test_vocabularies_share_one_pass_of_both_towers(toy):
    other = ProxyClipSegmenter(toy.image, toy.text, toy.vision, "cityscapes")
    assert toy.shares_features(other)
    proxy = load_vision("dino_toy", "seeded:1")
    assert not toy.shares_features(ProxyClipSegmenter(toy.image, toy.text, proxy))


def test_protocols_are_the_published_ones(toy):
    def of(benchmark):
        return ProxyClipSegmenter(toy.image, toy.text, toy.vision, benchmark)

    assert of("voc").protocol == Protocol(336, window=336, stride=112)
    assert of("ade20k").protocol == Protocol(448, window=336, stride=112)
    assert of("cityscapes").protocol == Protocol(448, window=224, stride=112)
    thresholds = [of(key).rules.threshold for key in ("voc", "context", "coco_object")]
    assert thresholds == [0.2, 0.15, 0.25]
    with pytest.raises(ValueError, match="voc20 has no background"):
        of("voc20").query(["cat"], 0.2)
    method = find_method("proxyclip_toy", {"weights": "seeded:3"})
    assert method.benchmark(BENCHMARKS["cityscapes"]).protocol == of("cityscapes").protocol
    assert method.settings()["vision_weights"] == "seeded:3"
    assert method.threshold(BENCHMARKS["coco_object"]) == 0.25


def test_models_have_published_numbers_or_are_toys():
    assert set(MODELS) - set(PUBLISHED) == {"proxyclip_toy", "proxyclip_toy_dinov2"}
    assert PUBLISHED["proxyclip_vith"].miou["ade20k"] == 24.2
    with pytest.raises(ValueError, match="unknown model 'proxyclip'"):
        load_segmenter("proxyclip")


def test_dino_has_its_official_positions_under_its_official_name_only():
    assert load_vision("dino_toy").offset_positions
    assert not load_vision("toy").offset_positions


def test_an_official_file_of_dino_loads(tmp_path):
    backbone = load_vision("dino_toy")
    state = dict(backbone.model.state_dict())
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.bias", "norm.weight"} <= set(state)
    torch.save(state, tmp_path / "dino_vitbase8_pretrain.pth")
    again = load_vision("dino_toy", str(tmp_path / "dino_vitbase8_pretrain.pth"))
    assert torch.equal(again.model.pos_embed, backbone.model.pos_embed)
    with pytest.raises(ValueError, match=r"dino_vitbase8_pretrain.pth: .*another architecture"):
        load_vision("toy", str(tmp_path / "dino_vitbase8_pretrain.pth"))
